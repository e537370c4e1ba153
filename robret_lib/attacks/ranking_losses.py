"""The losses of the ranking attacks: hinges on distances, written so that their gradient costs one matrix product.

Both are sums over the whole gallery. A candidate attack leaves all distances but one unchanged, so its hinge is a
function of that one distance: look up its rank among the sorted benign distances. A query attack moves all
distances at once: one product gives them, a second one their gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robret_lib.models import Distance


def gallery_distance(queries: Tensor, columns: Tensor, squares: Tensor, distance: Distance) -> Tensor:
    """Distances ``[B, N]`` to a gallery: `metrics.pairwise_distance` for many calls with one gallery.

    Args:
        queries: Embeddings ``[B, D]``; unit vectors for distance "N" and "C".
        columns: The gallery as ``[D, N]``, in the memory order in which the product is fastest.
        squares: Its squared lengths ``[N]``.
        distance: See `Distance`.
    """
    with torch.autocast(queries.device.type, enabled=False):  # in bfloat16, whole classes would tie
        if distance == "C":
            return 1 - queries @ columns
        products = torch.addmm(squares, queries, columns, alpha=-2)
        return products.add_(queries.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()


def row_distance(queries: Tensor, candidates: Tensor, distance: Distance) -> Tensor:
    """Distances ``[B, m]`` between the rows of two ``[B, m, D]``; the gradient where they are equal is zero."""
    if distance == "C":
        return 1 - (queries * candidates).sum(-1)
    return torch.linalg.vector_norm(queries - candidates, dim=-1)


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


class QueryHinges(torch.autograd.Function):
    """Mean over the gallery of ``[s (d(q, c) - d(q, x))]_+`` for each candidate c: ``[B, m]``.

    Written as a Function because plain autograd would keep and walk six ``[B, N]`` matrices a candidate; here one
    is kept, and the gradient is one matrix product however many candidates there are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        columns: Tensor,
        squares: Tensor,
        candidates: Tensor,
        signs: Tensor,
        distance: Distance,
    ) -> Tensor:
        """See `gallery_distance`; candidates are gallery positions ``[B, m]``, signs are ``[m]`` (+-1)."""
        distances = gallery_distance(queries, columns, squares, distance)
        to_candidate = distances.gather(1, candidates)
        ctx.save_for_backward(queries, columns, candidates, signs, distances, to_candidate)
        ctx.distance = distance
        hinges = [
            torch.sub(d[:, None], distances).mul_(sign).relu_().mean(1)
            for d, sign in zip(to_candidate.T, signs, strict=True)
        ]
        return torch.stack(hinges, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """With a_x the derivative by d(q, x): ``grad = sum_x a_x (q - x) / d(q, x)``, or ``- sum_x a_x x`` for "C"."""
        queries, columns, candidates, signs, distances, to_candidate = ctx.saved_tensors
        weights = upstream * signs / columns.shape[1]
        by_distance = torch.zeros_like(distances)
        for d, candidate, weight, sign in zip(to_candidate.T, candidates.T, weights.T, signs, strict=True):
            active = torch.sub(d[:, None], distances).mul_(sign).gt_(0)
            by_distance.addcmul_(active, weight[:, None], value=-1)
            by_distance.scatter_add_(1, candidate[:, None], (weight * active.sum(1))[:, None])
        if ctx.distance == "C":
            return -(by_distance @ columns.T), None, None, None, None, None
        by_distance /= distances.masked_fill(distances == 0, torch.inf)  # an item at the query itself has no slope
        total = by_distance.sum(1, keepdim=True) * queries
        return total.addmm_(by_distance, columns.T, alpha=-1), None, None, None, None, None
