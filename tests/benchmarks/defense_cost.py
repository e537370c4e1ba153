"""What a training step of a defense costs beside the network: `python -m tests.benchmarks.defense_cost [--write]`.

A training step is the loss of a batch, its gradients and one update by Adam. Its unit is one bare forward and backward
pass with weight gradients, on as many images as the defense perturbs. A step of the inner attack alone has a unit of
its own: one bare forward and backward pass to the input, weights frozen, on the same images. Such a bare step is also
made before each pass of the network in all that is timed, and everything is first counted in those, so that no ratio
depends on what else the machine did meanwhile. Times are CPU seconds of this process on one thread: on an idle machine
that is the wall time, on a busy one it leaves out the waiting. Freed memory is kept.

"As published" is the same objective with the inner loop of the published code (RobRank, CA-TRIDE): optimizers made
anew in every step, weight gradients that nobody looks at, and before it the loss of the clean batch for the log, with a
forward pass of its own where clean embeddings are not needed anyway. What CA-TRIDE embeds again in every step without
need is not counted, nor are the published samplers, which are loops. Both ways make all steps of the inner attack,
though that of HM and of CA-TRIDE may end earlier in the published code.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from tqdm import trange

from robret_lib import defenses, mining, models, objectives
from robret_lib.attacks import PGD
from robret_lib.attacks.search import Loss
from robret_lib.attacks.search.ball import Ball
from tests.benchmarks.attack_cost import bare_steps
from tests.benchmarks.measuring import cpu_seconds, keep_freed_memory, machine, write_or_print

STEPS, EPS, STEP, KEPT_STEPS = 8, 77 / 255, 12 / 255, 7
"""Of the inner attack; the last is how many steps that of the kept neighborhood has."""

PASSES = 3
"""How often the unit of a training step is measured each time."""

DEAREST, STEPS_OF_THE_DEAREST = "HM with ICS", 600
"""With whose cost at quick scale all defenses are judged."""

LIMITS = {"ACT": STEPS + 2.2}
INNER_LIMIT = 1.03


@dataclass(frozen=True)
class Published(PGD):
    """The same search as the published code makes it."""

    def within(self, ball: Ball, model: nn.Module, loss_fn: Loss, generator: torch.Generator | None = None) -> Tensor:
        moved = ball.images.clone()
        with models.evaluation_mode(model):
            for _ in range(self.steps):
                moved.requires_grad_(True)
                of_weights, of_images = SGD(model.parameters(), lr=0.0), SGD([moved], lr=1.0)
                of_weights.zero_grad()
                of_images.zero_grad()
                loss_fn(model(moved)).mean().backward()
                moved.grad.copy_(self.step * moved.grad.sign())
                of_images.step()
                moved = torch.min(moved.detach(), ball.images + ball.eps)
                moved = torch.max(moved, ball.images - ball.eps).clamp(0, 1)
            of_weights.zero_grad()
        return moved


class Clocked(nn.Module):
    """A network that makes a bare step before each of its passes, and notes when.

    Args:
        network: Of both.
        images: Of the bare steps.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network, self.distance, self.images, self.log = network, network.distance, images, []

    def forward(self, images: Tensor) -> Tensor:
        before = time.process_time()
        with torch.enable_grad():
            bare_steps(self.network, self.images, 1)
        self.log.append((before, time.process_time(), images.requires_grad))
        return self.network(images)

    def costs(self, work: Callable[[nn.Module], None]) -> tuple[float, float]:
        """Of what is done with this network, and of a step of the attack in it, in bare steps.

        The passes of an attack are those whose images have a gradient; a step of it lasts from one to the next.
        """
        begun = time.process_time()
        work(self)
        ended = time.process_time()
        before, after, attacks = torch.tensor(self.log, dtype=torch.float64).T
        bare, steps = after - before, (attacks[:-1] * attacks[1:]).bool()
        inner = (before[1:] - after[:-1])[steps].sum() / bare[1:][steps].sum()
        return ((ended - begun - bare.sum()) / bare.mean()).item(), inner.item()


class Kind(NamedTuple):
    """A kind of training step.

    Args:
        objective: Of a search and the network.
        perturbed: How many images of each triplet the search moves.
        published: Whether there is a published way to compare with.
        logs_apart: Whether that one has a forward pass of the clean batch more than ours, for its log.
    """

    objective: Callable[[PGD, nn.Module], nn.Module]
    perturbed: int
    published: bool = True
    logs_apart: bool = False


