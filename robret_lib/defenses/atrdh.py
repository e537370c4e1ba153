"""The first adversarial training of hash networks: attacks go towards prototypes of other labels."""

import torch
from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.defenses.pair_guided import PairGuided
from robret_lib.defenses.prototypes import Prototypes
from robret_lib.hashing import HashObjective


class PrototypeTargeted(PairGuided):
    """ATRDH: the inner attack goes towards the prototype of random labels; attacked codes cost as pairs.

    Label vectors are drawn from those of the training set that have a label, also such that share one with the image,
    or are its own; the published code draws from the database, also the vector without labels. The network of the
    prototypes learns beside every batch, with the optimizer of the hash network, and of labels that are drawn anew; the
    published code has an optimizer for each, and learns of the labels it attacks towards. (Wang et al., "Targeted
    Attack and Defense for Deep Hashing", SIGIR 2021; the authors' code.)

    In mode "fixed" recipes fit the prototypes to the known codes before the first step (`recipes.hash_defense`); in
    "reference" they begin with nothing learned.

    As published, and in mode "reference", pairs are compared with codes of zeros until a batch has held them. There
    prototypes learn of what has been seen alone; the published code has the codes of the original network for the rest.

    Args:
        search, clean: See `AttackedCodes`. As published, ``clean`` is DPH, and its codes are not known before training.
        settings: The rest of `AttackedCodes`. Published are weights of 1; in SAAT's port attacked codes have 2.
    """

    def __init__(self, search: Search, clean: HashObjective, **settings: object) -> None:
        super().__init__(search, clean, **settings)
        self.prototypes = Prototypes(clean.known)
        self.needs_known_codes = self.mode == "fixed"

    def inner_loss(self, information: Tensor, generator: torch.Generator) -> CodeLoss:
        targets = self.prototypes.codes(self.prototypes.drawn(len(information), generator))
        return lambda codes: -(codes * targets).mean(1)

    def own_loss(self, size: int, generator: torch.Generator) -> Tensor:
        return self.prototypes.loss(self.clean.known, size, generator)
