"""Min-max training on triplets whose anchor stays clean."""

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets
from robret_lib.models import evaluation_mode, unwrapped


class CandidateMinMaxTriplets(AttackedTriplets):
    """RAMD: the triplet loss of (a, p~, n~), positive and negative moved until ``d(a, p~) - d(a, n~)`` is large.

    `MinMaxTriplets` with a clean anchor. For distance "N" the published attack, though not the published loss, forgets
    to scale the anchor's embedding to length one, and mode "reference" with it (RobRank, `MadryInnerMax.ptbpn`). That
    hardly ever moves an image elsewhere: on the unit sphere, the way to a point and the way to its multiple are one.
    Arguments: see `AttackedTriplets`.

    Raises:
        TypeError: In mode "reference", a model that is no `models.EmbeddingModel`.
    """

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        clean, (anchor, positive, negative) = self.clean_triplets(model, images, labels, generator)
        forgotten = self.mode == "reference" and self.distance == "N"
        aim = _raw(model, images[anchor]) if forgotten else clean[anchor]

        def hard(embeddings: Tensor) -> Tensor:
            return -self.hardness(aim, *embeddings.chunk(2)).repeat(2)

        moved = self.search(model, images[torch.cat([positive, negative])], hard, generator)
        return self.loss(*model(torch.cat([images[anchor], moved])).chunk(3))


def _raw(model: nn.Module, images: Tensor) -> Tensor:
    """Embeddings ``[B, D]`` before they are scaled to length one, without gradients."""
    if not hasattr(unwrapped(model), "features"):
        raise TypeError(f'a {type(model).__name__}: mode="reference" expects a models.EmbeddingModel')
    with evaluation_mode(model), torch.no_grad():
        return unwrapped(model).features(images)
