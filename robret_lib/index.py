"""Nearest neighbors in large galleries: faiss behind one small call, exact or approximate, vectors or codes.

Which one? "exact" until it is too slow (about a million vectors). "ivf" and "hnsw" are faster and now and then miss
a neighbor, "pq" takes 1/16 of the memory or less and blurs the distances, "binary" is for hash codes.
"""

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import torch
from torch import Tensor

from robret_lib.distances import center_of, check_embeddings, relative
from robret_lib.files import written_whole

Kind = Literal["exact", "ivf", "hnsw", "pq", "binary"]

OPTIONS = {"ivf": {"lists", "probes"}, "hnsw": {"links", "candidates"}, "pq": {"parts"}}
"""The options that `build` takes for each kind."""

PQ_CENTROIDS = 256
"""Centroids per part of a product quantizer, one byte each."""


@dataclass(frozen=True)
class Index:
    """A searchable gallery; made by `build` or `read`, used by one thread at a time.

    Args:
        kind: See `build`.
        dim: Dimensions D of the vectors, or bits of the codes.
        engine: The faiss index, for what this class does not do.
        center: What is subtracted from all vectors first, ``[D]``, see `distances`; None for codes.
    """

    kind: Kind
    dim: int
    engine: faiss.Index | faiss.IndexBinary
    center: Tensor | None = None

    def __len__(self) -> int:
        return self.engine.ntotal

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest gallery items of each query, nearest first, on the queries' device.

        Args:
            queries: ``[A, D]``, or codes in {-1, +1} ``[A, bits]`` for kind "binary".
            k: From 1 to the size of the gallery.

        Returns:
            Distances ``[A, k]`` and gallery positions int64 ``[A, k]``, always k of them. Euclidean distances
            (float32, not squared; up to about 1e-3 of the gallery's spread off, so a vector may be as far away from
            itself), to the quantized vectors for "pq"; Hamming distances (int64) for "binary". The order of equals is
            left open.

        Raises:
            ValueError: Wrong shape, NaN, numbers whose squares overflow, codes other than -1 and +1, or k out of range.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k}: expected 1 to {len(self)}, the size of the gallery")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries of shape {tuple(queries.shape)}: the gallery has {self.dim} dimensions")
        rows = _rows("queries", queries, self.center)
        distances, positions = self.engine.search(rows, k)
        self._complete(rows, distances, positions)
        if self.kind == "binary":
            distances = distances.astype(np.int64)
        else:
            np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        return torch.from_numpy(distances).to(queries.device), torch.from_numpy(positions).to(queries.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a file that is, at any moment, the old one or the new one, whole."""
        serialize = faiss.serialize_index_binary if self.kind == "binary" else faiss.serialize_index
        with written_whole(path) as file:
            members = {} if self.center is None else {"center": self.center.numpy()}
            np.savez(file, kind=self.kind, dim=self.dim, engine=serialize(self.engine), **members)

    def _complete(self, rows: np.ndarray, distances: np.ndarray, positions: np.ndarray) -> None:
        """Search exactly, in place, where the visited lists or the graph held fewer than k items (faiss: -1)."""
        short = np.flatnonzero(positions[:, -1] < 0)
        if not len(short):
            return
        k = positions.shape[1]
        if self.kind == "hnsw":
            distances[short], positions[short] = self.engine.storage.search(rows[short], k)
            return
        probes, self.engine.nprobe = self.engine.nprobe, self.engine.nlist
        try:  # as an argument of search it fails once pytorch-metric-learning, on import, has replaced that method
            distances[short], positions[short] = self.engine.search(rows[short], k)
        finally:
            self.engine.nprobe = probes


def build(
    embeddings: Tensor,
    kind: Kind = "exact",
    *,
    lists: int | None = None,
    probes: int | None = None,
    links: int | None = None,
    candidates: int | None = None,
    parts: int | None = None,
) -> Index:
    """An index of a gallery; the same one every time on one thread.

    Args:
        embeddings: ``[N, D]``, finite; for "binary" codes in {-1, +1} ``[N, bits]``.
        kind: "exact" compares every query with every item. "ivf" (inverted file) with the items in a few cells of
            a k-means. "hnsw" (Malkov and Yashunin 2018) walks a graph of neighbors. "pq" (Jegou et al. 2011)
            compares with items stored as one byte per part of the vector. "binary" compares bits, exactly.
        lists: "ivf": cells of the k-means; default 4 sqrt(N), but 39 items a cell. More cells are smaller, so each
            probe costs and finds less, and building takes longer.
        probes: "ivf": cells visited; default an eighth of them. More find more and take longer; ``probes=lists`` is
            exact.
        links: "hnsw": neighbors kept per item; default 32. More find more and take more memory (8 bytes each).
        candidates: "hnsw": length of the list of candidates during a search (efSearch), never below k; default
            128. More find more and take longer.
        parts: "pq": bytes per item; must divide D; default the largest divisor up to D/4, so that D = 512 floats
            become 128 bytes. More are more exact and take more memory and time.

    Raises:
        ValueError: NaN or infinity, numbers whose squares overflow, codes other than -1 and +1, an option of another
            kind or out of range, too few items to train "ivf" or "pq".
    """
    given = {"lists": lists, "probes": probes, "links": links, "candidates": candidates, "parts": parts}
    _check_options(kind, {name: value for name, value in given.items() if value is not None})
    if embeddings.ndim != 2 or not embeddings.numel():
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)}: expected [N, D], at least one to search in")
    size, dim = embeddings.shape
    center = None if kind == "binary" else center_of(embeddings.detach().cpu())
    rows = _rows("embeddings", embeddings, center)
    if kind == "ivf":
        engine = _inverted_file(size, dim, lists, probes)
    elif kind == "hnsw":
        engine = faiss.IndexHNSWFlat(dim, links or 32)
        engine.hnsw.efSearch = candidates or 128
    elif kind == "pq":
        engine = _product_quantizer(size, dim, parts)
    else:
        engine = faiss.IndexBinaryFlat(8 * rows.shape[1]) if kind == "binary" else faiss.IndexFlatL2(dim)
    engine.train(rows)
    engine.add(rows)
    return Index(kind, dim, engine, center)


def read(path: str | os.PathLike[str]) -> Index:
    """Read what `Index.save` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Naming the path, where it is damaged or no index.
    """
    content = Path(path).read_bytes()
    try:
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        kind = str(stored["kind"])
        deserialize = faiss.deserialize_index_binary if kind == "binary" else faiss.deserialize_index
        center = None if kind == "binary" else torch.from_numpy(stored["center"])
        return Index(kind, int(stored["dim"]), deserialize(stored["engine"]), center)
    except Exception as error:  # reading a damaged file can fail in any way
        raise ValueError(f"{path} is no index, or a damaged one ({error}): build and save it again") from error


def _inverted_file(size: int, dim: int, lists: int | None, probes: int | None) -> faiss.IndexIVFFlat:
    lists = lists or max(1, min(round(4 * math.sqrt(size)), size // 39))
    probes = probes or math.ceil(lists / 8)
    if lists > size or probes > lists:
        raise ValueError(f"lists={lists}, probes={probes}: expected probes <= lists <= {size}, the size of the gallery")
    engine = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists)
    engine.nprobe = probes
    engine.cp.min_points_per_centroid = 1  # only silences a warning on standard error
    return engine


def _product_quantizer(size: int, dim: int, parts: int | None) -> faiss.IndexPQ:
    parts = parts or max(part for part in range(1, max(1, dim // 4) + 1) if dim % part == 0)
    if dim % parts:
        raise ValueError(f"parts={parts} does not divide the {dim} dimensions: choose a divisor")
    if size < PQ_CENTROIDS:
        raise ValueError(
            f"{size} items cannot train {PQ_CENTROIDS} centroids: use kind='exact', it is fast at this size"
        )
    engine = faiss.IndexPQ(dim, parts, int(math.log2(PQ_CENTROIDS)))
    engine.pq.cp.min_points_per_centroid = 1
    return engine


def _rows(name: str, vectors: Tensor, center: Tensor | None) -> np.ndarray:
    """What faiss takes: float32 ``[N, D]``, or for codes uint8 ``[N, ceil(bits / 8)]``, padded with equal bits."""
    vectors = vectors.detach().cpu()
    if center is not None:
        check_embeddings(name, vectors)
        return relative(vectors, center).numpy()
    if not (vectors.abs() == 1).all():
        raise ValueError(
            f'{name} hold values other than -1 and +1: kind="binary" takes codes, such as embeddings.sign()'
        )
    return np.packbits((vectors > 0).numpy(), axis=1)


def _check_options(kind: Kind, given: dict[str, int]) -> None:
    if kind not in ("exact", "ivf", "hnsw", "pq", "binary"):
        raise ValueError(f'kind={kind!r}: expected "exact", "ivf", "hnsw", "pq" or "binary"')
    allowed = OPTIONS.get(kind, set())
    if not given.keys() <= allowed:
        raise ValueError(f'{sorted(given.keys() - allowed)} mean nothing to kind "{kind}": it takes {sorted(allowed)}')
    if min(given.values(), default=1) < 1:
        raise ValueError(f"{given}: expected numbers of at least 1")