def of_triplets(objective: type[nn.Module], **settings: object) -> Callable[[PGD, nn.Module], nn.Module]:
    return lambda search, _: objective(search, **settings)


def ca_tride(search: PGD, _: nn.Module, at: int) -> nn.Module:
    """At a step after the end of its training, where the steps of the attack have their full length."""
    objective = defenses.CollapseAwareTriplets(search, steps=1)
    objective.progress.done.fill_(at)
    return objective


def fare(search: PGD, model: nn.Module) -> nn.Module:
    return defenses.FixedTargets(search, model)


def kept_neighborhood(search: PGD, _: nn.Module) -> nn.Module:
    """As it is judged: with fewer and longer steps, and a radius for each image."""
    search = defenses.DrawnRadius(replace(search, step=EPS / 4, steps=KEPT_STEPS))
    return defenses.KeptNeighborhood(search, steps=1, ramp=0)


DEFENSES: dict[str, tuple[Kind, ...]] = {
    "EST": (Kind(of_triplets(defenses.EmbeddingShiftedTriplets), 2, logs_apart=True),),
    "SES": (Kind(of_triplets(defenses.ShiftSuppressedTriplets), 2),),
    "REST": (Kind(of_triplets(defenses.ShiftedCandidateTriplets), 2, logs_apart=True),),
    "ACT": (Kind(of_triplets(defenses.AntiCollapseTriplets), 2, logs_apart=True),),
    "min-max": (Kind(of_triplets(defenses.MinMaxTriplets), 3, logs_apart=True),),
    "RAMD": (Kind(of_triplets(defenses.CandidateMinMaxTriplets), 2),),
    "Panum's": (Kind(of_triplets(defenses.PanumTriplets), 1, published=False),),
    "HM": (Kind(of_triplets(defenses.HardnessManipulation), 3),),
    "HM with ICS": (Kind(of_triplets(defenses.HardnessManipulation, invariance=0.5), 3),),
    "CA-TRIDE": (Kind(partial(ca_tride, at=2), 2), Kind(partial(ca_tride, at=3), 1)),
    "FARE": (Kind(fare, 2, published=False),),
    "kept neighborhood": (Kind(kept_neighborhood, 2, published=False),),
}
"""By name; the cost of several kinds of step is their mean."""


class Setting(NamedTuple):
    """A network, the shape of its images, pairs in a batch; which defenses are timed, and how often."""

    backbone: str
    pixels: tuple[int, int, int]
    pairs: int
    repeats: int
    timed: tuple[str, ...] = tuple(DEFENSES)


COMPARED = ("ACT", "HM with ICS", "CA-TRIDE", "kept neighborhood")

SETTINGS = (
    Setting("c2f2_half", (1, 28, 28), 64, repeats=9),
    Setting("c2f2", (1, 28, 28), 128, repeats=3, timed=COMPARED),
    Setting("efficientnet_lite0", (3, 64, 64), 32, repeats=5, timed=COMPARED),
)


