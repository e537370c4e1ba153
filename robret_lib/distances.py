"""Distances between embeddings: one matrix product for all of them, right for nearly equal embeddings too.

The product gives ``|q|^2 - 2 q x + |x|^2``, which loses the digits of every distance that is small beside the lengths
of q and x: those of a collapsed model, or of embeddings far from the origin. So both sides are taken relative to a
central item of the gallery first, which changes no distance. Where a gallery has several such lumps, one center does
not do: what is reported (metrics, ranks) is then measured in float64; what an attack descends along is not.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Centered(NamedTuple):
    """A gallery made ready to measure many distances to it.

    Args:
        center: A central item ``[D]``, see `center_of`.
        columns: The items less the center, ``[D, B]``, contiguous, since the product is fastest so.
        squares: Their squared lengths ``[B]``.
    """

    center: Tensor
    columns: Tensor
    squares: Tensor

    @classmethod
    def of(cls, gallery: Tensor) -> "Centered":
        """Prepare embeddings ``[B, D]``."""
        center = center_of(gallery)
        items = gallery.to(center.dtype) - center
        return cls(center, items.T.contiguous(), items.square().sum(1))

    def distances_from(self, queries: Tensor, distance: str = "N") -> Tensor:
        """Distances ``[A, B]`` from embeddings ``[A, D]`` to all items, see `pairwise_distance`."""
        if distance not in ("N", "E", "C", "H"):
            raise ValueError(f'distance={distance!r}: expected "N", "E", "C" or "H"')
        with torch.autocast(queries.device.type, enabled=False):  # in bfloat16, whole classes would tie
            queries = queries.to(self.center.dtype) - self.center
            products = torch.addmm(self.squares, queries, self.columns, alpha=-2)
            squared = products.add_(queries.square().sum(1, keepdim=True)).clamp_(min=0)
            if distance == "H":
                return squared.div_(4)
            return squared.div_(2) if distance == "C" else squared.sqrt_()

    def pulled_back(self, slopes: Tensor, queries: Tensor, distances: Tensor, distance: str = "N") -> Tensor:
        """The gradient ``[A, D]`` by the queries of a function of their distances: one matrix product.

        With a_x the slope by d(q, x): ``sum_x a_x (q - x) / d(q, x)``, or ``sum_x a_x (q - x)`` for "C".

        Args:
            slopes: ``[A, B]``; overwritten.
            queries, distances: ``[A, D]``, and what `distances_from` gives for them.
            distance: As there.
        """
        if distance != "C":
            slopes /= distances.masked_fill(distances == 0, torch.inf)  # an item at the query itself has no slope
        total = slopes.sum(1, keepdim=True) * (queries.to(self.center.dtype) - self.center)
        return total.addmm_(slopes, self.columns.T, alpha=-1).to(queries.dtype)


def pairwise_distance(queries: Tensor, gallery: Tensor, distance: str = "N") -> Tensor:
    """Distances ``[A, B]`` between ``[A, D]`` and ``[B, D]``.

    Args:
        queries, gallery: Embeddings; unit vectors for distance "N" and "C".
        distance: "N" and "E" are Euclidean, "C" is 1 - cosine, which for unit vectors is half the squared distance;
            "H" is the Hamming distance of codes in {-1, +1}, a quarter of it.

    One matrix product instead of a difference tensor: fast, but a vector's distance to itself comes out as up to about
    1e-3 of the size of the gallery rather than 0. Find self by index, never by the smallest distance.
    """
    return Centered.of(gallery).distances_from(queries, distance)


def row_distance(u: Tensor, v: Tensor, distance: str = "N", offset: float = 0.0) -> Tensor:
    """Distances ``[*]`` between the rows of two broadcastable ``[*, D]``.

    Args:
        u, v: Embeddings; unit vectors for distance "N" and "C".
        distance: As in `pairwise_distance`.
        offset: Added to every coordinate of the difference, for "N" and "E". With 0 the gradient of the distance
            between equals is zero; PyTorch's losses have 1e-6, which gives it one.
    """
    if distance == "C":
        return (u - v).square().sum(-1) / 2
    if distance == "H":
        return (u - v).square().sum(-1) / 4
    difference = u - v + offset if offset else u - v
    return torch.linalg.vector_norm(difference, dim=-1)


def center_of(gallery: Tensor) -> Tensor:
    """The item ``[D]`` of embeddings ``[B, D]`` nearest to their mean, in their type, but at least float32.

    An item and not the mean itself: differences of nearby numbers of one type are exact, so what lies on a grid
    (codes, counts, a collapsed model far from the origin) still does relative to it, and equal distances stay equal.
    """
    if not len(gallery):
        raise ValueError(f"embeddings of shape {tuple(gallery.shape)}: expected at least one item to measure from")
    total = torch.zeros(gallery.shape[1], dtype=torch.float64, device=gallery.device)
    for part in gallery.split(4096):  # float32 sums of large numbers would miss the mean by more than the spread
        total += part.sum(0, dtype=torch.float64)
    mean = total / len(gallery)
    nearness = torch.cat([(part - mean).square().sum(1) for part in gallery.split(4096)])
    return gallery[nearness.argmin()].to(torch.promote_types(gallery.dtype, torch.float32))


def relative(embeddings: Tensor, center: Tensor) -> Tensor:
    """Embeddings ``[A, D]`` less the center, as contiguous float32: subtracted first, then rounded."""
    return (embeddings.to(center.dtype) - center).float().contiguous()


def doubtful_below(query_squares: Tensor, largest: Tensor) -> Tensor:
    """The squared distance ``[A, 1]`` below which fewer than three digits from the float32 product are right.

    Args:
        query_squares, largest: Squared lengths of the queries ``[A]`` and of the longest item, relative to the center.
    """
    return 1e3 * torch.finfo(torch.float32).eps * (query_squares + largest)[:, None]


def squared_exactly(queries: Tensor, gallery: Tensor, center: Tensor, chunk: int = 8192) -> Tensor:
    """Squared Euclidean distances ``[A, B]``, computed in float64, returned as float32; ``chunk`` items at once."""
    center = center.double()
    queries = queries.double() - center
    lengths, found = queries.square().sum(1, keepdim=True), []
    for part in gallery.split(chunk):
        items = part.double() - center
        scale = lengths + items.square().sum(1)
        squared = torch.addmm(scale, queries, items.T, alpha=-2)
        found.append(squared.masked_fill_(squared < 1e-14 * scale, 0).float())  # below that, float64 has no digit
    return torch.cat(found, dim=1)


def check_embeddings(name: str, embeddings: Tensor) -> None:
    """Raise a ValueError where nothing can be ranked: NaN, infinity, or squares beyond the range of float32."""
    if not embeddings.numel():
        return
    low, high = (bound.item() for bound in embeddings.aminmax())
    if not (-torch.inf < low and high < torch.inf):  # in this direction NaN is found too
        raise ValueError(f"{name} hold NaN or infinity: nothing can be ranked by them")
    largest, bound = max(-low, high), (torch.finfo(torch.float32).max / 4 / embeddings.shape[1]) ** 0.5
    if 0 < largest < 1e-16:
        raise ValueError(f"{name} stay below {largest:.3g}, where squared distances vanish: multiply all by a number")
    if largest > bound:
        raise ValueError(
            f"{name} reach {largest:.3g}, where squared distances overflow: divide all of them by a number"
        )
