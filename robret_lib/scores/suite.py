"""The attacks that decide whether a first answer survives, in the order in which they are made."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from robret_lib.attacks import Attack, AutoPGD, Search, Transfer
from robret_lib.attacks.embedding import EmbeddingShift, Margin, TargetedMargin
from robret_lib.attacks.search.ball import Norm
from robret_lib.models import EmbeddingModel

Effort = Literal["quick", "standard", "high"]
"""How many passes are spent on a query that nothing breaks: about 8 for curves during training, 100, or 500."""


class Stage(NamedTuple):
    """One attack of the suite.

    Args:
        name: As results call it.
        attack: What is wanted.
        search: How it is searched for.
        passes: Forward passes that the search makes for an image.
    """

    name: str
    attack: Attack
    search: Search
    passes: int


class _Steps(NamedTuple):
    """Steps of a descent along each loss; 0 leaves it out."""

    first: int
    margin: int
    targeted: int
    published: int
    random_starts: int


STEPS: dict[Effort, _Steps] = {
    "quick": _Steps(first=8, margin=0, targeted=0, published=0, random_starts=0),
    "standard": _Steps(first=8, margin=16, targeted=8, published=4, random_starts=1),
    "high": _Steps(first=8, margin=64, targeted=32, published=16, random_starts=2),
}


def suite_of(effort: Effort, eps: float, norm: Norm, surrogate: EmbeddingModel | None) -> list[Stage]:
    """The suite: cheap and strong attacks first, since what they break costs no more.

    Args:
        effort: See `Effort`.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        surrogate: Another model of the same images; None leaves out what is transferred from it.
    """
    stages = list(_stages(STEPS[effort], eps, norm))
    if surrogate is not None:
        name, attack, search, passes = stages[0]
        stages.append(Stage(f"transferred {name}", attack, Transfer(surrogate, search), passes))
    return [stage for stage in stages if stage.passes]


def _stages(steps: _Steps, eps: float, norm: Norm) -> Iterator[Stage]:
    def descent(name: str, attack: Attack, count: int, start: int = 0) -> Stage:
        search = AutoPGD(eps, max(count, 1), norm, random_start=start > 0)
        wanted = f"{name}, {count} steps" + (f", random start {start}" if start else "")
        return Stage(wanted, attack, search, count and count + 1)

    yield descent("soft margin", Margin(), steps.first)
    yield descent("hard margin", Margin(temperature=0), steps.margin)
    yield descent("soft margin", Margin(), steps.margin)
    for place in (1, 2, 3):
        yield descent(f"targeted margin {place}", TargetedMargin(place), steps.targeted)
    for start in range(1, steps.random_starts + 1):
        yield descent("hard margin", Margin(temperature=0), steps.margin, start)
        yield descent("soft margin", Margin(), steps.margin, start)
    yield descent("embedding shift", EmbeddingShift(), steps.published)
