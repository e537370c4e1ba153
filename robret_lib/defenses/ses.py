"""The clean triplet loss, and a price for every shift that an attacker could cause."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from robret_lib import mining
from robret_lib.attacks import Search
from robret_lib.defenses.inner import AttackedTriplets, Shift
from robret_lib.fields import check_number
from robret_lib.mining import Mode, Sampler
from robret_lib.models import Distance
from robret_lib.objectives import MARGIN


class ShiftSuppressedTriplets(AttackedTriplets):
    """SES: the triplet loss of (a, p, n), plus the mean distance of all images of the batch to where they can be moved.

    What TRADES is for classifiers. (Zhou et al., ECCV 2020, supplement; RobRank, `ses_training_step`.)

    Args:
        search, sampler, distance, mode: See `AttackedTriplets`. In mode "reference" distance "E" compares the clean
            embedding with the moved one scaled to length one, as the published code does.
        weight: Of the distance; 1 as published.

    Raises:
        TypeError: As `AttackedTriplets`.
        ValueError: As `AttackedTriplets`; a weight below zero.
    """

    published_sampling_margin = MARGIN

    def __init__(
        self,
        search: Search,
        sampler: Sampler = mining.random,
        distance: Distance = "N",
        mode: Mode = "fixed",
        weight: float = 1.0,
    ) -> None:
        super().__init__(search, sampler, distance, mode)
        check_number("weight", weight, least=0)
        self.weight = weight

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        self.check(model)
        clean = model(images)
        before = clean.detach()
        triplets = self.triplets(before, labels, generator)
        away = Shift(before, self.distance, self.mode, generator)
        shifted = model(self.search(model, images, away, generator))
        loss = self.loss(*(clean[role] for role in triplets))
        if self.mode == "reference" and self.distance == "E":
            shifted = normalize(shifted, dim=1)
        return loss + self.weight * self.apart(shifted, clean).mean()
