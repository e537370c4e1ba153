"""The attacks that decide what MAP is left of a search by hash codes."""

import torch
from torch import Tensor

from robret_lib.attacks import NES, AutoPGD, Gallery, Transfer
from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision
from robret_lib.attacks.relaxed import OnCodes
from robret_lib.attacks.relevant_codes import RelevantCodes
from robret_lib.attacks.search.ball import Norm
from robret_lib.models import HashModel
from robret_lib.scores.suite import IMAGE, LOOKS, POPULATION, SAMPLE, START_1, START_2, Effort, Stage

MAINSTAY, START_0 = "mainstay code", ", random start 0"

DESCENTS: dict[Effort, tuple[tuple[str, str, int], ...]] = {
    "quick": (("precision", IMAGE, 8),),
    "standard": (
        ("precision", IMAGE, 24),
        ("center code", IMAGE, 16),
        (MAINSTAY, IMAGE, 8),
        ("relevant codes", IMAGE, 16),
        ("own code", IMAGE, 8),
        ("HAG", IMAGE, 8),
        ("precision", START_1, 24),
    ),
    "high": (
        ("precision", IMAGE, 100),
        ("center code", IMAGE, 50),
        (MAINSTAY, IMAGE, 50),
        ("relevant codes", IMAGE, 50),
        ("own code", IMAGE, 50),
        ("HAG", IMAGE, 20),
        *((name, start, 50) for start in (START_1, START_2) for name in ("precision", "center code")),
    ),
}
"""Loss, start and steps of each descent: about 8, 100 and 500 passes, as of `suite.suite_of`.

The mainstay code is another one than the center code only where items have several labels (`one_label_each`); elsewhere
a random start of the center code stands in its place.
"""


def one_label_each(labels: Tensor) -> bool:
    """Whether no item has more than one, int ``[N]`` or multi-hot ``[N, C]``.

    Then ``|y . z| / sqrt(|y| |z|)`` is the same for all items that share the label of an image, however many the image
    has, so that the means that a center code is made of are those of binary weights.
    """
    return labels.ndim == 1 or bool((labels.sum(1, dtype=torch.int64) <= 1).all())


def attack_named(name: str, top_k: int | None, known: Gallery | None) -> OnCodes:
    """An attack of the suite, which measures the average precision at a depth.

    All but two are of relative sharpness, since large outputs, which make tanh flat, hide nothing from a search by
    codes; the own code and HAG are as published.

    Args:
        name: As in `DESCENTS`.
        top_k: See `OnCodes`.
        known: Of the center codes and the relevant ones; None is the gallery.
    """
    attacks: dict[str, OnCodes] = {
        "precision": Precision("relative", top_k),
        "center code": CenterCode("relative", top_k, known=known),
        MAINSTAY: CenterCode("relative", top_k, known=known, weights="cosine"),
        "relevant codes": RelevantCodes("relative", top_k, known=known),
        "own code": OwnCode(top_k=top_k),
        "HAG": HammingAdversary("rising", top_k),
    }
    return attacks[name]


def map_suite(
    effort: Effort,
    eps: float,
    norm: Norm = "linf",
    top_k: int | None = None,
    known: Gallery | None = None,
    surrogate: HashModel | None = None,
    gallery: Gallery | None = None,
    one_label: bool = False,
) -> list[Stage]:
    """The suite: all attacks on all queries, since a ranking that is bad may become worse.

    Then, at "standard" and "high" for "linf", the average precision by its values alone (`NES`) for a sample of the
    queries whose precision is not down to a half, where it finds something new only if gradients are masked.

    Args:
        effort: See `Effort`.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        top_k, known: See `attack_named`.
        surrogate: Another model of the same images; None leaves out what is transferred from it.
        gallery: As the surrogate embeds it, see `attacks.Transfer`.
        one_label: Whether the items of which center codes are made are such, see `one_label_each`.
    """
    stages = []
    for name, start, steps in DESCENTS[effort]:
        if one_label and name == MAINSTAY:
            name, start = "center code", START_0
        search = AutoPGD(eps, steps, norm, random_start=start != IMAGE)
        stages.append(Stage(f"{name}, {steps} steps{start}", attack_named(name, top_k, known), search, steps + 1))
    if LOOKS[effort] and norm == "linf":
        looks = LOOKS[effort]
        search = NES(eps, looks, POPULATION, step=eps / 3)
        stages.append(
            Stage(
                f"precision by values, {looks} looks",
                attack_named("precision", top_k, known),
                search,
                looks,
                SAMPLE,
                True,
            )
        )
    if surrogate is not None:
        name, attack, search, passes, *_ = stages[0]
        transferred = Transfer(surrogate, search, gallery)
        stages.append(Stage(f"{name}, transferred", attack, transferred, passes, tells=effort != "quick"))
    return stages
