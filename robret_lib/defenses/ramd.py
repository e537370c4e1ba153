"""Min-max training on triplets whose anchor stays clean."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets
from robret_lib.models import embeddings_of, evaluation_mode


class CandidateMinMaxTriplets(AttackedTriplets):
    """RAMD: the triplet loss of (a, p~, n~), positive and negative moved until ``d(a, p~) - d(a, n~)`` is large.

    `MinMaxTriplets` with a clean anchor. For distance "N" the published code forgets to scale the anchor's embedding
    to length one in the attack, though not in the loss; mode "reference" forgets it, too, and needs a
    `models.EmbeddingModel` (RobRank, `MadryInnerMax.ptbpn`). Arguments: see `AttackedTriplets`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        clean, (anchor, positive, negative) = self.clean_triplets(model, images, labels, generator)
        forgotten = self.mode == "reference" and self.distance == "N"
        fixed = _without_length_one(model, images[anchor]) if forgotten else clean[anchor]

        def hard(embeddings: Tensor) -> Tensor:
            return -self.hardness(fixed, *embeddings.chunk(2)).repeat(2)

        moved = self.search(model, images[torch.cat([positive, negative])], hard, generator)
        return self.loss(*model(torch.cat([images[anchor], moved])).chunk(3))


@torch.no_grad()
def _without_length_one(model: nn.Module, images: Tensor) -> Tensor:
    """Embeddings ``[B, D]`` as an `EmbeddingModel` has them before it scales them."""
    with evaluation_mode(model):
        return embeddings_of(model.backbone, model.normalization(images))
