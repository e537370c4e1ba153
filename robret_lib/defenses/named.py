"""The defenses by the names that recipes call them."""

from typing import Literal, Protocol

from torch import nn

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses.act import AntiCollapseTriplets
from robret_lib.defenses.ca_tride import CollapseAwareTriplets
from robret_lib.defenses.est import EmbeddingShiftedTriplets
from robret_lib.defenses.fare import FixedTargets
from robret_lib.defenses.hm import Constant, Gradual, HardnessManipulation
from robret_lib.defenses.min_max import MinMaxTriplets
from robret_lib.defenses.neighborhood import KeptNeighborhood
from robret_lib.defenses.panum import PanumTriplets
from robret_lib.defenses.radius import DrawnRadius
from robret_lib.defenses.ramd import CandidateMinMaxTriplets
from robret_lib.defenses.rest import ShiftedCandidateTriplets
from robret_lib.defenses.ses import ShiftSuppressedTriplets
from robret_lib.mining import Mode
from robret_lib.models import Distance

DefenseName = Literal["est", "ses", "rest", "act", "min_max", "ramd", "panum", "hm", "ca_tride", "fare", "neighborhood"]

OF_TRIPLETS = {
    "est": EmbeddingShiftedTriplets,
    "ses": ShiftSuppressedTriplets,
    "rest": ShiftedCandidateTriplets,
    "act": AntiCollapseTriplets,
    "min_max": MinMaxTriplets,
    "ramd": CandidateMinMaxTriplets,
    "panum": PanumTriplets,
}
"""Those that need nothing but a search and a sampler."""

START_AT_RANDOM = ("panum", "fare", "neighborhood")


class Settings(Protocol):
    """What an objective needs to know of a `recipes.Recipe`."""

    defense: DefenseName | None
    sampler: str
    distance: Distance
    mode: Mode
    steps: int
    eps: float
    inner_step: float
    inner_steps: int
    drawn_radius: bool
    hardness: float | None
    invariance: float
    sharpness: float
    temperature: float
    clean_weight: float
    ramp: float


def objective(settings: Settings, original: nn.Module | None = None) -> nn.Module:
    """What a defense minimizes.

    Args:
        settings: A recipe with a defense.
        original: The network that "fare" starts from; the others do without.
    """
    name, distance, mode = settings.defense, settings.distance, settings.mode
    search: PGD | DrawnRadius = PGD(
        settings.eps, settings.inner_step, settings.inner_steps, random_start=name in START_AT_RANDOM
    )
    if settings.drawn_radius:
        search = DrawnRadius(search)
    sampler = getattr(mining, settings.sampler)
    if name == "hm":
        wanted = Gradual() if settings.hardness is None else Constant(settings.hardness)
        return HardnessManipulation(search, sampler, wanted, settings.invariance, distance, mode)
    if name == "ca_tride":
        return CollapseAwareTriplets(search, settings.steps, sharpness=settings.sharpness, distance=distance, mode=mode)
    if name == "fare":
        return FixedTargets(search, original)
    if name == "neighborhood":
        return KeptNeighborhood(search, settings.steps, settings.temperature, settings.clean_weight, settings.ramp)
    return OF_TRIPLETS[name](search, sampler, distance, mode)
