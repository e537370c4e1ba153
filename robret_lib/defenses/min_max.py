"""Min-max training on triplets: the attacker makes the loss as large as it gets, the training makes it small."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets


class MinMaxTriplets(AttackedTriplets):
    """Min-max: the triplet loss of (a~, p~, n~), all three moved until ``d(a~, p~) - d(a~, n~)`` is large.

    What adversarial training is for classifiers (Madry et al. 2018). On triplets it tends to collapse, as Zhou and
    Patel found ("Enhancing Adversarial Robustness for Deep Metric Learning", CVPR 2022; RobRank, `amd_training_step`).
    Arguments: see `AttackedTriplets`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        triplets = self.triplets_to_attack(model, images, labels, generator)
        moved = self.search(model, images[torch.cat(triplets)], self._hard, generator)
        return self.loss(*model(moved).chunk(3))

    def _hard(self, embeddings: Tensor) -> Tensor:
        """For each of P anchors, then positives, then negatives, minus the hardness of its triplet."""
        return -self.hardness(*embeddings.chunk(3)).repeat(3)
