"""Min-max training on triplets whose anchor stays clean."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets
from robret_lib.models import evaluation_mode


class CandidateMinMaxTriplets(AttackedTriplets):
    """RAMD: the triplet loss of (a, p~, n~), positive and negative moved until ``d(a, p~) - d(a, n~)`` is large.

    `MinMaxTriplets` with a clean anchor. For distance "N" the published code forgets to scale the anchor's embedding
    to length one, in the attack and in the loss; mode "reference" forgets it, too, and needs a `models.EmbeddingModel`
    (RobRank, `ptbpn`). Arguments: see `AttackedTriplets`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        _, (anchor, positive, negative) = self.clean_triplets(model, images, labels, generator)
        with evaluation_mode(model), torch.no_grad():
            fixed = self._anchors(model, images[anchor])

        def hard(embeddings: Tensor) -> Tensor:
            return -self.hardness(fixed, *embeddings.chunk(2)).repeat(2)

        moved = self.search(model, images[torch.cat([positive, negative])], hard, generator)
        return self.loss(self._anchors(model, images[anchor]), *model(moved).chunk(2))

    def _anchors(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.mode == "reference" and self.distance == "N":
            return model.backbone(model.normalization(images))
        return model(images)
