"""Embedding-shifted candidates: as EST, but the anchor stays clean."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets, Shift


class ShiftedCandidateTriplets(AttackedTriplets):
    """REST: the triplet loss of (a, p*, n*), where positive and negative were moved far from their clean embeddings.

    Between EST, which moves the anchor too, and ACT, which moves the two towards each other. (Zhou et al., TPAMI 2024,
    an ablation there; RobRank, `rest_training_step`.) Arguments: see `AttackedTriplets`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        clean, (anchor, *others) = self.clean_triplets(model, images, labels, generator)
        candidates = torch.cat(others)
        away = Shift(clean[candidates], self.distance, self.mode, generator)
        moved = self.search(model, images[candidates], away, generator)
        return self.loss(*model(torch.cat([images[anchor], moved])).chunk(3))
