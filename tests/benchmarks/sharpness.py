"""How sharp attacks on hash codes should look: `python -m tests.benchmarks.sharpness [--write]`.

Takes some four minutes on one thread.
"""

from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from robret_lib import attacks, recipes
from robret_lib.attacks import relaxed
from robret_lib.attacks.codes import Away, CenterCode, Precision
from robret_lib.models import HashModel
from tests.benchmarks.measuring import machine, write_or_print

N, BITS, STEPS = 200, 32, 24
METHODS = ("CSQ", "DCH", "DPSH", "DPN")
LEVELS = (8, 28)  # eps x 255
SPANS = (0.3, 1, 2, 3, 5, 10)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


class Tried(NamedTuple):
    """An attack, and the value that `relaxed.SPAN` has meanwhile."""

    attack: Away
    span: float = relaxed.SPAN


class Choice(NamedTuple):
    """One table: what is tried, by the number that differs; and which of them the library has."""

    tried: dict[float, Tried]
    chosen: float


CHOICES = {
    "Center code, by the span": Choice({s: Tried(CenterCode("relative"), s) for s in SPANS}, relaxed.SPAN),
    "Soft precision, by the span": Choice({s: Tried(Precision("relative"), s) for s in SPANS}, relaxed.SPAN),
    "Soft precision, by the temperature": Choice(
        {t: Tried(Precision("relative", temperature=t)) for t in TEMPERATURES}, Precision.temperature
    ),
}


class World(NamedTuple):
    """A network, the items it has hashed, and the queries that are attacked."""

    model: HashModel
    gallery: attacks.Gallery
    images: Tensor
    labels: Tensor

    def left(self, tried: Tried, level: int) -> Tensor:
        """The average precision of each query after an attack, ``[N]``; all attacks look at the same items."""
        search, generator = attacks.AutoPGD(level / 255, STEPS), torch.Generator().manual_seed(0)
        asked = self.model, self.images, self.gallery, search
        with patch.object(relaxed, "SPAN", tried.span):
            found = attacks.run(tried.attack, *asked, labels=self.labels, generator=generator)
        return found.measured["average_precision"].double()


def world_of(method: str) -> World:
    searched = recipes.hash_data_of("fashion-mnist", "quick")
    recipe = recipes.for_codes("fashion-mnist", "quick", method=method.lower(), bits=BITS, seed=0)
    model = recipes.trained(recipe, searched, torch.device("cpu")).model
    gallery = attacks.Gallery.of(model, searched.gallery.images, searched.gallery.labels)
    return World(model, gallery, searched.query.images[:N], searched.query.labels[:N])


def head() -> list[str]:
    return [
        "# The sharpness of attacks on hash codes",
        "",
        f"MAP@all that is left (%), Fashion-MNIST at quick scale, gallery 10,000, {BITS} bits, the first {N} queries",
        f"attacked by `AutoPGD` with {STEPS} steps, sharpness *relative*. The span is the root mean square of alpha",
        "times the outputs (`relaxed.SPAN`), the temperature that of the soft ranks (`codes.Precision`). One column",
        "has MAP, with the value that the library has. The others tell how much more is left with theirs, paired over",
        "queries, with the standard error; in bold where it is less by more than two of them. The last row has means.",
    ]


def table() -> str:
    worlds = {method: world_of(method) for method in METHODS}
    lines = [*head(), "", f"{machine()}. Made by `python -m tests.benchmarks.sharpness --write`."]
    with tqdm(total=len(METHODS) * len(LEVELS) * sum(len(choice.tried) for choice in CHOICES.values())) as bar:
        for title, choice in CHOICES.items():
            lines += ["", f"## {title}", "", *_rows(worlds, choice, bar)]
    return "\n".join(lines) + "\n"


def columns(choice: Choice) -> list[str]:
    """The head of a table, without its first two cells."""
    return [f"MAP, {value:g}" if value == choice.chosen else f"{value:g}" for value in choice.tried]


def _rows(worlds: dict[str, World], choice: Choice, bar: tqdm) -> Iterator[str]:
    yield f"| network | eps | {' | '.join(columns(choice))} |"
    yield "| :--- | ---: |" + " ---: |" * len(choice.tried)
    forms = [".1f" if value == choice.chosen else "+z.1f" for value in choice.tried]
    means = []
    for method, world in worlds.items():
        for level in LEVELS:
            shown = _shown(world, choice, level, bar)
            means.append([each.mean().item() for each in shown])
            cells = map(_told, shown, forms)
            yield f"| {method} | {level}/255 | {' | '.join(cells)} |"
    cells = [f"{fmean(each):{form}}" for each, form in zip(zip(*means, strict=True), forms, strict=True)]
    yield f"| mean | | {' | '.join(cells)} |"


def _shown(world: World, choice: Choice, level: int, bar: tqdm) -> list[Tensor]:
    """For each column what is left, or, of what is not chosen, by how much more."""
    left = {}
    for value, tried in choice.tried.items():
        left[value] = world.left(tried, level)
        bar.update()
    return [each if value == choice.chosen else each - left[choice.chosen] for value, each in left.items()]


def _told(values: Tensor, form: str) -> str:
    """Mean and standard error, in bold where decidedly below 0."""
    mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
    told = f"{mean:{form}} ± {error:.1f}"
    return f"**{told}**" if mean < -2 * error else told


if __name__ == "__main__":
    write_or_print(table, __file__, "how sharp attacks on hash codes should look")
