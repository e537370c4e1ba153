"""Losses over the whole gallery, written so that their gradient costs at most one matrix product.

A candidate attack leaves all distances but one unchanged, so its hinge is a function of that one distance: look up
its rank among the sorted benign distances. An attack on a query moves all distances at once: one product gives them,
a second one their gradient.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robret_lib.attacks.gallery import Gallery
from robret_lib.mining import Mode


class SortedDistances:
    """Benign distances of queries to the gallery, sorted once, to turn a distance into a rank and a hinge.

    Args:
        distances: ``[B, w, N]``.
    """

    def __init__(self, distances: Tensor) -> None:
        self.size = distances.shape[-1]
        self.values = distances.sort(dim=-1).values
        # float64: a float32 running sum over a large gallery loses the digits the hinge is made of
        sums = self.values.cumsum(-1, dtype=torch.float64)
        self.sums = torch.cat([torch.zeros_like(sums[..., :1]), sums], dim=-1)

    def rank(self, distance: Tensor) -> Tensor:
        """Number of gallery items closer than the distance, int64 ``[B, w]``."""
        return torch.searchsorted(self.values, distance.detach()[..., None])[..., 0]

    def hinge(self, distance: Tensor, raised: bool) -> Tensor:
        """Mean over x of ``[t - d_x]_+`` (raised) or ``[d_x - t]_+`` at t = ``distance [B, w]``.

        Piecewise linear in t: with k items closer, the first is ``(k t - sum of the k smallest) / N``.
        """
        closer = self.rank(distance)
        below = self.sums.gather(-1, closer[..., None])[..., 0]
        if raised:
            return (closer * distance - below) / self.size
        return (self.sums[..., -1] - below - (self.size - closer) * distance) / self.size


class HingeItems(NamedTuple):
    """What the hinges of a batch of queries are made of.

    Args:
        gallery: The items the hinges are a mean over, and behind them the candidates where these are not among them.
        candidates: Their positions there, ``[B, m]``.
        counted: How many items the mean is over.
    """

    gallery: Gallery
    candidates: Tensor
    counted: int

    @classmethod
    def of(cls, gallery: Gallery, candidates: Tensor, mode: Mode) -> "HingeItems":
        """Over all items, or in "fixed" over `Gallery.sample`; candidates are gallery positions ``[B, m]``.

        With the 60,000 training images of Fashion-MNIST as gallery (C2F2 half as wide, 32 steps of 3/255 within
        77/255), what the sample changes in the mean percentile rank is a small part of that rank's standard error,
        and within two of its own: QA+ 4.93 +- 1.19 by +0.07 +- 0.05 (192 queries), QA- 76.5 +- 2.4 by -0.02 +- 0.11,
        QA+ of ten candidates 41.4 +- 0.9 by +0.14 +- 0.18 (96 queries). Of queries that reach a rank below 0.05 it
        leaves 0.005 more, three items of 60,000: with so few in front, the sample may hold none.
        """
        if mode == "reference" or len(gallery.sample) == len(gallery):
            return cls(gallery, candidates, len(gallery))
        counted = len(gallery.sample)
        embeddings = torch.cat([gallery.sample, gallery.embeddings[candidates.flatten()]])
        places = torch.arange(counted, len(embeddings), device=candidates.device).view_as(candidates)
        return cls(Gallery(embeddings, gallery.distance), places, counted)


class QueryHinges(torch.autograd.Function):
    """Mean over the items of ``[s (d(q, c) - d(q, x))]_+`` for each candidate c: ``[B, m]``.

    Written as a Function because plain autograd would keep and walk six ``[B, N]`` matrices a candidate; here one
    is kept, and the gradient is one matrix product however many candidates there are.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: HingeItems, signs: Tensor) -> Tensor:
        """Queries ``[B, D]``; signs are ``[m]`` (+-1)."""
        distances = items.gallery.distances_from(queries)
        to_candidate = distances.gather(1, items.candidates)
        ctx.save_for_backward(queries, signs, distances, to_candidate)
        ctx.items = items
        counted = distances[:, : items.counted]
        hinges = [
            torch.sub(d[:, None], counted).mul_(sign).relu_().mean(1)
            for d, sign in zip(to_candidate.T, signs, strict=True)
        ]
        return torch.stack(hinges, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, signs, distances, to_candidate = ctx.saved_tensors
        gallery, candidates, counted = ctx.items
        weights = upstream * signs / counted
        slopes = torch.zeros_like(distances)
        for d, candidate, weight, sign in zip(to_candidate.T, candidates.T, weights.T, signs, strict=True):
            active = torch.sub(d[:, None], distances[:, :counted]).mul_(sign).gt_(0)
            slopes[:, :counted].addcmul_(active, weight[:, None], value=-1)
            slopes.scatter_add_(1, candidate[:, None], (weight * active.sum(1))[:, None])
        return gallery.pulled_back(slopes, queries, distances), None, None


class ItemSets:
    """A set of gallery items for each query, in the form in which its minimum is found fastest.

    Args:
        chosen: Which items, bool ``[B, N]``.
    """

    def __init__(self, chosen: Tensor) -> None:
        self.left_out = ~chosen
        empty = self.left_out.all(1)
        self.empty = empty if empty.any() else None  # which sets hold nothing, ``[B]``; None if there is no such set


class SoftMargin(torch.autograd.Function):
    """Soft minimum of the distances to one set of items minus that to another, ``[B]``.

    The soft minimum at temperature T is ``-T log sum_x exp(-d(q, x) / T)``; its slope by d(q, x) is the softmax of
    ``-d / T``. A set without items counts as a constant: 0, without a slope.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, gallery: Gallery, others: ItemSets, own: ItemSets, temperature: float
    ) -> Tensor:
        """Queries ``[B, D]``."""
        distances = gallery.distances_from(queries)
        closeness = distances * (-1 / temperature)
        log_sum_others, slopes = _log_sum_and_softmax(closeness, others)
        log_sum_own, weights = _log_sum_and_softmax(closeness, own)
        ctx.save_for_backward(queries, distances, slopes.sub_(weights))
        ctx.gallery = gallery
        return temperature * (log_sum_own - log_sum_others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, distances, slopes = ctx.saved_tensors
        return ctx.gallery.pulled_back(slopes * upstream[:, None], queries, distances), None, None, None, None


def _log_sum_and_softmax(closeness: Tensor, items: ItemSets) -> tuple[Tensor, Tensor]:
    """``log sum_x exp(closeness)`` over each set ``[B]``, and the softmax ``[B, N]``, zero outside of the set.

    The sum follows from the largest entry and its weight, which spares a second pass over the exponentials.
    """
    masked = closeness.masked_fill(items.left_out, -torch.inf)
    largest, position = masked.max(1)
    weights = masked.softmax(1)
    log_sum = largest - weights.gather(1, position[:, None])[:, 0].log()
    if items.empty is not None:
        log_sum, weights = log_sum.masked_fill(items.empty, 0), weights.masked_fill(items.empty[:, None], 0)
    return log_sum, weights
