"""The attacks that decide whether a first answer survives, in the order in which they are made."""

from typing import Literal, NamedTuple

from robret_lib.attacks import NES, Attack, AutoPGD, Gallery, Search, Transfer
from robret_lib.attacks.embedding import (
    EmbeddingShift,
    GreedyTop1Misrank,
    GreedyTop1Translocation,
    LearningToMisrank,
    Margin,
    TargetedMargin,
)
from robret_lib.attacks.neighbors import FurthestNegative
from robret_lib.attacks.search.ball import Norm
from robret_lib.models import EmbeddingModel

Effort = Literal["quick", "standard", "high"]
"""What is spent on a query that nothing breaks: about 8 passes, for curves during training; 100; or 500.

Not counted is the search for masked gradients, which looks at a few queries alone (`LOOKS`, `SAMPLE`).
"""

LOSSES: dict[str, Attack] = {
    "soft margin": Margin(),
    "hard margin": Margin(temperature=0),
    "other class 1": TargetedMargin(1),
    "other class 2": TargetedMargin(2),
    "other class 3": TargetedMargin(3),
    "GTM": GreedyTop1Misrank(),
    "LTM": LearningToMisrank(),
    "FNA": FurthestNegative(),
    "GTT": GreedyTop1Translocation(),
    "embedding shift": EmbeddingShift(),
}

IMAGE, START_1, START_2 = "", ", random start 1", ", random start 2"
"""Where a descent begins."""

DESCENTS: dict[Effort, tuple[tuple[str, str, int], ...]] = {
    "quick": (("soft margin", IMAGE, 8),),
    "standard": (
        ("soft margin", IMAGE, 8),
        ("hard margin", IMAGE, 16),
        *((f"other class {place}", IMAGE, 8) for place in (1, 2, 3)),
        ("hard margin", START_1, 16),
        ("soft margin", START_1, 8),
        *((name, IMAGE, 2) for name in ("GTM", "LTM", "FNA", "GTT", "embedding shift")),
    ),
    "high": (
        ("soft margin", IMAGE, 8),
        ("hard margin", IMAGE, 50),
        *((f"other class {place}", IMAGE, 32) for place in (1, 2, 3)),
        ("soft margin", IMAGE, 50),
        *((name, start, 50) for start in (START_1, START_2) for name in ("hard margin", "soft margin")),
        *((name, IMAGE, 8) for name in ("GTM", "LTM", "FNA", "GTT", "embedding shift")),
    ),
}
"""Loss, start and steps of each descent.

Of Fashion-MNIST's queries that the first eight steps leave, hard minima break the most at 8/255, along the image or a
random start, then the nearest other classes. At 77/255 it is the other directions that count, the third class and the
published losses: there a query that stands is stuck, not far from a border.
"""

LOOKS: dict[Effort, int] = {"quick": 0, "standard": 200, "high": 400}
"""Of the search by values, at each image of its sample."""

POPULATION = 20
"""How many of them between two of its steps."""

SAMPLE = 32
"""How many queries of each block of 1,000 it attacks: the first that all gradients left standing."""


class Stage(NamedTuple):
    """One attack of the suite.

    Args:
        name: As results call it.
        attack: What is wanted.
        search: How it is searched for.
        passes: Forward passes that the search makes for an image, at most.
        sample: How many queries of each block it is made for, the first that still stand; None is all.
        tells: It asks for no gradient of the attacked model, and if it breaks what stood against all that do, these
            are masked.
    """

    name: str
    attack: Attack
    search: Search
    passes: int
    sample: int | None = None
    tells: bool = False


def suite_of(
    effort: Effort,
    eps: float,
    norm: Norm = "linf",
    surrogate: EmbeddingModel | None = None,
    gallery: Gallery | None = None,
) -> list[Stage]:
    """The suite: cheap and strong attacks first, since what they break costs no more.

    The margin with soft and with hard minima, from the image and from random starts, and that of each of the three
    nearest other classes; the published losses; all by `AutoPGD`. Then, at "standard" and "high" for
    "linf", the hard margin by its values alone (`NES`) for a sample of what is left, where it finds something new only
    if gradients are masked; and what a surrogate has to offer.

    Args:
        effort: See `Effort`.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        surrogate: Another model of the same images; None leaves out what is transferred from it.
        gallery: As the surrogate embeds it, see `attacks.Transfer`.
    """
    stages = [_descent(name, start, steps, eps, norm) for name, start, steps in DESCENTS[effort]]
    if LOOKS[effort] and norm == "linf":
        looks = LOOKS[effort]
        search = NES(eps, looks, POPULATION, stop_below=0.0, step=eps / 3)
        stages.append(
            Stage(f"hard margin by values, {looks} looks", LOSSES["hard margin"], search, looks, SAMPLE, tells=True)
        )
    if surrogate is not None:
        name, attack, search, passes, *_ = stages[0]
        transferred = Transfer(surrogate, search, gallery)
        stages.append(Stage(f"{name}, transferred", attack, transferred, passes, tells=effort != "quick"))
    return stages


def _descent(name: str, start: str, steps: int, eps: float, norm: Norm) -> Stage:
    search = AutoPGD(eps, steps, norm, random_start=start != IMAGE)
    return Stage(f"{name}, {steps} steps{start}", LOSSES[name], search, steps + 1)
