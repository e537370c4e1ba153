"""Defenses: what to minimize so that a network resists. Each is an objective of the one loop, `training.train`."""

from robret_lib.defenses.act import AntiCollapseTriplets
from robret_lib.defenses.atrdh import PrototypeTargeted
from robret_lib.defenses.attacked_codes import AttackedCodes
from robret_lib.defenses.ca_tride import CollapseAwareTriplets
from robret_lib.defenses.cgat import CenterGuided
from robret_lib.defenses.collapse import collapsed_at, collapseness, signs, spread
from robret_lib.defenses.est import EmbeddingShiftedTriplets
from robret_lib.defenses.fare import FixedTargets
from robret_lib.defenses.hm import Benign, Constant, Destination, Gradual, HardnessManipulation
from robret_lib.defenses.min_max import MinMaxTriplets
from robret_lib.defenses.neighborhood import KeptNeighborhood
from robret_lib.defenses.pair_guided import PairGuided
from robret_lib.defenses.panum import PanumTriplets
from robret_lib.defenses.prototype_guided import PrototypeGuided
from robret_lib.defenses.radius import DrawnRadius
from robret_lib.defenses.ramd import CandidateMinMaxTriplets
from robret_lib.defenses.rest import ShiftedCandidateTriplets
from robret_lib.defenses.saat import MainstayGuided
from robret_lib.defenses.ses import ShiftSuppressedTriplets

__all__ = [
    "AntiCollapseTriplets",
    "AttackedCodes",
    "Benign",
    "CandidateMinMaxTriplets",
    "CenterGuided",
    "CollapseAwareTriplets",
    "Constant",
    "Destination",
    "DrawnRadius",
    "EmbeddingShiftedTriplets",
    "FixedTargets",
    "Gradual",
    "HardnessManipulation",
    "KeptNeighborhood",
    "MainstayGuided",
    "MinMaxTriplets",
    "PairGuided",
    "PanumTriplets",
    "PrototypeGuided",
    "PrototypeTargeted",
    "ShiftSuppressedTriplets",
    "ShiftedCandidateTriplets",
    "collapsed_at",
    "collapseness",
    "signs",
    "spread",
]
