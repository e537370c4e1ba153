"""SPC-2 batches and the five triplet samplers. Every sampler is one vectorized draw from a mask over the batch."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Mode = Literal["fixed", "reference"]
"""`reference` repeats what the published code does, bugs included; `fixed` is what its paper says."""


class Triplets(NamedTuple):
    """Positions in the batch, int64 ``[P]`` each; anchors are the first of every pair."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


class Sampler(Protocol):
    """Draws one triplet per pair of an SPC-2 batch.

    Args:
        distances: ``[2P, 2P]`` between the embeddings of the batch.
        labels: int ``[2P]``.
        margin: Of the triplet loss; only semihard looks at it.
        generator: On the device of the distances; the only randomness.
        mode: Only softhard differs.
    """

    def __call__(
        self, distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed"
    ) -> Triplets: ...


def spc2_epoch(
    labels: Tensor, pairs: int, generator: torch.Generator, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Batches of two samples per class for one pass over the data (RobRank's loader).

    Each image once, in random order, followed by a partner drawn uniformly from its class, itself included.
    That is ``ceil(ceil(N / world) / pairs)`` batches, of which the last may be smaller.

    Args:
        labels: int ``[N]``, on the CPU.
        pairs: Pairs P per batch.
        generator: On the CPU, in the same state in all processes.
        rank, world: This process and the number of processes that share the pass; the first images fill up the
            shards that would be one short.

    Yields:
        Dataset positions int64 ``[2P]``, ordered anchor, partner, anchor, partner.
    """
    by_class = labels.argsort(stable=True)
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    order = torch.randperm(len(labels), generator=generator)
    offsets = (torch.rand(len(labels), generator=generator, dtype=torch.float64) * sizes[labels[order]]).long()
    partners = by_class[starts[labels[order]] + offsets]
    padding = torch.arange(-len(order) % world)
    order, partners = (torch.cat([part, part[padding]])[rank::world] for part in (order, partners))
    for anchor, partner in zip(order.split(pairs), partners.split(pairs), strict=True):
        yield torch.stack([anchor, partner], dim=1).flatten()


def shuffled_epoch(
    size: int, batch: int, generator: torch.Generator, rank: int = 0, world: int = 1
) -> Iterator[Tensor]:
    """Batches of one pass over ``size`` images in random order; arguments and what is yielded as in `spc2_epoch`."""
    order = torch.randperm(size, generator=generator)
    order = torch.cat([order, order[torch.arange(-size % world)]])[rank::world]
    yield from order.split(batch)


def random(
    distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed"
) -> Triplets:
    """Negative: uniform over the other classes. Positive: the partner."""
    anchor, partner = _pairs(distances)
    return Triplets(anchor, partner, _draw(_other_class(labels), generator))


def semihard(
    distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed"
) -> Triplets:
    """Negative: uniform where ``d_ap < d_an < d_ap + margin``, any negative if there is none (Schroff et al. 2015)."""
    anchor, partner = _pairs(distances)
    d_ap = distances[anchor, partner][:, None]
    d_an = distances[anchor]
    other = _other_class(labels)
    mask = other & (d_ap < d_an) & (d_an < d_ap + margin)
    return Triplets(anchor, partner, _draw(_or_all(mask, other), generator))


def softhard(
    distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed"
) -> Triplets:
    """Negative: closer than the furthest positive. Positive: further than the nearest negative (Roth et al. 2020).

    Both uniform, any negative or positive if there is none. RobRank lets the anchor be its own positive, in the
    draw and in the fallback; mode "reference" keeps that, "fixed" excludes it.
    """
    anchor, _ = _pairs(distances)
    d = distances[anchor]
    other = _other_class(labels)
    same = ~other
    if mode == "fixed":
        same = same.scatter(1, anchor[:, None], False)
    furthest_positive = d.masked_fill(other, -torch.inf).amax(1, keepdim=True)
    nearest_negative = d.masked_fill(~other, torch.inf).amin(1, keepdim=True)
    negative = _draw(_or_all(other & (d < furthest_positive), other), generator)
    positive = _draw(_or_all(same & (d > nearest_negative), same), generator)
    return Triplets(anchor, positive, negative)


def distance(
    distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed", dim: int = 512
) -> Triplets:
    """Negative: weighted by the inverse density of distances on the unit sphere (Wu et al. 2017, eq. 4).

    ``log 1/q(d) = (2 - D) log d - (D - 3)/2 log(1 - d^2/4)``, D = ``dim``. RobRank sets no cutoff on d, so in
    high dimension nearly all the weight falls on the nearest negative, as long as none is almost antipodal.
    """
    anchor, partner = _pairs(distances)
    other = _other_class(labels)
    d = distances[anchor].double().clamp(1e-4, 2 - 1e-4)
    log_weight = (2 - dim) * d.log() - (dim - 3) / 2 * (1 - d.square() / 4).log()
    log_weight = log_weight.masked_fill(~other, -torch.inf)
    weight = (log_weight - log_weight.amax(1, keepdim=True)).exp()
    return Triplets(anchor, partner, _draw(weight, generator))


def hard(
    distances: Tensor, labels: Tensor, margin: float, generator: torch.Generator, mode: Mode = "fixed"
) -> Triplets:
    """Negative: the nearest one. Positive: the partner."""
    anchor, partner = _pairs(distances)
    return Triplets(anchor, partner, distances[anchor].masked_fill(~_other_class(labels), torch.inf).argmin(1))


def _pairs(distances: Tensor) -> tuple[Tensor, Tensor]:
    anchor = torch.arange(0, len(distances), 2, device=distances.device)
    return anchor, anchor + 1


def _other_class(labels: Tensor) -> Tensor:
    """Bool ``[P, 2P]``: which samples are negatives of which anchor."""
    other = labels[0::2, None] != labels[None, :]
    if not other.any(1).all():
        raise ValueError("a batch of a single class has no negatives: expected at least two classes in every batch")
    return other


def _or_all(mask: Tensor, fallback: Tensor) -> Tensor:
    return torch.where(mask.any(1, keepdim=True), mask, fallback)


def _draw(weight: Tensor, generator: torch.Generator) -> Tensor:
    """One column per row, with probability proportional to the weight."""
    return torch.multinomial(weight.double(), 1, generator=generator)[:, 0]
