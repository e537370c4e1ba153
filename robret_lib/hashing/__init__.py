"""Deep hashing: losses of relaxed codes, one file each; and the codes that lie at the center of labels."""

from robret_lib.hashing.batch import Batch, Known
from robret_lib.hashing.center_code import center_code
from robret_lib.hashing.centers import center_of_labels, hadamard_centers, random_centers
from robret_lib.hashing.csq import CSQ
from robret_lib.hashing.dch import DCH
from robret_lib.hashing.dph import DPH
from robret_lib.hashing.dpn import DPN
from robret_lib.hashing.dpsh import DPSH
from robret_lib.hashing.dsdh import DSDH
from robret_lib.hashing.greedyhash import GreedyHash
from robret_lib.hashing.hashnet import HashNet
from robret_lib.hashing.known_codes import KnownCodes
from robret_lib.hashing.objective import HashObjective
from robret_lib.hashing.orthohash import OrthoHash
from robret_lib.hashing.prototype import PrototypeNet, circle_loss, likelihood_loss, train_prototypes
from robret_lib.hashing.swd import sliced_wasserstein

__all__ = [
    "CSQ",
    "DCH",
    "DPH",
    "DPN",
    "DPSH",
    "DSDH",
    "Batch",
    "GreedyHash",
    "HashNet",
    "HashObjective",
    "Known",
    "KnownCodes",
    "OrthoHash",
    "center_code",
    "PrototypeNet",
    "center_of_labels",
    "circle_loss",
    "hadamard_centers",
    "likelihood_loss",
    "random_centers",
    "sliced_wasserstein",
    "train_prototypes",
]