class World(NamedTuple):
    """A network with its optimizer, and one batch."""

    model: models.EmbeddingModel
    optimizer: Optimizer
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, setting: Setting) -> "World":
        generator = torch.Generator().manual_seed(0)
        model = models.on_device(models.build(setting.backbone, embedding_dim=128), "cpu").train()
        images = torch.rand(2 * setting.pairs, *setting.pixels, generator=generator)
        labels = torch.randint(10, (setting.pairs,), generator=generator).repeat_interleave(2)
        return cls(model, Adam(model.parameters(), lr=0.0), images, labels)

    def costs(self, kind: Kind) -> dict[str, float]:
        """Of one kind of step, in its units: ``step`` and ``inner``, ours and ``published``."""
        perturbed = torch.cat([self.images, self.images])[: kind.perturbed * len(self.images) // 2]
        unit, _ = Clocked(self.model, perturbed).costs(partial(bare_passes, images=perturbed))
        found = {}
        for way, search in {"": PGD, " published": Published}.items() if kind.published else [("", PGD)]:
            step, inner = Clocked(self.model, perturbed).costs(self.training_step(kind, search))
            found |= {"step" + way: step / unit * PASSES, "inner" + way: inner}
        return found | {"seconds": cpu_seconds(partial(self.training_step(kind, PGD), self.model))}

    def training_step(self, kind: Kind, search: type[PGD]) -> Callable[[nn.Module], None]:
        objective = kind.objective(search(EPS, STEP, STEPS, random_start=not kind.published), self.model)
        rest = self.labels, torch.Generator().manual_seed(0)
        embedded = models.embed(self.model, self.images)

        @torch.no_grad()
        def log(model: nn.Module) -> None:
            shown = (model, self.images) if kind.logs_apart else (nn.Identity(), embedded)
            objectives.TripletObjective(mining.random)(*shown, *rest)

        def step(model: nn.Module) -> None:
            if search is Published:
                log(model)
            loss = objective(model, self.images, *rest)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return step


def bare_passes(model: nn.Module, images: Tensor) -> None:
    """Forward and backward, weight gradients included."""
    for _ in range(PASSES):
        torch.autograd.grad(model(images).sum(), list(model.parameters()))


def costs_of_defenses(setting: Setting) -> list[str]:
    """One line of the table for each defense."""
    world, found = World.of(setting), defaultdict(list)
    for _ in trange(setting.repeats, desc=setting.backbone):
        for name in setting.timed:
            costs = [world.costs(kind) for kind in DEFENSES[name]]
            found[name].append({what: statistics.mean(cost[what] for cost in costs) for what in costs[0]})
    seconds = {name: statistics.median(cost["seconds"] for cost in costs) for name, costs in found.items()}
    as_many = {name: STEPS_OF_THE_DEAREST * seconds[DEAREST] / own for name, own in seconds.items()}
    return [f"{line(setting, name, costs)} {as_many[name]:.0f} |" for name, costs in found.items()]


def line(setting: Setting, name: str, found: list[dict[str, float]]) -> str:
    cells = {what: quartiles([costs[what] for costs in found]) for what in found[0]}
    ratio = ""
    if "step published" in cells:
        ratio = quartiles([costs["step published"] / costs["step"] for costs in found])
    perturbed = " and ".join(str(kind.perturbed * setting.pairs) for kind in DEFENSES[name])
    step, inner = (f"{cells[what]} | {cells.get(f'{what} published', '')}" for what in ("step", "inner"))
    limits = [beside(LIMITS.get(name), [costs["step"] for costs in found])]
    limits.append(beside(INNER_LIMIT, [costs["inner"] for costs in found]))
    return f"| {setting.backbone} | {name} | {perturbed} | {limits[0]} | {step} | {ratio} | {limits[1]} | {inner} |"


def beside(limit: float | None, found: list[float]) -> str:
    """The limit, and whether what was found is above it."""
    if limit is None:
        return ""
    return f"{limit}, exceeded" if round(statistics.median(found), 2) > limit else str(limit)


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def head() -> list[str]:
    """The table's first lines, which no machine changes."""
    return [
        "# The cost of a defense",
        "",
        f"A training step with {STEPS} steps of the inner attack, or {KEPT_STEPS} in the kept neighborhood, in units",
        "of one bare forward and backward pass with weight gradients on as many images as are perturbed; and a step",
        "of the inner attack alone, in units of one bare forward and backward pass to the input on the same images.",
        "Medians of interleaved repeats in one process on one thread, in brackets the quartiles. Times are seconds of",
        "the CPU, with an allocator that keeps freed memory.",
        *(f"{setting.backbone}: {setting.pairs} pairs, {setting.repeats} repeats." for setting in SETTINGS),
        "As published: with the inner loop of the published code, which makes weight gradients that nobody looks at;",
        "the published samplers are not in it. For CA-TRIDE, the mean of its two kinds of step.",
        f"Steps: so many of our training steps take the CPU seconds of {STEPS_OF_THE_DEAREST} of {DEAREST}.",
        "The network lies with channels last, as `recipes` has it on a CPU.",
        "",
        "What an inner step takes above its unit are some hundred small operations, the same number for any network.",
        "On a few dozen gray images of 28 x 28 they show where the loss has many of them, on photographs they do not.",
    ]


def table() -> str:
    lines = [
        *head(),
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.defense_cost --write`.",
        "",
        "| network | defense | images | limit | training step | as published | published / ours "
        "| limit | inner step | as published | steps |",
        "| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row for setting in SETTINGS for row in costs_of_defenses(setting)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    keep_freed_memory()
    write_or_print(table, __file__, "what a training step of a defense costs")
