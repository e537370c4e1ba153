"""What the attacked images are searched in: benign embeddings, computed once, and the distances to them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from robret_lib.data import check_labels
from robret_lib.distances import Centered, check_embeddings, row_distance
from robret_lib.hamming import codes_of
from robret_lib.models import Distance, EmbeddingModel, distance_of, embed

SPREAD_SAMPLE = 256
"""From how many items `Gallery.spread` looks at all others."""

SPREAD_BYTES = 64 * 2**20
"""Size of one block of the distances it looks at."""

SAMPLE = 20_000
"""How many items `Gallery.sample` keeps of a larger gallery."""


class FirstAnswers(NamedTuple):
    """The first k answers to each of the N items, and how far they reach.

    Args:
        items: Their positions, the item itself left out, ``[N, k]``.
        reach: Distance to the last of them, float64 ``[N]``.
        next_reach: Distance to the one that moves up where any of them is taken away, float64 ``[N]``.
    """

    items: Tensor
    reach: Tensor
    next_reach: Tensor


@dataclass(frozen=True, eq=False)
class Gallery:
    """The benign gallery every attack is measured against.

    Args:
        embeddings: ``[N, D]``, unit vectors for distance "N" and "C", any outputs of a `HashModel` for "H".
        distance: Of the model that made them.
        labels: int ``[N]`` or multi-hot ``[N, C]``, for the attacks that look at classes.
        images: ``[N, C, H, W]``, for the attacks that embed them once more with another model.
    """

    embeddings: Tensor
    distance: Distance = "N"
    labels: Tensor | None = None
    images: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) < 2:
            raise ValueError(f"embeddings {tuple(self.embeddings.shape)}: expected [N, D] with N of at least 2")
        check_embeddings("gallery embeddings", self.embeddings)
        for name, given in (("labels", self.labels), ("images", self.images)):
            if given is not None and len(given) != len(self):
                raise ValueError(f"{len(given)} {name} of {len(self)} embeddings: expected one each")
        if self.labels is not None:
            check_labels(self.labels)

    @classmethod
    def of(cls, model: EmbeddingModel, images: Tensor, labels: Tensor | None = None) -> "Gallery":
        """Embed gallery images ``[N, C, H, W]``; labels int ``[N]`` or multi-hot ``[N, C]``."""
        return cls(embed(model, images), distance_of(model), labels, images)

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def items(self) -> Tensor:
        """What distances are measured to, ``[N, D]``: the embeddings, or for "H" their signs."""
        return self.codes.to(self.embeddings) if self.distance == "H" else self.embeddings

    @cached_property
    def codes(self) -> Tensor:
        """Binary codes, int8 in {-1, +1} ``[N, bits]``: the signs of the embeddings, see `hamming.codes_of`."""
        return codes_of(self.embeddings)

    @cached_property
    def centered(self) -> Centered:
        """The items made ready for the distances to them."""
        return Centered.of(self.items)

    @cached_property
    def centered_exactly(self) -> Centered:
        """The same in float64."""
        return Centered.of(self.items.double())

    @cached_property
    def length(self) -> Tensor:
        """Root mean square length of the items, a scalar."""
        return self.items.square().sum(1).mean().sqrt()

    @cached_property
    def euclidean(self) -> "Gallery":
        """The same items under the Euclidean distance, which ranks unit vectors as the cosine distance does."""
        return self if self.distance != "C" else replace(self, distance="N")

    @cached_property
    def mean_distance(self) -> float:
        """Mean distance between two items, from an even sample of at most 256 of them to all others."""
        return self._mean_and_spread[0]

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the distances between two items, from the same sample.

        The unit in which a temperature means the same for every distance and every model.
        """
        return self._mean_and_spread[1]

    @cached_property
    def _mean_and_spread(self) -> tuple[float, float]:
        device, count = self.embeddings.device, min(SPREAD_SAMPLE, len(self))
        sample = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).long().to(device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for part in sample.split(max(1, SPREAD_BYTES // (8 * len(self)))):
            distances = self.distances(part).double().scatter_(1, part[:, None], 0)  # to itself: counts for nothing
            sums += torch.stack([distances.sum(), distances.square().sum()])
        mean, mean_square = sums / (count * (len(self) - 1))
        return mean.item(), (mean_square - mean.square()).clamp(min=0).sqrt().item()

    @cached_property
    def sample(self) -> Tensor:
        """The embeddings of 20,000 items that stand for all, or those of all where there are no more.

        One from each of as many stretches of equal length, at a place drawn with a fixed seed: as even as every
        third item, say, and no pattern in the order of the items can fall in with it.
        """
        if len(self) <= SAMPLE:
            return self.embeddings
        bounds = torch.arange(SAMPLE + 1) * len(self) // SAMPLE
        place = torch.rand(SAMPLE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        positions = bounds[:-1] + (place * bounds.diff()).long()
        return self.embeddings[positions.to(self.embeddings.device)]

    def first_answers(self, k: int) -> FirstAnswers:
        """The first k answers to each item; looked for once, and kept."""
        if k not in self._first_answers:
            nearest = self.nearest(torch.arange(len(self)), k + 1)
            reach, next_reach = (self._to(nearest[:, place]) for place in (k - 1, k))
            self._first_answers[k] = FirstAnswers(nearest[:, :k].clone(), reach, next_reach)
        return self._first_answers[k]

    @cached_property
    def _first_answers(self) -> dict[int, FirstAnswers]:
        return {}

    def _to(self, positions: Tensor) -> Tensor:
        """Distance from each item to the one at its position ``[N]``, float64."""
        pairs = zip(self.items.split(4096), positions.split(4096), strict=True)
        return torch.cat([row_distance(u.double(), self.items[at].double(), self.distance) for u, at in pairs])

    def distances(self, positions: Tensor) -> Tensor:
        """Distances ``[*, N]`` from the items at ``positions [*]`` to all items."""
        return self.distances_from(self.embeddings[positions.flatten()]).view(*positions.shape, len(self))

    def distances_from(self, queries: Tensor) -> Tensor:
        """Distances ``[A, N]`` from any embeddings ``[A, D]`` to all items."""
        return self.centered.distances_from(self._compared(queries), self.distance)

    def exact_distances_from(self, queries: Tensor) -> Tensor:
        """Distances ``[A, N]`` in float64, for ranks: float32 cannot tell neighbors where a gallery has collapsed."""
        return self.centered_exactly.distances_from(self._compared(queries), self.distance)

    def _compared(self, queries: Tensor) -> Tensor:
        """What of embeddings ``[A, D]`` is compared with the items: their signs for "H", which have no slope."""
        if self.distance != "H":
            return queries
        if queries.requires_grad:
            raise TypeError("a loss of Hamming distances has no slope: attack hash codes with attacks.codes")
        return codes_of(queries).to(queries)

    def pulled_back(self, slopes: Tensor, queries: Tensor, distances: Tensor) -> Tensor:
        """The gradient ``[A, D]`` by queries of a function of their distances, see `Centered.pulled_back`."""
        return self.centered.pulled_back(slopes, queries, distances, self.distance)

    def nearest(self, own: Tensor, size: int, chunk: int = 1024) -> Tensor:
        """Positions ``[B, size]`` of the nearest items of the items ``own [B]``, in order, themselves excluded."""
        own = own.to(self.embeddings.device)
        return self.nearest_to(self.embeddings[own], size, own, chunk)

    def nearest_to(self, queries: Tensor, size: int, own: Tensor | None = None, chunk: int = 1024) -> Tensor:
        """Positions ``[B, size]`` of the items nearest to any embeddings ``[B, D]``, in order.

        Args:
            queries: ``[B, D]``.
            size: How many.
            own: Positions ``[B]`` of the queries where they are items, which are then left out; None leaves out none.
            chunk: Queries at once; decides memory, not the result.
        """
        choices = len(self) - (own is not None)
        if size > choices:
            raise ValueError(f"{size} neighbors wanted of one image in a gallery of {len(self)}: use a larger gallery")
        nearest = []
        for start in range(0, len(queries), chunk):
            distances = self.distances_from(queries[start : start + chunk])
            if own is not None:
                distances.scatter_(1, own[start : start + chunk, None], torch.inf)
            if self.distance == "H":  # most items are tied with others: in the order of the gallery
                distances = distances.double() + torch.arange(len(self), device=distances.device) / len(self)
            nearest.append(distances.topk(size, dim=1, largest=False).indices)
        return torch.cat(nearest)
