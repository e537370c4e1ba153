"""Metrics beside pytorch-metric-learning's: `python -m tests.benchmarks.metrics_cost [--write]`.

Same embeddings, one thread, CPU seconds, interleaved repeats.
"""

import functools
import statistics
from collections import defaultdict
from collections.abc import Callable

import faiss
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import trange

from robret_lib import metrics
from tests.benchmarks.measuring import cpu_seconds, machine, write_or_print

REPEATS = 7
ITEMS, DIMENSIONS, CLASSES = 10_000, 512, 10


def embeddings() -> tuple[Tensor, Tensor]:
    """Unit vectors around one center a class, near enough for mistakes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ITEMS) % CLASSES
    centers = torch.randn(CLASSES, DIMENSIONS, generator=generator)
    noise = 10 * torch.randn(ITEMS, DIMENSIONS, generator=generator)
    return normalize(centers[labels] + noise, dim=1), labels


def contenders(x: Tensor, labels: Tensor) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """By metric: pytorch-metric-learning's and ours, both in percent."""

    def theirs(name: str, k: int | str | None) -> Callable[[], float]:
        calculator = AccuracyCalculator(include=(name,), k=k)
        return lambda: 100 * calculator.get_accuracy(x, labels, x, labels, ref_includes_query=True)[name]

    ours = (x, x, labels, labels)
    return {
        "R@1": (theirs("precision_at_1", 1), lambda: metrics.recall_at_k(*ours, (1,), True)[1]),
        "mAP@R": (
            theirs("mean_average_precision_at_r", "max_bin_count"),
            lambda: metrics.map_at_r(*ours, self_excluded=True),
        ),
        "mAP": (
            theirs("mean_average_precision", None),
            lambda: metrics.mean_average_precision(*ours, self_excluded=True),
        ),
    }


def _keep(values: dict[tuple[str, str], float], key: tuple[str, str], work: Callable[[], float]) -> None:
    values[key] = work()


def table() -> str:
    faiss.omp_set_num_threads(1)
    x, labels = embeddings()
    rivals = contenders(x, labels)
    seconds, values = defaultdict(list), {}
    for _ in trange(REPEATS, desc="metrics"):
        for name, pair in rivals.items():
            for whose, work in zip(("theirs", "ours"), pair, strict=True):
                seconds[name, whose].append(cpu_seconds(functools.partial(_keep, values, (name, whose), work)))
    lines = [
        "# The cost of the metrics",
        "",
        f"{ITEMS:,} unit vectors of {DIMENSIONS} dimensions in {CLASSES} classes, each searched in all others. Medians",
        f"of {REPEATS} interleaved repeats, CPU seconds on one thread, beside pytorch-metric-learning (PML).",
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.metrics_cost --write`.",
        "",
        "| metric | PML (s) | ours (s) | ours / PML | PML (%) | ours (%) |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in rivals:
        theirs, ours = (statistics.median(seconds[name, whose]) for whose in ("theirs", "ours"))
        shown = f"{values[name, 'theirs']:.4f} | {values[name, 'ours']:.4f}"
        lines.append(f"| {name} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_or_print(table, __file__, "what the metrics cost")
