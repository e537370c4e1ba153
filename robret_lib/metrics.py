"""How good is a ranking? Distances, Recall@k, mAP, mAP@R and NMI, in chunks, so that large galleries fit in memory."""

from collections.abc import Iterator, Sequence

import faiss
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
"""Size of one block of distances. Peak extra memory stays below eight such blocks (512 MiB) for any data set."""


def pairwise_distance(queries: Tensor, gallery: Tensor, distance: str = "N") -> Tensor:
    """Distances ``[A, B]`` between ``[A, D]`` and ``[B, D]``.

    Args:
        queries, gallery: Embeddings; unit vectors for distance "N" and "C".
        distance: "N" and "E" are Euclidean, "C" is 1 - cosine.

    One matrix product instead of a difference tensor: fast, but a vector's distance to itself comes out as
    about 1e-4 rather than 0. Find self by index, never by the smallest distance.
    """
    if distance not in ("N", "E", "C"):
        raise ValueError(f'distance={distance!r}: expected "N", "E" or "C"')
    with torch.autocast(queries.device.type, enabled=False):  # in bfloat16, whole classes would tie
        products = queries @ gallery.T
        if distance == "C":
            return 1 - products
        squares = queries.square().sum(1)[:, None] + gallery.square().sum(1)[None, :]
        return products.mul_(-2).add_(squares).clamp_(min=0).sqrt_()


def relevance(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Which gallery items answer which query, bool ``[A, B]``: same class, or for multi-hot labels a shared one."""
    if query_labels.ndim != gallery_labels.ndim:
        shapes = f"{tuple(query_labels.shape)} and {tuple(gallery_labels.shape)}"
        raise ValueError(f"labels of shapes {shapes}: expected both int [N], or both multi-hot [N, C]")
    if query_labels.ndim == 1:
        return query_labels[:, None] == gallery_labels[None, :]
    return query_labels.float() @ gallery_labels.float().T > 0


def recall_at_k(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    k: Sequence[int] = (1, 2, 4, 8),
    self_excluded: bool | Tensor = False,
) -> dict[int, float]:
    """Share of queries with a relevant item among their k nearest, in percent.

    Args:
        queries, gallery: Embeddings ``[A, D]`` and ``[B, D]``, ranked by Euclidean distance (on unit vectors the
            same order as cosine); ties go to the lower gallery index.
        query_labels, gallery_labels: int ``[A]``, ``[B]``, or multi-hot ``[A, C]``, ``[B, C]``.
        k: Depths, each from 1 to the size of the gallery.
        self_excluded: True where query i is gallery item i, or the gallery index of each query, int64 ``[A]``:
            that item is not an answer.

    Returns:
        ``{k: percent}``.
    """
    available = len(gallery) - (self_excluded is not False)
    if not k or min(k) < 1 or max(k) > available:
        raise ValueError(f"k={tuple(k)}: expected depths from 1 to {available}, the gallery items to choose from")
    found = torch.zeros(len(queries), max(k), dtype=torch.bool, device=gallery.device)
    for rows, distances, relevant in _chunks(queries, gallery, query_labels, gallery_labels, self_excluded):
        nearest = _nearest(distances, max(k))
        found[rows] = relevant.gather(1, nearest).cummax(1).values
    return {depth: 100 * found[:, depth - 1].double().mean().item() for depth in k}


def mean_average_precision(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    self_excluded: bool | Tensor = False,
) -> float:
    """mAP over the whole ranking, in percent: the precision at the rank of each relevant item, averaged.

    A query without any relevant item counts as 0. Arguments as in `recall_at_k`.
    """
    total = 0.0
    for _, distances, relevant in _chunks(queries, gallery, query_labels, gallery_labels, self_excluded):
        hits = relevant.gather(1, distances.sort(dim=1, stable=True).indices)
        total += _average_precision(hits, relevant.sum(1)).sum().item()
    return 100 * total / len(queries)


def map_at_r(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    r: int | None = None,
    self_excluded: bool | Tensor = False,
) -> float:
    """mAP@R in percent: 1/R times the sum of the precisions at the relevant items among the first R.

    Args:
        queries, gallery, query_labels, gallery_labels, self_excluded: As in `recall_at_k`.
        r: None takes each query's own number of relevant items (Musgrave et al. 2020); a number is the same R for
            all (RobRank prints R = 10). The two are different metrics; neither is mAP.
    """
    if r is not None and r < 1:
        raise ValueError(f"r={r}: expected at least 1, or None for each query's own number of relevant items")
    total = 0.0
    for _, distances, relevant in _chunks(queries, gallery, query_labels, gallery_labels, self_excluded):
        depth = relevant.sum(1) if r is None else torch.full((len(relevant),), r, device=relevant.device)
        nearest = _nearest(distances, min(max(1, int(depth.max())), relevant.shape[1]))
        hits = relevant.gather(1, nearest)
        hits &= torch.arange(hits.shape[1], device=hits.device) < depth[:, None]
        total += _average_precision(hits, depth).sum().item()
    return 100 * total / len(queries)


def nmi(embeddings: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Normalized mutual information, in percent, between the classes and a k-means with one cluster per class.

    Args:
        embeddings: ``[N, D]``.
        labels: int ``[N]``.
        seed: Of the k-means initialization, the only randomness.
    """
    if labels.ndim != 1 or len(labels) != len(embeddings) or not torch.isfinite(embeddings).all():
        shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"embeddings and labels of shapes {shapes}: expected finite [N, D] and one int class each [N]")
    points = embeddings.detach().float().cpu().contiguous().numpy()
    per_cluster = {"min_points_per_centroid": 1, "max_points_per_centroid": 10**6}  # no warning, and no subsampling
    kmeans = faiss.Kmeans(points.shape[1], len(labels.unique()), niter=50, seed=seed, **per_cluster)
    kmeans.train(points)
    clusters = kmeans.index.search(points, 1)[1][:, 0]
    return 100 * float(normalized_mutual_info_score(labels.cpu().numpy(), clusters))


