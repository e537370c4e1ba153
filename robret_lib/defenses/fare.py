"""Fine-tuning without labels: whatever is done to an image, its embedding shall be the one it had before."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from robret_lib.attacks import Search
from robret_lib.defenses.inner import check_inner, innermost
from robret_lib.models import embed


class FixedTargets(nn.Module):
    """FARE: the mean squared distance of attacked images' embeddings to what the original network says of clean ones.

    The inner attack makes that distance large for each image. Targets do not move, so that a constant costs their
    variance, and no labels are looked at; what the original network does not tell apart, the tuned one will not either.
    (Schlarmann et al., "Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large
    Vision-Language Models", ICML 2024, eq. 3; there for CLIP.) The search needs a random start: before the first step
    of training, the distance at a clean image is zero, and has no slope.

    Args:
        search: The inner attack.
        original: The undefended network, which is copied into the objective's state and never trained. The network
            that is trained begins as its copy.

    Raises:
        TypeError: A search by values.
        ValueError: A search that begins at the image.
    """

    def __init__(self, search: Search, original: nn.Module) -> None:
        super().__init__()
        check_inner(self, search)
        if not getattr(innermost(search), "random_start", True):
            raise ValueError(f"{search!r}: expected random_start=True, at the image itself there is no slope")
        self.search = search
        self.original = deepcopy(original).requires_grad_(False)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of images ``[B, C, H, W]`` in [0, 1]; the labels are not used."""
        targets = embed(self.original, images)

        def loss(embeddings: Tensor) -> Tensor:
            return -(embeddings - targets).square().sum(1)

        moved = self.search(model, images, loss, generator)
        return (model(moved) - targets).square().sum(1).mean()
