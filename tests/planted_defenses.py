"""Defenses that defend nothing: each hides the gradient, or what else an attack relies on, from whoever follows it.

Planted around a sound network, to see that the warning meant for it appears.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, normalize

from robret_lib.models import EmbeddingModel


class Planted(nn.Module):
    """A network behind something that is done to its images."""

    def __init__(self, network: EmbeddingModel) -> None:
        super().__init__()
        self.network, self.distance = network, network.distance

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.defended(images))

    def defended(self, images: Tensor) -> Tensor:
        return images


class Quantized(Planted):
    """Few shades of gray: the slope of rounding is zero."""

    def defended(self, images: Tensor) -> Tensor:
        return (15 * images).round() / 15


class Noisy(Planted):
    """Another image at every look."""

    def defended(self, images: Tensor) -> Tensor:
        return images + 0.1 * torch.randn_like(images)


class BatchCoupled(Planted):
    """A batch norm that never leaves the training mode."""

    def defended(self, images: Tensor) -> Tensor:
        return batch_norm(images, None, None, training=True)


class Detached(Planted):
    """The embedding is cut off; the gradient comes through a branch that adds next to nothing."""

    def forward(self, images: Tensor) -> Tensor:
        branch = torch.linspace(-1, 1, images[0].numel()).to(images) * images.flatten(1)
        embeddings = self.network(images).detach()
        return normalize(embeddings + 1e-4 * branch[:, : embeddings.shape[1]], dim=1)


class PartlyDetached(Planted):
    """Some of the embedding is cut off; the gradient is that of another network, which sees the images otherwise.

    Args:
        network: What is cut off.
        other: What the gradient comes through.
        share: How much of the embedding it gives.
    """

    def __init__(self, network: EmbeddingModel, other: EmbeddingModel, share: float = 0.1) -> None:
        super().__init__(network)
        self.other, self.share = other, share

    def forward(self, images: Tensor) -> Tensor:
        return normalize(self.share * self.other(images) + (1 - self.share) * self.network(images).detach(), dim=1)


class Mirrored(Planted):
    """Another look at the same image, with the same weights."""

    def defended(self, images: Tensor) -> Tensor:
        return images.flip(-1)


class HalfDetached(PartlyDetached):
    """A part of the embedding, the network's look at the mirrored image, is cut off from the graph.

    Args:
        attached: The weight of the part that is not.
    """

    def __init__(self, network: EmbeddingModel, attached: float = 0.5) -> None:
        super().__init__(Mirrored(network), network, attached)


class Saturated(Planted):
    """A huge scale before a squashing function: in float32 its slope is zero almost everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return normalize(torch.tanh(1e4 * self.network(images)), dim=1)


class Squashed(Planted):
    """Hash codes from a network that ends in a tanh; what attacks follow has another one behind it."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.network(images))


class _Killer(torch.autograd.Function):
    """The identity, with another gradient on the way back."""

    @staticmethod
    def forward(context, images: Tensor, kind: str) -> Tensor:
        context.kind = kind
        return images.clone()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        if context.kind == "zero":
            return torch.zeros_like(gradient), None
        draws = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        return draws.to(gradient), None


class GradientKiller(Planted):
    """Nothing is changed, but for the gradient, which is zero or random."""

    def __init__(self, network: EmbeddingModel, kind: str) -> None:
        super().__init__(network)
        self.kind = kind

    def defended(self, images: Tensor) -> Tensor:
        return _Killer.apply(images, self.kind)


class FlatAtBytes(Planted):
    """Every pixel is drawn to the byte nearest to it: where it is one, as in any stored image, the slope is zero."""

    def defended(self, images: Tensor) -> Tensor:
        byte = ((255 * images).round() / 255).detach()
        aside = images - byte
        return byte + aside.sign() * (aside.abs() - 0.1 / 255).relu()


class Purified(Planted):
    """An image that is unlike every known one is taken for the known one nearest to it; small changes pass.

    Args:
        known: ``[N, C, H, W]`` in [0, 1].
        radius: The largest change of a pixel that passes.
    """

    def __init__(self, network: EmbeddingModel, known: Tensor, radius: float) -> None:
        super().__init__(network)
        self.known, self.radius = known, radius

    def defended(self, images: Tensor) -> Tensor:
        distances = torch.cdist(images.detach().flatten(1), self.known.flatten(1), p=torch.inf)
        distance, nearest = distances.min(1)
        return torch.where((distance > self.radius).view(-1, 1, 1, 1), self.known[nearest], images)
