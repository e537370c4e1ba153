"""How low each schedule gets with the same number of passes: `python -m tests.benchmarks.schedules [--write]`.

Takes half an hour on one thread.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple, get_args

from tqdm import tqdm

from robret_lib.attacks import PGD, AutoPGD, Search
from robret_lib.attacks.search.auto_pgd import ScheduleName
from robret_lib.attacks.search.schedules import Falling
from tests.benchmarks.measuring import machine, write_or_print
from tests.benchmarks.networks import ATTACKS, attacked, mean_loss, network

NETWORKS = ("none N", "ACT N")
PASSES = (8, 32)
Made = Callable[[float, int], Search]
"""A search from its radius and its number of passes."""


def auto(schedule: ScheduleName | Callable, eps: float, passes: int) -> AutoPGD:
    return AutoPGD(eps, passes, schedule=schedule)


SEARCHES: dict[str, Made] = {
    "PGD, 3/255": lambda eps, passes: PGD(eps, 3 / 255, passes),
    "PGD, 2.5 eps/steps": lambda eps, passes: PGD(eps, 2.5 * eps / passes, passes),
} | {name: functools.partial(auto, name) for name in get_args(ScheduleName)}
FIRST = (1.0, 1.5, 2.0, 3.0)
MOMENTUM = (0.0, 0.5, 0.75, 0.9)
GRID: dict[str, Made] = {
    f"{first:g}, {momentum:g}": functools.partial(auto, functools.partial(Falling, momentum=momentum, first=first))
    for first in FIRST
    for momentum in MOMENTUM
}


class Setting(NamedTuple):
    """What is attacked; ``level`` is eps x 255."""

    network: str
    passes: int
    level: int
    attack: str


class Reached(NamedTuple):
    """Mean measure (rank, shift, R@1) and mean loss of one attack by one search."""

    measure: float
    loss: float


def measure(
    searches: dict[str, Made], levels: tuple[int, ...], names: tuple[str, ...], n: int, what: str
) -> dict[Setting, dict[str, Reached]]:
    """Every search in every setting, on the first n images."""
    settings = [Setting(*each) for each in _product(NETWORKS, PASSES, levels, names)]
    networks = {name: network(name) for name in NETWORKS}
    reached = {}
    for setting in tqdm(settings, desc=what):
        model, gallery = networks[setting.network]
        attack = ATTACKS[setting.attack]
        reached[setting] = {}
        for name, make in searches.items():
            result = attacked(attack, model, gallery, make(setting.level / 255, setting.passes), n)
            value = next(iter(result.measured.values())).mean().item()
            reached[setting][name] = Reached(value, mean_loss(attack, model, gallery, result))
    return reached


def gaps(reached: dict[Setting, dict[str, Reached]], name: str, **chosen: str | int) -> list[float]:
    """Percent that a search is short of the best one, of what that one won over the worst, in the chosen settings."""
    short = []
    for setting, found in reached.items():
        if all(getattr(setting, field) == value for field, value in chosen.items()):
            losses = [each.loss for each in found.values()]
            short.append(100 * (found[name].loss - min(losses)) / (max(losses) - min(losses)))
    return short


def table() -> str:
    levels, n = (4, 8, 28, 77), 200
    reached = measure(SEARCHES, levels, tuple(ATTACKS), n, "schedules")
    few, few_levels, few_n = ("CA-", "QA+", "QA-", "hard margin", "soft margin"), (8, 28, 77), 80
    grid = measure(GRID, few_levels, few, few_n, "first step and momentum")
    lines = [
        "# Schedules of AutoPGD",
        "",
        f"Fashion-MNIST at quick scale, gallery 2,000, the first {n} images attacked, seed 0, mode fixed. C2F2 with",
        "half the channels, without a defense, and trained with ACT (400 steps, 8 inner steps of 12/255).",
        "The schedules are those of `AutoPGD`; PGD has a constant step and returns the last iterate.",
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.schedules --write`.",
        "",
        "## Summary",
        "",
        "The gap of a search is its mean loss less the smallest that any of the searches reached, in percent of what",
        "that one won over the worst of them; the mean over attacks and networks, and the largest of all.",
        "",
        *_summary(reached, levels),
        "",
        "## First step and momentum",
        "",
        f"The gap for `Falling` with a first step in units of the radius (rows) and a momentum (columns), over {few_n}",
        f"images, {', '.join(few)}, eps {', '.join(f'{level}/255' for level in few_levels)}, both networks:",
        "mean (largest).",
        *_grid(grid),
    ]
    for where, passes in _product(NETWORKS, PASSES):
        lines += ["", f"## {where}, {passes} passes", "", *_details(reached, where, passes, levels)]
    return "\n".join(lines) + "\n"


def _summary(reached: dict[Setting, dict[str, Reached]], levels: tuple[int, ...]) -> list[str]:
    columns = _product(PASSES, levels)
    head = [f"{passes} passes, {level}/255" for passes, level in columns]
    lines = [f"| gap (%) | {' | '.join(head)} | all | largest |", "| :--- |" + " ---: |" * (len(head) + 2)]
    for name in SEARCHES:
        means = [_mean(gaps(reached, name, passes=passes, level=level)) for passes, level in columns]
        everything = gaps(reached, name)
        cells = [f"{gap:.1f}" for gap in (*means, _mean(everything), max(everything))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _grid(grid: dict[Setting, dict[str, Reached]]) -> list[str]:
    lines = []
    for passes in PASSES:
        lines += ["", f"| {passes} passes | " + " | ".join(f"{m:g}" for m in MOMENTUM) + " |"]
        lines.append("| ---: |" + " ---: |" * len(MOMENTUM))
        for first in FIRST:
            each = [gaps(grid, f"{first:g}, {momentum:g}", passes=passes) for momentum in MOMENTUM]
            lines.append(f"| {first:g} | " + " | ".join(f"{_mean(gap):.1f} ({max(gap):.0f})" for gap in each) + " |")
    return lines


def _details(reached: dict[Setting, dict[str, Reached]], where: str, passes: int, levels: tuple[int, ...]) -> list[str]:
    lines = [
        "Mean percentile rank (CA, QA; %), mean shift (ES), R@1 that is left (margins; %).",
        "",
        "| eps x 255 | search | " + " | ".join(ATTACKS) + " |",
        "| ---: | :--- |" + " ---: |" * len(ATTACKS),
    ]
    for level, name in _product(levels, SEARCHES):
        measures = {what: reached[Setting(where, passes, level, what)][name].measure for what in ATTACKS}
        cells = [f"{value:.3f}" if what == "ES" else f"{value:.1f}" for what, value in measures.items()]
        lines.append(f"| {level} | {name} | {' | '.join(cells)} |")
    return lines


def _product(*choices: Iterable) -> list[tuple]:
    return list(itertools.product(*choices))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    write_or_print(table, __file__, "how low each schedule of AutoPGD gets")
