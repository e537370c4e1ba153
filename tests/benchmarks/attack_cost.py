"""What a step of an attack costs beside the network itself: `python -m tests.benchmarks.attack_cost [--write]`.

The unit is one bare forward plus backward to the input of C2F2, weights frozen, on the same batch. A step's cost is
the difference of a long and a short attack over their difference in steps, so that drawing targets, sorting benign
distances and measuring the result cancel; the last column has them in. Times are CPU seconds of this process on one
thread: on an idle machine that is the wall time, on a busy one it leaves out the waiting. Freed memory is kept.
"""

import statistics
from collections import defaultdict
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import trange

from robret_lib import attacks, models
from robret_lib.attacks import PGD, AutoPGD, Gallery, Search
from robret_lib.attacks.search.auto_pgd import ScheduleName
from tests.benchmarks.measuring import cpu_seconds, keep_freed_memory, machine, write_or_print
from tests.benchmarks.networks import ATTACKS, GREEDY, SPQA

REPEATS = 15
SHORT, LONG, WHOLE = 1, 9, 32  # steps of the two timed attacks, and of the attack the last column speaks of
EPS, STEP = 77 / 255, 3 / 255
SINGLE = ATTACKS | GREEDY | SPQA
SUITE = ("CA+", "CA-", "QA+", "QA-", "TMA", "ES", "LTM", "GTM", "GTT")
TOGETHER = "the nine calls of the suite"
TIMED = {name: (attack,) for name, attack in SINGLE.items()} | {TOGETHER: tuple(SINGLE[name] for name in SUITE)}


class Setting(NamedTuple):
    """Queries against a gallery; per attack the cost of the published code's step, where known, and our limit."""

    queries: int
    gallery: int
    published: dict[str, float]
    limit: dict[str, float]
    timed: tuple[str, ...] = tuple(TIMED)


SETTINGS = (
    Setting(
        64,
        2_000,
        {"CA+": 3.1, "CA-": 3.3, "QA+": 3.7, "QA-": 3.8}
        | {"TMA": 1.6, "ES": 1.6, "LTM": 1.9, "GTM": 1.6, "GTT": 3.7, TOGETHER: 24},
        dict.fromkeys(("CA+", "CA-", "QA+", "QA-"), 1.15) | {TOGETHER: 10.3},
    ),
    Setting(
        32,
        10_000,
        {"CA+": 14, "CA-": 15, "QA+": 23, "QA-": 21}
        | {"TMA": 1.6, "ES": 1.7, "LTM": 3.1, "GTM": 1.7, "GTT": 21, TOGETHER: 102},
        dict.fromkeys(("CA+", "CA-"), 1.1)
        | dict.fromkeys(("QA+", "QA-"), 1.6)
        | dict.fromkeys(SPQA, 1.75)
        | {"hard margin": 1.4, "soft margin": 1.6, TOGETHER: 12.3},
    ),
    Setting(32, 60_000, {}, {"QA+": 2, "QA-": 2}, ("CA+", "QA+", "QA-", "LTM", "GTT")),
)
BOOKKEEPING = 5
"""Limit of what AutoPGD may spend above PGD, in percent."""


class World(NamedTuple):
    """A network, a gallery whose first items are the queries, and those."""

    model: models.EmbeddingModel
    images: Tensor
    gallery: Gallery

    def attacked(self, wanted: tuple[attacks.Attack, ...], search: Search) -> float:
        own, generator = torch.arange(len(self.images)), torch.Generator().manual_seed(0)
        arguments = self.model, self.images, self.gallery, search, own

        def one_after_the_other() -> None:
            for attack in wanted:
                attacks.run(attack, *arguments, generator=generator)

        return cpu_seconds(one_after_the_other)

    def bare_step(self) -> float:
        return cpu_seconds(lambda: bare_steps(self.model, self.images, LONG)) / LONG

    def step(self, wanted: tuple[attacks.Attack, ...], search: type[PGD] | str) -> tuple[float, float]:
        """CPU seconds of one step of each attack, and of whole attacks divided by their steps."""
        short, long = (self.attacked(wanted, made(search, steps)) for steps in (SHORT, LONG))
        step = (long - short) / (LONG - SHORT)
        return step, (short + (WHOLE - SHORT) * step) / WHOLE


