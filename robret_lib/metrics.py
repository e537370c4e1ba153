"""How good is a ranking? Recall@k, mAP, mAP@R and NMI, in chunks, so that large galleries fit in memory."""

from collections.abc import Iterator, Sequence

import faiss
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from robret_lib.data import check_labels, relevance, same_kind
from robret_lib.distances import center_of, check_embeddings, doubtful_below, relative, squared_exactly
from robret_lib.distances import pairwise_distance as pairwise_distance  # chapters know it as metrics'
from robret_lib.hamming import hamming_map as hamming_map  # and so do users

CHUNK_BYTES = 64 * 2**20
"""Size of one block of distances. Peak extra memory stays below eight such blocks (512 MiB) and one float32 copy of the
gallery for any data set."""


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
    hits = hits_at_k(queries, gallery, query_labels, gallery_labels, k, self_excluded)
    return {depth: 100 * hit.double().mean().item() for depth, hit in hits.items()}


def hits_at_k(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    k: Sequence[int] = (1, 2, 4, 8),
    self_excluded: bool | Tensor = False,
) -> dict[int, Tensor]:
    """Which queries have a relevant item among their k nearest: ``{k: bool [A]}``, on the gallery's device.

    Arguments as in `recall_at_k`, which is the mean of this.
    """
    available = len(gallery) - (self_excluded is not False)
    if not k or min(k) < 1 or max(k) > available:
        raise ValueError(f"k={tuple(k)}: expected depths from 1 to {available}, the gallery items to choose from")
    query_labels, gallery_labels = _checked(queries, gallery, query_labels, gallery_labels, self_excluded)
    found = torch.zeros(len(queries), max(k), dtype=torch.bool, device=gallery.device)
    for rows, hits in _hits(queries, gallery, query_labels, gallery_labels, max(k), self_excluded):
        found[rows] = hits.cummax(1).values
    return {depth: found[:, depth - 1] for depth in k}


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
    query_labels, gallery_labels = _checked(queries, gallery, query_labels, gallery_labels, self_excluded)
    total, gallery_labels = 0.0, gallery_labels.to(gallery.device)
    for rows, distances in _blocks(queries, gallery, self_excluded):
        relevant = _relevant(rows, query_labels, gallery_labels, self_excluded)
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
    query_labels, gallery_labels = _checked(queries, gallery, query_labels, gallery_labels, self_excluded)
    available = len(gallery) - (self_excluded is not False)
    depths = _relevant_items(query_labels, gallery_labels, self_excluded) if r is None else torch.tensor([r])
    deepest, total = min(max(1, int(depths.max())), available), 0.0
    for rows, hits in _hits(queries, gallery, query_labels, gallery_labels, deepest, self_excluded):
        depth = (depths[rows] if r is None else depths).to(hits.device)
        hits &= torch.arange(deepest, device=hits.device) < depth[:, None]
        total += _average_precision(hits, depth).sum().item()
    return 100 * total / len(queries)


