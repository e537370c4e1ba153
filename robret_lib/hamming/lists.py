"""The gallery as each query sees it: distances and relevance item by item, or how many there are at each distance."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robret_lib.data import DataError, same_kind
from robret_lib.hamming.codes import check_codes, differing_bits, words_of

BLOCK = 256
"""Queries whose counts are kept at once."""


class Groups(NamedTuple):
    """Of some queries, how many items, and how many relevant ones, lie at each distance: ``[b, bits + 1]`` each."""

    items: np.ndarray
    relevant: np.ndarray

    def nearer(self) -> "Groups":
        """How many lie nearer than each distance."""
        return Groups(*(counts.cumsum(1) - counts for counts in self))


class Lists:
    """Codes and labels, checked and packed.

    Args:
        query_codes, gallery_codes, query_labels, gallery_labels, own: As in `average_precision.average_precisions`.

    Raises:
        ValueError: No codes, or positions that are not there.
        DataError: No labels, or not as many as codes.
    """

    def __init__(
        self,
        query_codes: Tensor,
        gallery_codes: Tensor,
        query_labels: Tensor,
        gallery_labels: Tensor,
        own: Tensor | None = None,
    ) -> None:
        check_codes(query_codes, gallery_codes)
        labels = same_kind(query_labels, gallery_labels)
        for what, codes, its in zip(("query", "gallery"), (query_codes, gallery_codes), labels, strict=True):
            if len(codes) != len(its):
                raise DataError(f"{len(codes)} {what} codes and {len(its)} labels: expected one for each")
        self.bits, self.size = gallery_codes.shape[1], len(gallery_codes) - (own is not None)
        self._own = _checked(own, len(query_codes), len(gallery_codes))
        self._queries, self._items = words_of(query_codes > 0).T, words_of(gallery_codes > 0)
        self._several = labels[0].ndim == 2
        asked, self._labels = (words_of(its > 0) if self._several else its.cpu().numpy()[None] for its in labels)
        self._asked = asked.T

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each query, the distances ``[B]`` to all items and which are relevant, bool ``[B]``; itself left out."""
        for code, asked, own in zip(self._queries, self._asked, self._own, strict=True):
            found = differing_bits(code, self._items, self.bits), self._relevant(asked)
            yield found if own is None else tuple(np.delete(values, own) for values in found)

    def ranked(self) -> Iterator[np.ndarray]:
        """Of each query, whether the items of its ranking are relevant, bool ``[B]``; ties in gallery order."""
        for distances, relevant in self:
            yield relevant[np.argsort(distances, kind="stable")]

    def groups(self) -> Iterator[Groups]:
        """The counts at each distance, of a block of queries at a time."""
        counts: list[np.ndarray] = []
        for distances, relevant in self:
            if len(counts) == BLOCK:
                yield self._grouped(counts)
                counts = []
            distances += np.multiply(relevant, self.bits + 1, dtype=distances.dtype)  # relevant ones behind the others
            counts.append(np.bincount(distances, minlength=2 * (self.bits + 1)))
        yield self._grouped(counts)

    def _relevant(self, asked: np.ndarray) -> np.ndarray:
        if not self._several:
            return self._labels[0] == asked[0]
        shared = self._labels[0] & asked[0]
        for word, own in zip(self._labels[1:], asked[1:], strict=True):
            shared |= word & own
        return shared != 0

    def _grouped(self, counts: list[np.ndarray]) -> Groups:
        others, relevant = np.split(np.stack(counts), 2, axis=1)
        return Groups(others + relevant, relevant)


def _checked(own: Tensor | None, queries: int, items: int) -> list[int | None]:
    if own is None:
        return [None] * queries
    expected = f"expected int [{queries}], a gallery position below {items} of each query"
    if not isinstance(own, Tensor):
        raise ValueError(f"own is a {type(own).__name__}: {expected}")
    whole = not (own.is_floating_point() or own.is_complex() or own.dtype == torch.bool)
    if own.shape != (queries,) or not whole or own.min() < 0 or own.max() >= items:
        raise ValueError(f"own of shape {tuple(own.shape)}, {own.dtype}: {expected}")
    return own.tolist()