def made(search: type[PGD] | str, steps: int) -> Search:
    return PGD(EPS, STEP, steps) if search is PGD else AutoPGD(EPS, steps, schedule=search)


def bare_steps(model: models.EmbeddingModel, images: Tensor, steps: int) -> None:
    with models.frozen(model):
        for _ in range(steps):
            pixels = images.detach().requires_grad_(True)
            torch.autograd.grad(model(pixels).sum(), pixels)


def world(queries: int, size: int) -> World:
    generator = torch.Generator().manual_seed(0)
    model = models.build("c2f2", embedding_dim=512)
    images = torch.rand(queries, 1, 28, 28, generator=generator)
    others = normalize(torch.randn(size - queries, 512, generator=generator), dim=1)
    labels = torch.randint(10, (size,), generator=generator)
    searched = Gallery(torch.cat([models.embed(model, images), others]), labels=labels)
    bare_steps(model, images, LONG)
    return World(model, images, searched)


def cost_of_attacks(setting: Setting) -> list[str]:
    """One line of the table for each attack."""
    where, costs = world(setting.queries, setting.gallery), defaultdict(list)
    for _ in trange(REPEATS, desc=f"{setting.queries} queries, gallery of {setting.gallery:,}"):
        bare = where.bare_step()
        for name in setting.timed:
            costs[name].append([seconds / bare for seconds in where.step(TIMED[name], PGD)])
    lines = []
    for name, measured in costs.items():
        steps, wholes = zip(*measured, strict=True)
        low, middle, high = statistics.quantiles(steps, n=4)
        published, limit = (f"{known[name]:g}" if name in known else "" for known in (setting.published, setting.limit))
        lines.append(
            f"| {setting.queries} | {setting.gallery:,} | {name} | {published} | {limit} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {statistics.median(wholes):.2f} |"
        )
    return lines


def cost_of_searches() -> list[str]:
    """One line for each schedule of AutoPGD: percent above PGD, for the attack with the cheapest loss."""
    where, above = world(64, 2_000), defaultdict(list)
    for _ in trange(REPEATS, desc="bookkeeping of AutoPGD"):
        plain, _ = where.step(TIMED["CA+"], PGD)
        for schedule in get_args(ScheduleName):
            above[schedule].append(100 * (where.step(TIMED["CA+"], schedule)[0] / plain - 1))
    lines = []
    for schedule, percents in above.items():
        low, middle, high = statistics.quantiles(percents, n=4)
        lines.append(f"| {schedule} | {BOOKKEEPING} | {middle:.1f} ({low:.1f} to {high:.1f}) |")
    return lines


def table() -> str:
    lines = [
        "# The cost of a step",
        "",
        f"In units of one bare forward plus backward to the input of C2F2 with frozen weights. Medians of {REPEATS}",
        "interleaved repeats in one process on one thread, in brackets the quartiles; the last column counts a whole",
        f"attack of {WHOLE} steps, its preparation and measurement included, divided by its steps. The nine calls are",
        f"measured as one run: {', '.join(SUITE)}.",
        "Times are CPU seconds, with an allocator that keeps freed memory.",
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.attack_cost --write`.",
        "",
        "| queries | gallery | attack | published code | limit | a step of PGD | whole attack, per step |",
        "| ---: | ---: | :--- | ---: | ---: | ---: | ---: |",
        *(line for setting in SETTINGS for line in cost_of_attacks(setting)),
        "",
        "What a step of AutoPGD costs above one of PGD, in percent (CA+, 64 queries, gallery of 2,000). The last look",
        "at the end, one forward pass, is not a step.",
        "",
        "| schedule | limit | above PGD |",
        "| :--- | ---: | ---: |",
        *cost_of_searches(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    keep_freed_memory()
    write_or_print(table, __file__, "what a step of an attack costs")
