"""The published attacks on hash codes, each with the search that it was published with.

Their losses and their searches differ at the same time, so that a table of them tells little about either. With
`AttackOnCodes.searched_by` the same loss gets another search of as many steps.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import OnCodes
from robret_lib.attacks.relevant_codes import RelevantCodes, TowardsRelevantCodes
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

    def within(self, eps: float, most_steps: int) -> "AttackOnCodes":
        """The same with this radius, and cut to so many steps."""
        return replace(self, search=replace(self.search, eps=eps, steps=min(self.steps, most_steps)))

    def searched_by(self, sharpness: str = "one") -> "AttackOnCodes":
        """The same loss by `AutoPGD` with as many steps, and with alpha as it says."""
        return AttackOnCodes(replace(self.attack, sharpness=sharpness), AutoPGD(self.search.eps, self.steps))


def without_target(
    eps: float = 8 / 255, most_steps: int = 2000, top_k: int | None = None, known: Gallery | None = None
) -> dict[str, AttackOnCodes]:
    """By name the attacks that want a bad ranking.

    Args:
        eps: Radius of all, in pixel units; their signed steps are an eighth of it, as published for 8/255, or for PTA
            a twentieth. The authors' rates of HAG and DHTA are for radii of their own (`Descent`).
        most_steps: A longer search is cut to so many; the published ones have up to 2,000.
        top_k: Depth of the average precision that is measured.
        known: Training images with labels, as the published codes use for SDHA, CgA and SAAT; None is the gallery.
    """
    check_count("most_steps", most_steps)
    short, hag = PGD(eps, eps / 8, 100), HammingAdversary("rising", top_k)
    found = {
        "own code": AttackOnCodes(OwnCode("rising", top_k), short),
        "HAG": AttackOnCodes(hag, Descent.hag()),
        "HAG, ported": AttackOnCodes(hag, Descent.hag_ported()),
        "SDHA": AttackOnCodes(RelevantCodes("rising", top_k, known), Descent.sdha()),
        "CgA": AttackOnCodes(CenterCode("rising", top_k, masked=True, known=known), short),
        "CgA, mean": AttackOnCodes(CenterCode(top_k=top_k, known=known), short),
        "SAAT": AttackOnCodes(
            CenterCode("rising", top_k, weights="cosine", masked=True, known=known), replace(short, random_start=True)
        ),
        "soft precision": AttackOnCodes(Precision(top_k=top_k), PGD(eps, eps / 8, 20)),
    }
    return {name: pair.within(eps, most_steps) for name, pair in found.items()}


def with_target(
    wanted: Tensor,
    bits: int,
    eps: float = 8 / 255,
    most_steps: int = 2000,
    top_k: int | None = None,
    known: Gallery | None = None,
    prototypes: nn.Module | None = None,
) -> dict[str, AttackOnCodes]:
    """By name the attacks that want the ranking of other labels.

    Args:
        wanted: Target labels, see `attacks.target_labels`.
        bits: K, of a code. The soft ranks of PTA have a temperature of 0.1 bits, 0.2 / K of similarities.
        eps, most_steps, top_k, known: As in `without_target`.
        prototypes: Of THA, see `targeted_codes.Prototype`; None leaves it out.
    """
    check_count("most_steps", most_steps)
    check_count("bits", bits)
    port, short = (PGD(eps, eps / 8, steps) for steps in (2000, 100))
    from_anywhere, aim = replace(short, random_start=True), {"top_k": top_k, "wanted": wanted}
    point, points = PointToSet("rising", **aim, items=1), PointToSet("rising", **aim)
    found = {
        "SDHA, targeted": AttackOnCodes(TowardsRelevantCodes("rising", **aim, known=known), Descent.sdha()),
        "P2P": AttackOnCodes(point, Descent.dhta()),
        "P2P, ported": AttackOnCodes(point, port),
        "DHTA": AttackOnCodes(points, Descent.dhta()),
        "DHTA, ported": AttackOnCodes(points, port),
        "SAAT, targeted": AttackOnCodes(TowardsCenter("rising", **aim, known=known, loss="published"), from_anywhere),
        "SAAT, targeted, symmetric": AttackOnCodes(TowardsCenter("rising", **aim, known=known), from_anywhere),
        "PTA": AttackOnCodes(TowardsPrecision(**aim, temperature=0.2 / bits), PGD(eps, eps / 20, 20)),
        "collision": AttackOnCodes(Collision(**aim), short),
        "collision, mean": AttackOnCodes(Collision(**aim, margin=2.0), short),
    }
    if prototypes is not None:
        found["THA"] = AttackOnCodes(Prototype(**aim, network=prototypes), short)
    return {name: pair.within(eps, most_steps) for name, pair in found.items()}
