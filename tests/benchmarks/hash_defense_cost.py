"""What a training step of a defended hash network costs: `python -m tests.benchmarks.hash_defense_cost [--write]`.

Training step, inner step, their units and the clock are those of `defense_cost`. Shares of a training step are measured
inside of it, without the bare steps that are made between its passes.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim import Adam
from tqdm import trange

from robret_lib import defenses, models
from robret_lib.attacks import PGD
from robret_lib.hashing import DPH, HashObjective, KnownCodes
from tests.benchmarks.defense_cost import INNER_LIMIT, PASSES, Clocked, bare_passes, beside, quartiles
from tests.benchmarks.measuring import keep_freed_memory, machine, write_or_print

BATCH, BITS, KNOWN = 32, 32, 10_000
INNER = PGD(8 / 255, 2 / 255, 7, random_start=True)
GUIDE_LIMIT = 2
"""Percent of a training step, of center codes."""

DEFENSES: dict[str, Callable[[PGD, HashObjective], defenses.AttackedCodes]] = {
    "ATRDH": defenses.PrototypeTargeted,
    "CgAT": defenses.CenterGuided,
    "SAAT": defenses.MainstayGuided,
    "pairs": defenses.PairGuided,
    "prototypes": defenses.PrototypeGuided,
}
BY_CENTERS = "CgAT", "SAAT"

Result = TypeVar("Result")


class Setting(NamedTuple):
    """A network, the shape of its images, how many classes there are, how many an image has on average, and repeats."""

    backbone: str
    pixels: tuple[int, int, int]
    classes: int
    labels: float
    repeats: int

    def drawn(self, images: int, generator: torch.Generator) -> Tensor:
        """Labels, multi-hot ``[images, C]``."""
        if self.labels == 1:
            return one_hot(torch.randint(self.classes, (images,), generator=generator), self.classes).to(torch.uint8)
        return (torch.rand(images, self.classes, generator=generator) < self.labels / self.classes).to(torch.uint8)


SETTINGS = (
    Setting("c2f2_half", (1, 28, 28), classes=10, labels=1, repeats=25),
    Setting("c2f2", (1, 28, 28), classes=10, labels=1, repeats=15),
    Setting("efficientnet_lite0", (3, 84, 84), classes=18, labels=2.5, repeats=5),
)


class Stopwatch:
    """Seconds that some calls take, all together; what they call in turn counts once."""

    def __init__(self) -> None:
        self.seconds, self.running = 0.0, False

    def over(self, call: Callable[..., Result]) -> Callable[..., Result]:
        def timed(*given: object) -> Result:
            if self.running:
                return call(*given)
            self.running, begun = True, time.process_time()
            found = call(*given)
            self.running, self.seconds = False, self.seconds + time.process_time() - begun
            return found

        return timed


class World(NamedTuple):
    """A network, one batch, and the labels of a training set that begins with it."""

    model: models.EmbeddingModel
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, setting: Setting, known: int = KNOWN) -> "World":
        generator = torch.Generator().manual_seed(0)
        model = models.on_device(models.build(setting.backbone, BITS, distance="H"), "cpu").train()
        images = torch.rand(BATCH, *setting.pixels, generator=generator)
        return cls(model, images, setting.drawn(known, generator))

    def objective(self, name: str) -> defenses.AttackedCodes:
        known, generator = KnownCodes(self.labels, BITS), torch.Generator().manual_seed(1)
        known.fill(torch.randn(known.codes.shape, generator=generator).sign())
        objective = DEFENSES[name](INNER, HashObjective(DPH(), known))
        objective.clean.hold(torch.arange(BATCH), 0)
        return objective

    def costs(self, name: str) -> dict[str, float]:
        """Of a training ``step`` and an ``inner`` one, in their units; shares of a training step, in percent."""
        objective, guides, known = self.objective(name), Stopwatch(), Stopwatch()
        training_step = self.training_step(objective)
        for method in ("label_information", "inner_loss", "price"):
            setattr(objective, method, guides.over(getattr(objective, method)))
        objective.clean.known.with_batch = known.over(objective.clean.known.with_batch)
        unit, _ = Clocked(self.model, self.images).costs(partial(bare_passes, images=self.images))
        clocked = Clocked(self.model, self.images)
        step, inner = clocked.costs(training_step)
        bare = statistics.mean(after - before for before, after, _ in clocked.log)
        shares = {what: 100 * clock.seconds / (step * bare) for what, clock in (("guides", guides), ("known", known))}
        return {"step": step / unit * PASSES, "inner": inner} | shares

    def training_step(self, objective: nn.Module) -> Callable[[nn.Module], None]:
        optimizer = Adam([*self.model.parameters(), *objective.parameters()], lr=0.0)
        batch = self.images, self.labels[:BATCH], torch.Generator().manual_seed(0)

        def step(model: nn.Module) -> None:
            loss = objective(model, *batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        step(self.model)  # what an optimizer makes in its first step it has from then on
        return step


def costs_of_defenses(setting: Setting) -> list[str]:
    """One line of the table for each defense."""
    world, found = World.of(setting), defaultdict(list)
    for _ in trange(setting.repeats, desc=setting.backbone):
        for name in DEFENSES:
            found[name].append(world.costs(name))
    return [line(setting, name, costs) for name, costs in found.items()]


def line(setting: Setting, name: str, found: list[dict[str, float]]) -> str:
    values = {what: [costs[what] for costs in found] for what in found[0]}
    step, inner, guides, known = (quartiles(values[what]) for what in ("step", "inner", "guides", "known"))
    limit = beside(GUIDE_LIMIT if name in BY_CENTERS else None, values["guides"])
    cells = setting.backbone, name, step, beside(INNER_LIMIT, values["inner"]), inner, limit, guides, known
    return f"| {' | '.join(cells)} |"


def head() -> list[str]:
    """The table's first lines, which no machine changes."""
    return [
        "# The cost of a defense of hash codes",
        "",
        f"A training step with {INNER.steps} steps of the inner attack, in units of one bare forward and backward pass",
        "with weight gradients on as many images as are perturbed; and a step of the inner attack alone, in units of",
        "one bare forward and backward pass to the input on the same images. Of a training step, in percent: what",
        "prices of codes are told by, which are the center codes of CgAT and SAAT, before the attack and after it; and",
        "how the codes of a batch are noted among the known ones.",
        f"{BATCH} images, {BITS} bits, {KNOWN:,} known codes, the clean loss of DPH. Medians of interleaved repeats in",
        "one process on one thread, in brackets the quartiles. Times are seconds of the CPU, with an allocator that",
        "keeps freed memory. The network lies with channels last, as `recipes` has it on a CPU.",
        *(
            f"{setting.backbone}: {' x '.join(map(str, setting.pixels))}, {setting.classes} classes, "
            f"{setting.labels:g} an image, {setting.repeats} repeats."
            for setting in SETTINGS
        ),
        "",
        "What an inner step takes above its unit are some dozens of small operations, the same number for any network.",
        "On 32 gray images they show, on photographs they do not. ATRDH and prototypes train a second network.",
    ]


def table() -> str:
    lines = [
        *head(),
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.hash_defense_cost --write`.",
        "",
        "| network | defense | training step | limit | inner step | limit | told by, % | noted, % |",
        "| :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row for setting in SETTINGS for row in costs_of_defenses(setting)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    keep_freed_memory()
    write_or_print(table, __file__, "what a training step of a defense of hash codes costs")