def nmi(embeddings: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Normalized mutual information, in percent, between the classes and a k-means with one cluster per class.

    Args:
        embeddings: ``[N, D]``.
        labels: int ``[N]``.
        seed: Of the k-means initialization, the only randomness.
    """
    check_labels(labels)
    if labels.ndim != 1 or len(labels) != len(embeddings):
        shapes = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"embeddings and labels of shapes {shapes}: expected [N, D] and one int class each [N]")
    check_embeddings("embeddings", embeddings)
    embeddings = embeddings.detach().cpu()
    points = relative(embeddings, center_of(embeddings)).numpy()
    per_cluster = {"min_points_per_centroid": 1, "max_points_per_centroid": 10**6}  # no warning, and no subsampling
    kmeans = faiss.Kmeans(points.shape[1], len(labels.unique()), niter=50, seed=seed, **per_cluster)
    kmeans.train(points)
    clusters = kmeans.index.search(points, 1)[1][:, 0]
    return 100 * float(normalized_mutual_info_score(labels.long().cpu().numpy(), clusters))


def _average_precision(hits: Tensor, relevant: Tensor) -> Tensor:
    """Sum of precision@i over the hits of each ranked list ``[A, B]``, divided by ``relevant`` ``[A]``."""
    positions = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = hits.cumsum(1, dtype=torch.int32) / positions
    return precision.mul_(hits).sum(1, dtype=torch.float64) / relevant.clamp(min=1)


def _blocks(
    queries: Tensor, gallery: Tensor, self_excluded: bool | Tensor, more: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of queries: their rows, and what ranks the gallery for them, ``[b, B]``, infinite to self.

    That is the squared Euclidean distance less a constant of the query. The next block overwrites it. ``more`` is
    what else the caller keeps for a query, in bytes.
    """
    queries, center = queries.to(gallery.device), center_of(gallery)
    columns = relative(gallery, center).T
    squares = columns.square().sum(0)
    largest = squares.max()
    excluded = self_excluded is not False
    size = max(1, CHUNK_BYTES // max(4 * len(gallery), more))
    block = torch.empty(min(size, len(queries)), len(gallery), dtype=torch.float32, device=gallery.device)
    for rows in _slices(len(queries), size):
        distances = block[: rows.stop - rows.start]
        with torch.no_grad(), torch.autocast(gallery.device.type, enabled=False):
            nearby = relative(queries[rows], center)
            lengths = nearby.square().sum(1)
            torch.addmm(squares, nearby, columns, alpha=-2, out=distances)
            limit = doubtful_below(lengths, largest) - lengths[:, None]
            doubtful = (distances < limit).sum(1) > 1 + excluded
            if doubtful.any():
                distances[doubtful] = squared_exactly(queries[rows][doubtful], gallery, center)
        if excluded:
            distances.scatter_(1, _own(rows, self_excluded, gallery.device), torch.inf)
        yield rows, distances


def _hits(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    k: int,
    self_excluded: bool | Tensor,
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of queries: their rows, and whether each of their k nearest items, in order, is relevant, ``[b, k]``."""
    query_labels, gallery_labels = query_labels.to(gallery.device), gallery_labels.to(gallery.device)
    search = _by_faiss if gallery.device.type == "cpu" else _by_torch
    for rows, values, positions, doubtful in search(queries, gallery, k, self_excluded, _width(gallery_labels)):
        hits = _shares_class(query_labels[rows, None], gallery_labels[positions])
        _settle_order(values, positions, hits)
        lost = (values[:, k - 1 : -1] == values[:, k:]).any(1)  # of equals at the end, any may have been kept
        lost |= doubtful
        if lost.any():
            excluded = False if self_excluded is False else _own(rows, self_excluded, lost.device)[lost, 0]
            order = _in_order(queries[rows][lost.to(queries.device)], gallery, hits.shape[1], excluded)
            hits[lost] = _shares_class(query_labels[rows][lost][:, None], gallery_labels[order])
        yield rows, hits[:, :k]


def _settle_order(values: Tensor, positions: Tensor, hits: Tensor) -> None:
    """In place: among equal distances the lower index comes first. It matters where one is a hit and one is not."""
    equal = values[:, 1:] == values[:, :-1]
    rows = (equal & (hits[:, 1:] != hits[:, :-1])).any(1)
    if rows.any():
        by_index = positions[rows].argsort(1)
        by_value = values[rows].gather(1, by_index).argsort(dim=1, stable=True)
        hits[rows] = hits[rows].gather(1, by_index.gather(1, by_value))


def _by_torch(
    queries: Tensor, gallery: Tensor, k: int, self_excluded: bool | Tensor, width: int
) -> Iterator[tuple[slice, Tensor, Tensor, bool]]:
    """Blocks of queries: their rows, the k + 1 smallest distances if there are so many, their positions, and doubts."""
    available = len(gallery) - (self_excluded is not False)
    for rows, distances in _blocks(queries, gallery, self_excluded, width * (k + 1)):
        yield rows, *distances.topk(min(k + 1, available), dim=1, largest=False), False


def _by_faiss(
    queries: Tensor, gallery: Tensor, k: int, self_excluded: bool | Tensor, width: int
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """As `_by_torch`; on the CPU faiss is the faster of the two. Says for each query whether its order is in doubt."""
    center = center_of(gallery.detach())
    queries, items = queries.detach().cpu(), relative(gallery.detach(), center)
    excluded, largest = self_excluded is not False, items.square().sum(1).max()
    wanted = min(k + 1 + excluded, len(gallery))
    for rows in _slices(len(queries), max(1, CHUNK_BYTES // (width * (k + 2)))):
        nearby = relative(queries[rows], center)
        values, positions = map(torch.from_numpy, faiss.knn(nearby.numpy(), items.numpy(), wanted))
        if excluded:
            found, place = (positions == _own(rows, self_excluded, items.device)).max(1, keepdim=True)
            columns = torch.arange(wanted - 1).expand(len(positions), -1)
            columns = columns + (found & (columns >= place))  # step over self, where it is among them
            values, positions = values.gather(1, columns), positions.gather(1, columns)
        limit = doubtful_below(nearby.square().sum(1), largest)
        yield rows, values, positions, (values[:, 1:2] < limit).any(1)


def _in_order(queries: Tensor, gallery: Tensor, k: int, self_excluded: bool | Tensor) -> Tensor:
    """Positions ``[A, k]`` of the nearest items, in order, ties by index: a whole stable sort, for the few that tie."""
    sorted_bytes = 12 * len(gallery)  # a distance and a position of each item
    blocks = _blocks(queries, gallery, self_excluded, sorted_bytes)
    sorts = (distances.sort(dim=1, stable=True) for _, distances in blocks)
    return torch.cat([order[:, :k].clone() for _, order in sorts])


def _shares_class(query_labels: Tensor, item_labels: Tensor) -> Tensor:
    """Relevance ``[b, k]`` of items to queries: labels ``[b, 1]`` and ``[b, k]``, or multi-hot with one axis more."""
    if item_labels.ndim == 2:
        return item_labels == query_labels
    return (item_labels.bool() & query_labels.bool()).any(-1)


def _width(labels: Tensor) -> int:
    """Bytes that one found item takes: its distance, its position, its labels and what is made of them."""
    return 32 if labels.ndim == 1 else 32 + 3 * labels.shape[1]


def _relevant(rows: slice, query_labels: Tensor, gallery_labels: Tensor, self_excluded: bool | Tensor) -> Tensor:
    """Relevance ``[b, B]`` of the gallery to the queries of a block, self left out."""
    relevant = relevance(query_labels[rows].to(gallery_labels.device), gallery_labels)
    if self_excluded is not False:
        relevant.scatter_(1, _own(rows, self_excluded, relevant.device), False)
    return relevant


def _relevant_items(query_labels: Tensor, gallery_labels: Tensor, self_excluded: bool | Tensor) -> Tensor:
    """How many items are relevant to each query, int64 ``[A]``."""
    if query_labels.ndim == 1 and self_excluded is False:
        return _class_sizes(query_labels, gallery_labels)
    if query_labels.ndim == 1:
        own = gallery_labels[_own(slice(0, len(query_labels)), self_excluded, gallery_labels.device)[:, 0]]
        return _class_sizes(query_labels, gallery_labels) - (own == query_labels.to(own.device)).long()
    slices = _slices(len(query_labels), max(1, CHUNK_BYTES // (4 * len(gallery_labels))))
    return torch.cat([_relevant(rows, query_labels, gallery_labels, self_excluded).sum(1) for rows in slices])


def _class_sizes(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """How many items have the class of each query, int64 ``[A]``."""
    classes, sizes = gallery_labels.unique(return_counts=True)
    query_labels = query_labels.to(classes.device)
    place = torch.searchsorted(classes, query_labels).clamp_(max=len(classes) - 1)
    return sizes[place].where(classes[place] == query_labels, 0)


def _own(rows: slice, self_excluded: bool | Tensor, device: torch.device) -> Tensor:
    """The gallery position of each query of a block, ``[b, 1]``."""
    own = torch.arange(rows.start, rows.stop) if self_excluded is True else self_excluded[rows]
    return own.to(device)[:, None]


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _checked(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, self_excluded: bool | Tensor
) -> tuple[Tensor, Tensor]:
    """The labels, all of one type."""
    fitting = queries.ndim == gallery.ndim == 2 and queries.shape[1] == gallery.shape[1]
    if not fitting or not len(queries) or not len(gallery):
        shapes = f"{tuple(queries.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"queries and gallery of shapes {shapes}: expected [A, D] and [B, D] with A, B > 0")
    if len(query_labels) != len(queries) or len(gallery_labels) != len(gallery):
        counts = f"{len(query_labels)} and {len(gallery_labels)}"
        raise ValueError(f"{counts} labels for {len(queries)} queries and {len(gallery)} gallery items")
    query_labels, gallery_labels = same_kind(query_labels, gallery_labels)
    check_embeddings("queries", queries)
    check_embeddings("gallery", gallery)
    if self_excluded is True and len(queries) > len(gallery):
        raise ValueError(f"self_excluded=True with {len(queries)} queries and a gallery of {len(gallery)}")
    if not isinstance(self_excluded, bool | Tensor):
        raise ValueError(f"self_excluded={self_excluded!r}: expected True, False, or gallery positions, int64 [A]")
    if isinstance(self_excluded, Tensor):
        outside = (self_excluded < 0) | (self_excluded >= len(gallery))
        if self_excluded.shape != queries.shape[:1] or outside.any():
            expected = f"a gallery position from 0 to {len(gallery) - 1} for each of the {len(queries)} queries"
            raise ValueError(f"self_excluded of shape {tuple(self_excluded.shape)}: expected {expected}")
    return query_labels, gallery_labels