def _average_precision(hits: Tensor, relevant: Tensor) -> Tensor:
    """Sum of precision@i over the hits of each ranked list ``[A, B]``, divided by ``relevant`` ``[A]``."""
    positions = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = hits.cumsum(1, dtype=torch.int32) / positions
    return precision.mul_(hits).sum(1, dtype=torch.float64) / relevant.clamp(min=1)


def _chunks(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, self_excluded: bool | Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of queries: their rows, distances ``[b, B]`` (infinite to self) and relevance ``[b, B]``."""
    _check(queries, gallery, query_labels, gallery_labels, self_excluded)
    own = torch.arange(len(queries)) if self_excluded is True else self_excluded
    size = max(1, CHUNK_BYTES // (4 * len(gallery)))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        distances = pairwise_distance(queries[rows].to(gallery.device).float(), gallery.float(), "E")
        relevant = relevance(query_labels[rows].to(gallery.device), gallery_labels.to(gallery.device))
        if own is not False:
            position = own[rows].to(gallery.device)[:, None]
            distances.scatter_(1, position, torch.inf)
            relevant.scatter_(1, position, False)
        yield rows, distances, relevant


def _nearest(distances: Tensor, k: int) -> Tensor:
    """Columns ``[A, k]`` of the k smallest entries of each row in order, ties by index: a stable sort, but faster."""
    values, indices = distances.topk(k, dim=1, largest=False)
    tied = (distances <= values[:, -1:]).sum(1) > k  # which of the equals at the end topk keeps is left open
    if tied.any():
        indices[tied] = distances[tied].sort(dim=1, stable=True).indices[:, :k]
        values[tied] = distances[tied].gather(1, indices[tied])
    by_index = indices.argsort(1)
    by_value = values.gather(1, by_index).argsort(dim=1, stable=True)
    return indices.gather(1, by_index.gather(1, by_value))


def _check(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, self_excluded: bool | Tensor
) -> None:
    fitting = queries.ndim == gallery.ndim == 2 and queries.shape[1] == gallery.shape[1]
    if not fitting or not len(queries) or not len(gallery):
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"queries and gallery of shapes {shapes}: expected [A, D] and [B, D] with A, B > 0")
    if len(query_labels) != len(queries) or len(gallery_labels) != len(gallery):
        counts = f"{len(query_labels)} and {len(gallery_labels)}"
        raise ValueError(f"{counts} labels for {len(queries)} queries and {len(gallery)} gallery items")
    if not (torch.isfinite(queries).all() and torch.isfinite(gallery).all()):
        raise ValueError("embeddings hold NaN or infinity: nothing can be ranked by them")
    if self_excluded is True and len(queries) > len(gallery):
        raise ValueError(f"self_excluded=True with {len(queries)} queries and a gallery of {len(gallery)}")
    if isinstance(self_excluded, Tensor):
        outside = (self_excluded < 0) | (self_excluded >= len(gallery))
        if self_excluded.shape != queries.shape[:1] or outside.any():
            expected = f"a gallery position from 0 to {len(gallery) - 1} for each of the {len(queries)} queries"
            raise ValueError(f"self_excluded of shape {tuple(self_excluded.shape)}: expected {expected}")
