"""How low each schedule gets with the same number of passes: `python -m tests.benchmarks.schedules [--write]`.

Takes a quarter of an hour on one thread.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from tqdm import tqdm

from robret_lib.attacks import PGD, AutoPGD, Search
from robret_lib.attacks.search.auto_pgd import ScheduleName
from tests.benchmarks.networks import ATTACKS, attacked, machine, mean_loss, network

N = 200
NETWORKS = ("none N", "ACT N")
PASSES = (8, 32)
LEVELS = (4, 8, 28, 77)  # eps x 255
SEARCHES = ("PGD 3/255", "PGD 2.5 eps/steps", *get_args(ScheduleName))


class Reached(NamedTuple):
    """Mean measure (rank, shift, R@1) and mean loss of one attack by one search."""

    measure: float
    loss: float


def search(name: str, eps: float, passes: int) -> Search:
    if name == "PGD 3/255":
        return PGD(eps, 3 / 255, passes)
    if name == "PGD 2.5 eps/steps":
        return PGD(eps, 2.5 * eps / passes, passes)
    return AutoPGD(eps, passes, schedule=name)


def measure() -> dict[tuple[str, int, int, str, str], Reached]:
    """By network, passes, level, attack and search."""
    reached = {}
    total = len(NETWORKS) * len(PASSES) * len(LEVELS) * len(ATTACKS) * len(SEARCHES)
    with tqdm(total=total) as bar:
        for where in NETWORKS:
            model, gallery = network(where)
            for passes, level, what, name in settings():
                result = attacked(ATTACKS[what], model, gallery, search(name, level / 255, passes), N)
                reached[where, passes, level, what, name] = Reached(
                    next(iter(result.measured.values())).mean().item(),
                    mean_loss(ATTACKS[what], model, gallery, result),
                )
                bar.update()
    return reached


def settings() -> Iterator[tuple[int, int, str, str]]:
    for passes in PASSES:
        for level in LEVELS:
            for what in ATTACKS:
                for name in SEARCHES:
                    yield passes, level, what, name


def table(reached: dict[tuple[str, int, int, str, str], Reached]) -> str:
    lines = [
        "# Schedules of AutoPGD",
        "",
        f"Fashion-MNIST at quick scale, gallery 2,000, the first {N} images attacked, seed 0, mode fixed.",
        "Columns: mean percentile rank (CA, QA; %), mean shift (ES), R@1 that is left (margins; %). Two networks, C2F2",
        "with half the channels: without a defense, and trained with ACT (400 steps, 8 inner steps of 12/255).",
        "The schedules are those of `AutoPGD`; PGD has a constant step and returns the last iterate.",
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.schedules --write`.",
        "",
        "## Summary",
        "",
        "The gap is the mean loss less the smallest one that any of the searches reached, in percent of what that one",
        "won over the worst of them; the mean over attacks and networks.",
        "",
        *_summary(reached),
    ]
    for where in NETWORKS:
        for passes in PASSES:
            lines += ["", f"## {where}, {passes} passes", "", *_details(reached, where, passes)]
    return "\n".join(lines) + "\n"


def _summary(reached: dict[tuple[str, int, int, str, str], Reached]) -> list[str]:
    head = [f"{passes} passes, {level}/255" for passes in PASSES for level in LEVELS]
    lines = [f"| gap (%) | {' | '.join(head)} | all |", "| :--- |" + " ---: |" * (len(head) + 1)]
    for name in SEARCHES:
        gaps = []
        for passes in PASSES:
            for level in LEVELS:
                each = [_gap(reached, (where, passes, level, what), name) for where in NETWORKS for what in ATTACKS]
                gaps.append(sum(each) / len(each))
        cells = [f"{gap:.1f}" for gap in (*gaps, sum(gaps) / len(gaps))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _gap(
    reached: dict[tuple[str, int, int, str, str], Reached], setting: tuple[str, int, int, str], name: str
) -> float:
    losses = [reached[*setting, other].loss for other in SEARCHES]
    best, worst = min(losses), max(losses)
    return 100 * (reached[*setting, name].loss - best) / (worst - best)


def _details(reached: dict[tuple[str, int, int, str, str], Reached], where: str, passes: int) -> list[str]:
    lines = ["| eps x 255 | search | " + " | ".join(ATTACKS) + " |", "| ---: | :--- |" + " ---: |" * len(ATTACKS)]
    for level in LEVELS:
        for name in SEARCHES:
            measures = [reached[where, passes, level, what, name].measure for what in ATTACKS]
            cells = [f"{m:.3f}" if what == "ES" else f"{m:.1f}" for what, m in zip(ATTACKS, measures, strict=True)]
            lines.append(f"| {level} | {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how low each schedule of AutoPGD gets.")
    parser.add_argument("--write", action="store_true", help="also store the table beside this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = table(measure())
    print(measured)
    if arguments.write:
        Path(__file__).with_suffix(".md").write_text(measured)


if __name__ == "__main__":
    main()
