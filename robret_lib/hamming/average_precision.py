"""Average precision of rankings by Hamming distance, with its ties.

K bits make only K + 1 distances, so most items are tied with others, and what a ranking looks like depends on how ties
are broken: by the order of the gallery, or by chance of the platform, in the published codes. The default here is the
expected value over a random order of all ties. It needs no sort: how many items, and relevant ones, there are at each
distance decides it.
"""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robret_lib.fields import check_count
from robret_lib.hamming.lists import Groups, Lists

Ties = Literal["expected", "stable", "best", "worst"]
"""How tied items are ranked: averaged over all orders; in the order of the gallery; relevant ones first, or last."""


def hamming_map(
    query_codes: Tensor,
    gallery_codes: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    top_k: int | None = None,
    ties: Ties = "expected",
    own: Tensor | None = None,
) -> float:
    """MAP by Hamming distance in percent, the mean of `average_precisions`; a query without an answer counts as 0."""
    found = average_precisions(query_codes, gallery_codes, query_labels, gallery_labels, top_k, ties, own)
    return 100 * found.mean().item()


def average_precisions(
    query_codes: Tensor,
    gallery_codes: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    top_k: int | None = None,
    ties: Ties = "expected",
    own: Tensor | None = None,
) -> Tensor:
    """The average precision of each query's ranking, float64 ``[A]`` in [0, 1].

    AP@k is the mean of the precisions at the relevant ones among the first k items (DeepHash-pytorch, `CalcTopMap`). It
    divides by how many of those there are, not by how many there could be, so the list [+ - -] has a higher AP@3 than
    [+ - +]. It is 0 where there is none.

    Args:
        query_codes, gallery_codes: In {-1, +1}, ``[A, bits]`` and ``[B, bits]``, of any dtype.
        query_labels, gallery_labels: int ``[A]``, ``[B]``; or multi-hot ``[A, C]``, ``[B, C]``, where an item answers
            that shares a label, so that one without labels answers nothing.
        top_k: Depth k; None is the whole gallery, and so is a depth beyond it.
        ties: See `Ties`; "best" and "worst" are for the whole gallery.
        own: Gallery positions, int ``[A]``, of the queries where they are items, which are then left out.

    Raises:
        ValueError: No such codes, an impossible depth, an unknown rule for ties, or positions that are not there.
        DataError: No such labels, or not as many as codes.
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties={ties!r}: expected one of {get_args(Ties)}")
    check_depth(top_k)
    lists = Lists(query_codes, gallery_codes, query_labels, gallery_labels, own)
    cut = top_k is not None and top_k < lists.size
    if ties == "stable":
        found = np.array([_mean_precision(np.flatnonzero(hits[:top_k])) for hits in lists.ranked()])
    elif not cut:
        sums = _OF_A_GROUP[ties]
        found = np.concatenate([_whole(groups, sums) for groups in lists.groups()])
    elif ties == "expected":
        found = np.concatenate([_expected_at(groups, top_k) for groups in lists.groups()])
    else:
        raise ValueError(f"ties={ties!r} with top_k={top_k}: expected top_k=None")
    return torch.from_numpy(found).to(query_codes.device)


def map_first_k_relevant(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, k: int
) -> float:
    """In percent, the mean of the precisions at the first k *relevant* items, wherever they stand; ties as "stable".

    Cross-modal codes call it MAP@k (DCMH's PyTorch port, `calc_map_k`). With k = all of them it is MAP; with fewer it
    is not MAP@k. Arguments and errors as in `average_precisions`.
    """
    check_count("k", k)
    lists = Lists(query_codes, gallery_codes, query_labels, gallery_labels)
    return 100 * float(np.mean([_mean_precision(np.flatnonzero(hits)[:k]) for hits in lists.ranked()]))


def check_depth(top_k: int | None) -> None:
    """Raise a ValueError unless it is a whole number of at least 1, or None."""
    if top_k is not None:
        check_count("top_k", top_k)


def _mean_precision(positions: np.ndarray) -> float:
    """Of a list with relevant items at these positions, counted from 0."""
    return float(np.mean(np.arange(1, len(positions) + 1) / (positions + 1))) if len(positions) else 0.0


def _whole(groups: Groups, sum_of_precisions: Callable[..., np.ndarray]) -> np.ndarray:
    sums = sum_of_precisions(groups.items, groups.relevant, *groups.nearer())
    return sums.sum(1) / np.maximum(1, groups.relevant.sum(1))


def _expected(items: np.ndarray, relevant: np.ndarray, nearer: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of groups of tied items, the expected sum of the precisions at their relevant items.

    The i-th place of a list holds a relevant item with probability ``relevant / items``; then ``(i - nearer - 1)`` of
    its group stand before it, each relevant with probability ``(relevant - 1) / (items - 1)``.

    Args:
        items, relevant: How many there are in the group.
        nearer, found: How many items, and relevant ones, stand before the group.
    """
    share = (relevant - 1) / np.maximum(1, items - 1)
    sums = (found + 1 - share * (nearer + 1)) * _reciprocals(nearer, nearer + items) + share * items
    return relevant / np.maximum(1, items) * sums


def _best(items: np.ndarray, relevant: np.ndarray, nearer: np.ndarray, found: np.ndarray) -> np.ndarray:
    return relevant + (found - nearer) * _reciprocals(nearer, nearer + relevant)


def _worst(items: np.ndarray, relevant: np.ndarray, nearer: np.ndarray, found: np.ndarray) -> np.ndarray:
    return _best(items, relevant, nearer + items - relevant, found)


_OF_A_GROUP = {"expected": _expected, "best": _best, "worst": _worst}


def _reciprocals(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The sum of 1/i over ``first < i <= last``."""
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(last.max()) + 1))])
    return harmonic[last] - harmonic[first]


def _expected_at(groups: Groups, depth: int) -> np.ndarray:
    """AP@k: whole groups, and of the one that the depth cuts every number of relevant items that it may leave."""
    nearer, found = groups.nearer()
    whole = nearer + groups.items <= depth
    sums = (_expected(groups.items, groups.relevant, nearer, found) * whole).sum(1)
    cut = whole.sum(1)  # distances grow, so the whole groups come first
    return np.array(
        [
            _cut(value, items[at], relevant[at], before[at], hits[at], depth)
            for value, at, items, relevant, before, hits in zip(
                sums, cut, groups.items, groups.relevant, nearer, found, strict=True
            )
        ]
    )


def _cut(value: float, items: int, relevant: int, nearer: int, found: int, depth: int) -> float:
    """AP@k of one query, from the sum over its whole groups and the group of which only some fit before the depth."""
    room = depth - nearer
    hits = np.arange(max(0, room - (items - relevant)), min(room, relevant) + 1)
    sums = value + _expected(room, hits, nearer, found)
    return float(_hypergeometric(hits, items, relevant, room) @ (sums / np.maximum(1, found + hits)))


def _hypergeometric(hits: np.ndarray, items: int, relevant: int, room: int) -> np.ndarray:
    """How likely each number of relevant ones is among ``room`` of the items, for all numbers that can be."""
    at = hits[:-1].astype(float)
    return shares_of((relevant - at) * (room - at) / ((at + 1) * (items - relevant - room + at + 1)))


def shares_of(ratios: np.ndarray) -> np.ndarray:
    """Probabilities ``[n + 1]`` with sum 1, from the ratio ``[n]`` of each but the first to the one before it.

    Ratios of neighbors are small numbers, where the factorials of a large gallery lose digits.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()
