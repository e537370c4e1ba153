"""The published attacks on hash codes, each with the search that it was published with.

Their losses and their searches differ at the same time, so that a table of them tells little about either. With
`AttackOnCodes.searched_by` the same loss gets another search of as many steps.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision, RelevantCodes
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import OnCodes
from robret_lib.attacks.search import PGD, AutoPGD, Descent
from robret_lib.attacks.targeted_codes import Collision, PointToSet, Prototype, TowardsCenter, TowardsPrecision
from robret_lib.fields import check_count


@dataclass(frozen=True)
class AttackOnCodes:
    """What is wanted and how the publication searches for it."""

    attack: OnCodes
    search: PGD | Descent

    @property
    def steps(self) -> int:
        """Of the search."""
        return self.search.steps

    def searched_by(self, sharpness: str = "one") -> "AttackOnCodes":
        """The same loss by `AutoPGD` with as many steps, and with alpha as it says."""
        return AttackOnCodes(replace(self.attack, sharpness=sharpness), AutoPGD(self.search.eps, self.steps))


def without_target(
    eps: float = 8 / 255, most_steps: int = 2000, top_k: int | None = None, known: Gallery | None = None
) -> dict[str, AttackOnCodes]:
    """By name the attacks that want a bad ranking.

    Args:
        eps: Radius of all, in pixel units; their signed steps are an eighth of it, as published for 8/255.
        most_steps: A longer search is cut to so many; the published ones have up to 2,000.
        top_k: Depth of the average precision that is measured.
        known: Training images with labels, as the published codes use for SDHA, CgA and SAAT; None is the gallery.
    """
    check_count("most_steps", most_steps)
    short = _signed(eps, min(100, most_steps))
    return {
        "own code": AttackOnCodes(OwnCode("rising", top_k), short),
        "HAG": AttackOnCodes(HammingAdversary("rising", top_k), replace(Descent.hag(min(2000, most_steps)), eps=eps)),
        "HAG, ported": AttackOnCodes(
            HammingAdversary("rising", top_k), replace(Descent.hag_ported(min(2000, most_steps)), eps=eps)
        ),
        "SDHA": AttackOnCodes(
            RelevantCodes("rising", top_k, known), replace(Descent.sdha(min(1500, most_steps)), eps=eps)
        ),
        "CgA": AttackOnCodes(CenterCode("rising", top_k, masked=True, known=known), short),
        "CgA, mean": AttackOnCodes(CenterCode(top_k=top_k, known=known), short),
        "SAAT": AttackOnCodes(
            CenterCode("rising", top_k, weights="cosine", masked=True, known=known), replace(short, random_start=True)
        ),
        "soft precision": AttackOnCodes(Precision(top_k=top_k), _signed(eps, min(20, most_steps))),
    }


def with_target(
    wanted: Tensor,
    eps: float = 8 / 255,
    most_steps: int = 2000,
    top_k: int | None = None,
    known: Gallery | None = None,
    prototypes: nn.Module | None = None,
) -> dict[str, AttackOnCodes]:
    """By name the attacks that want the ranking of other labels.

    Args:
        wanted: Target labels, see `attacks.target_labels`.
        eps, most_steps, top_k, known: As in `without_target`.
        prototypes: Of THA, see `targeted_codes.Prototype`; None leaves it out.
    """
    check_count("most_steps", most_steps)
    long, short = (_signed(eps, min(steps, most_steps)) for steps in (2000, 100))
    from_anywhere = replace(short, random_start=True)
    mainstay = {"wanted": wanted, "known": known}
    found = {
        "P2P": AttackOnCodes(PointToSet("rising", top_k, wanted=wanted, items=1), long),
        "DHTA": AttackOnCodes(PointToSet("rising", top_k, wanted=wanted), long),
        "SAAT, targeted": AttackOnCodes(TowardsCenter("rising", top_k, **mainstay, loss="published"), from_anywhere),
        "SAAT, targeted, symmetric": AttackOnCodes(TowardsCenter("rising", top_k, **mainstay), from_anywhere),
        "PTA": AttackOnCodes(TowardsPrecision(top_k=top_k, wanted=wanted), _signed(eps, min(20, most_steps))),
        "collision": AttackOnCodes(Collision(top_k=top_k, wanted=wanted), short),
    }
    if prototypes is not None:
        found["THA"] = AttackOnCodes(Prototype(top_k=top_k, wanted=wanted, network=prototypes), short)
    return found


def _signed(eps: float, steps: int) -> PGD:
    return PGD(eps, eps / 8, steps)
