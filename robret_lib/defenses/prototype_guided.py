"""Prototype-guided training: `CenterGuided` with codes that a network has learned in the place of centers."""

import torch
from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.defenses.attacked_codes import AttackedCodes
from robret_lib.defenses.prototypes import Prototypes
from robret_lib.hashing import HashObjective


class PrototypeGuided(AttackedCodes):
    """An attacked code costs ``-mean_k u~_k g_k``, with the prototype g of its labels, learned beside the network.

    Nobody has published it: it stands between ATRDH, which attacks by prototypes, and CgAT, which is guided by a closed
    form.

    Args:
        search, clean, settings: See `AttackedCodes`.
    """

    def __init__(self, search: Search, clean: HashObjective, **settings: object) -> None:
        super().__init__(search, clean, **settings)
        self.prototypes = Prototypes(clean.known)

    def label_information(self, labels: Tensor) -> Tensor:
        """The prototypes ``[B, bits]``: they are learned between two steps."""
        return self.prototypes.codes(labels)

    def price(self, information: Tensor) -> CodeLoss:
        return lambda codes: -(codes * information).mean(1)

    def own_loss(self, size: int, generator: torch.Generator) -> Tensor:
        return self.prototypes.loss(self.clean.known, size, generator)
