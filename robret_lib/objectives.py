"""What training minimizes: the triplet loss, and any loss of pytorch-metric-learning behind the same call."""

import torch
from torch import Tensor, nn

from robret_lib import mining
from robret_lib.attacks.attack import check_mode
from robret_lib.distances import pairwise_distance, row_distance
from robret_lib.mining import Mode, Sampler, Triplets
from robret_lib.models import Distance, unwrapped

MARGIN: dict[Distance, float] = {"N": 0.2, "C": 0.2, "E": 1.0}
"""The published margins of the triplet loss (RobRank)."""

OFFSET = 1e-6
"""What PyTorch's `pairwise_distance` adds inside the norm; it gives the distance between equals a slope."""


def triplet_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2, distance: Distance = "N"
) -> Tensor:
    """Triplet losses ``[B]``: ``[d(a, p) - d(a, n) + margin]_+`` of embeddings ``[B, D]`` (Schroff et al. 2015, eq. 2).

    As in the published code, the Euclidean d has `OFFSET` added to each difference inside the norm.

    Args:
        anchor, positive, negative: Embeddings ``[B, D]``; unit vectors for distance "N" and "C".
        margin: 0.2 for unit vectors and cosine, 1.0 for raw Euclidean in the published tables.
        distance: "N" and "E" Euclidean, "C" cosine.
    """
    d_ap, d_an = (row_distance(anchor, other, distance, OFFSET) for other in (positive, negative))
    return (d_ap - d_an + margin).relu()


class TripletObjective(nn.Module):
    """Embed a batch once, sample one triplet per pair from its embeddings, return the mean triplet loss.

    Args:
        sampler: One of `mining`'s five.
        distance: Of the model that is trained; sets the margin too (see `MARGIN`).
        mode: Of the sampler.

    Raises:
        TypeError: A sampler that cannot be called.
        ValueError: A distance or mode nobody knows; a sampler that does not know the distance; a model that is made
            for another distance.
    """

    def __init__(self, sampler: Sampler, distance: Distance = "N", mode: Mode = "fixed") -> None:
        super().__init__()
        check_mode(mode)
        if distance not in MARGIN:
            raise ValueError(f'distance={distance!r}: expected "N", "E" or "C"')
        if not callable(sampler):
            raise TypeError(f"sampler={sampler!r}: expected one of mining's, such as mining.semihard")
        if sampler is mining.distance and distance != "N":
            raise ValueError(
                f'the distance-weighted sampler knows the unit sphere only: expected "N", not {distance!r}'
            )
        self.sampler, self.distance, self.mode = sampler, distance, mode
        self.sampling_margin = MARGIN[distance]

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        self.check(model)
        embeddings = model(images)
        triplets = self.triplets(embeddings.detach(), labels, generator)
        return self.loss(*(embeddings[role] for role in triplets))

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError where a model says that it is made for another distance."""
        distance = getattr(unwrapped(model), "distance", self.distance)
        if distance != self.distance:
            raise ValueError(f"a model with distance {distance!r}: this objective has distance={self.distance!r}")

    @torch.no_grad()
    def triplets(
        self, embeddings: Tensor, labels: Tensor, generator: torch.Generator, margin: float | None = None
    ) -> Triplets:
        """One triplet per pair of an SPC-2 batch with embeddings ``[2P, D]``.

        Args:
            embeddings, labels, generator: As in `mining.Sampler`; the labels are int ``[2P]``.
            margin: Of the sampler; None is the usual one, `sampling_margin`.

        Raises:
            ValueError: It is none, or has one class only.
        """
        if not torch.equal(labels[0::2], labels[1::2]):
            raise ValueError(
                f"a batch of {len(labels)} images that are no pairs of one class, first and second, third and fourth: "
                "expected one of mining.spc2_epoch"
            )
        distances = pairwise_distance(embeddings, embeddings, self.distance)
        margin = self.sampling_margin if margin is None else margin
        dim = {"dim": embeddings.shape[1]} if self.sampler is mining.distance else {}
        return self.sampler(distances, labels, margin, generator, self.mode, **dim)

    def loss(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Mean triplet loss, a scalar, of embeddings ``[P, D]``."""
        return triplet_loss(anchor, positive, negative, MARGIN[self.distance], self.distance).mean()


class MetricLearningObjective(nn.Module):
    """Any loss of pytorch-metric-learning (contrastive, margin, multi-similarity, N-pair, proxies) on the batch.

    Args:
        loss: Called as ``loss(embeddings, labels)``; if it has weights (proxies), training updates them too.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch; the generator is not used, these losses draw nothing."""
        return self.loss(model(images), labels)
