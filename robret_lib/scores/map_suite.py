"""The attacks that decide what MAP is left of a search by hash codes."""

from robret_lib.attacks import AutoPGD, Gallery, Transfer
from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision
from robret_lib.attacks.relaxed import OnCodes
from robret_lib.attacks.search.ball import Norm
from robret_lib.models import HashModel
from robret_lib.scores.suite import IMAGE, START_1, START_2, Effort, Stage

DESCENTS: dict[Effort, tuple[tuple[str, str, int], ...]] = {
    "quick": (("precision", IMAGE, 8),),
    "standard": (
        ("precision", IMAGE, 24),
        ("center code", IMAGE, 16),
        ("mainstay code", IMAGE, 8),
        ("center code, rising", IMAGE, 8),
        ("own code", IMAGE, 8),
        ("HAG", IMAGE, 8),
        ("precision", START_1, 24),
    ),
    "high": (
        ("precision", IMAGE, 100),
        ("center code", IMAGE, 50),
        ("mainstay code", IMAGE, 50),
        ("center code, rising", IMAGE, 50),
        ("own code", IMAGE, 50),
        ("HAG", IMAGE, 20),
        *((name, start, 50) for start in (START_1, START_2) for name in ("precision", "center code")),
    ),
}
"""Loss, start and steps of each descent: about 8, 100 and 500 passes, as of `suite.suite_of`."""


def attack_named(name: str, top_k: int | None, known: Gallery | None) -> OnCodes:
    """An attack of the suite, which measures the average precision at a depth.

    Args:
        name: As in `DESCENTS`.
        top_k: See `OnCodes`.
        known: Of the center codes; None is the gallery.
    """
    attacks: dict[str, OnCodes] = {
        "precision": Precision(top_k=top_k),
        "center code": CenterCode(top_k=top_k, known=known),
        "mainstay code": CenterCode(top_k=top_k, known=known, weights="cosine"),
        "center code, rising": CenterCode("rising", top_k, known=known),
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
) -> list[Stage]:
    """The suite: all attacks on all queries, since a ranking that is bad may become worse.

    Args:
        effort: See `Effort`.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        top_k, known: See `attack_named`.
        surrogate: Another model of the same images; None leaves out what is transferred from it.
        gallery: As the surrogate embeds it, see `attacks.Transfer`.
    """
    stages = []
    for name, start, steps in DESCENTS[effort]:
        search = AutoPGD(eps, steps, norm, random_start=start != IMAGE)
        stages.append(Stage(f"{name}, {steps} steps{start}", attack_named(name, top_k, known), search, steps + 1))
    if surrogate is not None:
        name, attack, search, passes, *_ = stages[0]
        stages.append(Stage(f"{name}, transferred", attack, Transfer(surrogate, search, gallery), passes))
    return stages
