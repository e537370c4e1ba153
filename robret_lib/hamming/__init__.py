"""Binary codes and how good a ranking by Hamming distance is: MAP with its ties, precision at N, PR curves."""

from robret_lib.hamming.average_precision import Ties, average_precisions, hamming_map, map_first_k_relevant
from robret_lib.hamming.codes import codes_of, hamming_distance
from robret_lib.hamming.curves import precision_at, precision_at_recall, precision_within
from robret_lib.hamming.protocol import MapProtocol, MeasuredMap, side_by_side

__all__ = [
    "MapProtocol",
    "MeasuredMap",
    "Ties",
    "average_precisions",
    "codes_of",
    "hamming_distance",
    "hamming_map",
    "map_first_k_relevant",
    "precision_at",
    "precision_at_recall",
    "precision_within",
    "side_by_side",
]
