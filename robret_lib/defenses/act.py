"""Anti-collapse triplets: let an attacker pull positive and negative together, and learn to tell them apart again."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets


class AntiCollapseTriplets(AttackedTriplets):
    """ACT: the triplet loss of (a, p~, n~), where p~ and n~ were moved until ``d(p~, n~)`` is small.

    The triplets are drawn from the clean images. The inner attack minimizes the distance of each positive to its
    negative over both images; the anchor stays clean, since a perturbed one would teach the wrong direction. Nothing
    but the distance is asked for, and nothing ends the attack early. (Zhou et al., "Adversarial Attack and Defense in
    Deep Ranking", TPAMI 2024; RobRank, `pnp_training_step` and `PositiveNegativePerplexing.pncollapse`.)

    Published with `PGD` of 32 steps, radius 77/255 and step 3/255 on Fashion-MNIST, and in a variant with one step
    (`PGD.fgsm`). Arguments: see `AttackedTriplets`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        anchor, positive, negative = self.triplets_to_attack(model, images, labels, generator)
        moved = self.search(model, images[torch.cat([positive, negative])], self._collapse, generator)
        return self.loss(*model(torch.cat([images[anchor], moved])).chunk(3))

    def _collapse(self, embeddings: Tensor) -> Tensor:
        """For each of P positives, and once more for the P negatives that follow them, the distance of the two."""
        return self.apart(*embeddings.chunk(2)).repeat(2)
