"""The first adversarial training of hash networks: attacks go towards prototypes of other labels."""

import torch
from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.defenses.pair_guided import PairGuided
from robret_lib.defenses.prototypes import Prototypes
from robret_lib.hashing import HashObjective
from robret_lib.mining import Mode


class PrototypeTargeted(PairGuided):
    """ATRDH: the inner attack goes towards the prototype of random labels; attacked codes cost as pairs.

    Label vectors are drawn from those of the training set, also such that share a label with the image, or are its own.
    The network of the prototypes learns beside every batch, with the optimizer of the hash network, and of labels that
    are drawn anew; the published code has an optimizer for each, and learns of the labels it attacks towards. (Wang et
    al., "Targeted Attack and Defense for Deep Hashing", SIGIR 2021; the authors' code.)

    In mode "reference", where no codes are known before training, prototypes learn of those that have been seen; the
    published code has the codes of the original network for the others.

    Args:
        search, clean, clean_weight, quantization, mode: See `AttackedCodes`. As published, ``clean`` is DPH.
        weight: Of the attacked codes: 1 as published, 2 in SAAT's port.
    """

    def __init__(
        self,
        search: Search,
        clean: HashObjective,
        weight: float = 1.0,
        clean_weight: float = 1.0,
        quantization: float = 0.0,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__(search, clean, weight, clean_weight, quantization, mode)
        self.prototypes = Prototypes(clean.known)

    def wish(self, asked: Tensor, generator: torch.Generator) -> CodeLoss:
        targets = self.prototypes.codes(self.prototypes.drawn(len(asked), generator))
        return lambda codes: -(codes * targets).mean(1)

    def own_loss(self, size: int, generator: torch.Generator) -> Tensor:
        return self.prototypes.loss(self.clean.known, size, generator)
