"""What a step of the ranking attacks costs beside the network itself: `python -m tests.benchmarks.pgd_cost [--write]`.

The unit is one bare forward plus backward to the input of C2F2, weights frozen, on the same batch. A step's cost is
the difference of a long and a short attack over their difference in steps, so that drawing targets, sorting benign
distances and measuring the result cancel; the last column has them in. Times are CPU seconds of this process on one
thread: on an idle machine that is the wall time, on a busy one it leaves out the waiting. Freed memory is kept.
"""

import argparse
import ctypes
import datetime
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import trange

from robret_lib import models
from robret_lib.attacks.pgd import PGD, frozen
from robret_lib.attacks.ranking import Gallery, candidate_attack, query_attack

REPEATS = 15
SHORT, LONG, WHOLE = 1, 9, 32  # steps of the two timed attacks, and of the attack the last column speaks of


class Setting(NamedTuple):
    """Queries against a gallery; per attack the cost of the published code's step and our limit."""

    queries: int
    gallery: int
    published: dict[str, float]
    limit: dict[str, float]


SETTINGS = (
    Setting(
        64, 2_000, {"CA+": 3.1, "CA-": 3.3, "QA+": 3.7, "QA-": 3.8}, dict.fromkeys(("CA+", "CA-", "QA+", "QA-"), 1.15)
    ),
    Setting(
        32, 10_000, {"CA+": 14, "CA-": 15, "QA+": 23, "QA-": 21}, {"CA+": 1.15, "CA-": 1.15, "QA+": 1.6, "QA-": 1.6}
    ),
)
ATTACKS = {
    "CA+": (candidate_attack, "raise"),
    "CA-": (candidate_attack, "lower"),
    "QA+": (query_attack, "raise"),
    "QA-": (query_attack, "lower"),
}


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def bare_steps(model: models.EmbeddingModel, images: Tensor, steps: int) -> None:
    with frozen(model):
        for _ in range(steps):
            pixels = images.detach().requires_grad_(True)
            torch.autograd.grad(model(pixels).sum(), pixels)


def measure(setting: Setting) -> dict[str, tuple[list[float], list[float]]]:
    """Per attack: a step's cost, and that of a whole attack divided by its steps, one number a repeat."""
    generator = torch.Generator().manual_seed(0)
    model = models.build("c2f2", embedding_dim=512)
    images = torch.rand(setting.queries, 1, 28, 28, generator=generator)
    others = normalize(torch.randn(setting.gallery - setting.queries, 512, generator=generator), dim=1)
    gallery = Gallery(torch.cat([models.embed(model, images), others]))
    own = torch.arange(setting.queries)

    def attacked(name: str, steps: int) -> float:
        attack, direction = ATTACKS[name]
        budget = PGD(eps=77 / 255, step=3 / 255, steps=steps)
        return cpu_seconds(lambda: attack(model, images, own, gallery, direction, budget, generator=generator))

    bare_steps(model, images, LONG)
    costs: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for _ in trange(REPEATS, desc=f"{setting.queries} queries, gallery of {setting.gallery:,}"):
        bare = cpu_seconds(lambda: bare_steps(model, images, LONG)) / LONG
        for name in ATTACKS:
            short, long = attacked(name, SHORT), attacked(name, LONG)
            step = (long - short) / (LONG - SHORT)
            costs[name][0].append(step / bare)
            costs[name][1].append((short + (WHOLE - SHORT) * step) / WHOLE / bare)
    return costs


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back, for the unit and the attacks alike.

    Otherwise it does so or not by the chance layout of the heap, and faulting the pages in again adds up to a fifth
    to a step of either.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def cpu_name() -> str:
    """As Linux calls it, or what Python knows elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table() -> str:
    lines = [
        "# The cost of a PGD step",
        "",
        f"In units of one bare forward plus backward to the input of C2F2 with frozen weights. Medians of {REPEATS}",
        "interleaved repeats in one process on one thread, in brackets the quartiles; the last column counts a whole",
        f"attack of {WHOLE} steps, its preparation and measurement included, divided by its steps.",
        "Times are CPU seconds, with an allocator that keeps freed memory.",
        "",
        f"{cpu_name()}, torch {torch.__version__}, {datetime.date.today().isoformat()}."
        " Made by `python -m tests.benchmarks.pgd_cost --write`.",
        "",
        "| queries | gallery | attack | published code | limit | a step | whole attack, per step |",
        "| ---: | ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for setting in SETTINGS:
        for name, (steps, wholes) in measure(setting).items():
            low, middle, high = statistics.quantiles(steps, n=4)
            middle_whole = statistics.median(wholes)
            lines.append(
                f"| {setting.queries} | {setting.gallery:,} | {name} | {setting.published[name]:g} "
                f"| {setting.limit[name]:g} | {middle:.2f} ({low:.2f} to {high:.2f}) | {middle_whole:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what a PGD step of the ranking attacks costs.")
    parser.add_argument("--write", action="store_true", help="also store the table beside this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    measured = table()
    print(measured)
    if arguments.write:
        Path(__file__).with_suffix(".md").write_text(measured)


if __name__ == "__main__":
    main()
