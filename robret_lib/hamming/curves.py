"""What a ranking by Hamming distance holds at a depth, at a recall, or within a radius."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robret_lib.fields import check_count
from robret_lib.hamming.average_precision import shares_of
from robret_lib.hamming.lists import Lists

CurveTies = Literal["expected", "stable"]
"""How tied items of a PR curve are ranked: averaged over all orders, or in the order of the gallery."""


def precision_at(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, depths: Sequence[int]
) -> Tensor:
    """Precision among the first N items in percent, float64 ``[depths]``; a mean over all queries.

    Of a group of ties that the depth cuts, its share of relevant items counts, as expected over a random order.

    Args:
        query_codes, gallery_codes, query_labels, gallery_labels: As in `average_precision.average_precisions`.
        depths: Each N, a whole number from 1 to the size of the gallery.

    Raises:
        ValueError, DataError: As there; an impossible depth.
    """
    for depth in depths:
        check_count("depths", depth)
    if not len(depths) or max(depths) > len(gallery_codes):
        raise ValueError(f"depths={tuple(depths)}: expected numbers from 1 to {len(gallery_codes)}, the gallery's size")
    at, found = np.asarray(depths), []
    for groups in Lists(query_codes, gallery_codes, query_labels, gallery_labels).groups():
        reached = zip(*(np.pad(counts.cumsum(1), ((0, 0), (1, 0))) for counts in groups), strict=True)
        found += [np.interp(at, items, relevant) / at for items, relevant in reached]
    return torch.from_numpy(100 * np.mean(found, axis=0))


def precision_at_recall(
    query_codes: Tensor,
    gallery_codes: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    recalls: Sequence[float],
    ties: CurveTies = "expected",
) -> Tensor:
    """The PR curve: precision in percent where a share of the relevant items has been found, float64 ``[recalls]``.

    A share of R relevant items is ``w = floor(recall R)`` of them, and at least one; the precision there is w over the
    place of the w-th relevant item. A mean over the queries that have an answer. With ties "expected" it is the mean
    over all orders of the tied items too; "stable" is as published (SAAT, `pr_curve`, which divides by zero where the
    share is none).

    Args:
        query_codes, gallery_codes, query_labels, gallery_labels: As in `average_precision.average_precisions`.
        recalls: Shares above 0, up to 1.
        ties: See `CurveTies`.

    Raises:
        ValueError, DataError: As there; an impossible share; an unknown rule for ties; no query has an answer.
    """
    if not len(recalls) or not all(0 < share <= 1 for share in recalls):  # NaN is neither
        raise ValueError(f"recalls={tuple(recalls)}: expected shares above 0, up to 1")
    if ties not in get_args(CurveTies):
        raise ValueError(f"ties={ties!r}: expected one of {get_args(CurveTies)}")
    lists, shares = Lists(query_codes, gallery_codes, query_labels, gallery_labels), np.asarray(recalls)
    found = list((_stable if ties == "stable" else _expected)(lists, shares))
    if not found:
        raise ValueError("no query has a relevant item: there is no PR curve")
    return torch.from_numpy(100 * np.mean(found, axis=0))


def _wanted(shares: np.ndarray, relevant: int) -> np.ndarray:
    """How many relevant items each share is."""
    return np.maximum(1, np.floor(shares * relevant + 1e-9).astype(int))


def _stable(lists: Lists, shares: np.ndarray) -> Iterator[np.ndarray]:
    """Of each query with an answer, the precisions ``[shares]``; ties in the order of the gallery."""
    for hits in lists.ranked():
        places = np.flatnonzero(hits) + 1
        if len(places):
            wanted = _wanted(shares, len(places))
            yield wanted / places[wanted - 1]


def _expected(lists: Lists, shares: np.ndarray) -> Iterator[np.ndarray]:
    """Of each query with an answer, the precisions ``[shares]``, each expected over a random order of all ties."""
    for groups in lists.groups():
        for items, relevant, nearer, found in zip(*groups, *groups.nearer(), strict=True):
            if not relevant.any():
                continue
            wanted = _wanted(shares, relevant.sum())
            at = np.searchsorted(found + relevant, wanted)  # the group that holds the last of them
            yield np.array(
                [
                    of_all * _reciprocal_place(of_all - found[i], items[i], relevant[i], nearer[i])
                    for of_all, i in zip(wanted, at, strict=True)
                ]
            )


def _reciprocal_place(nth: int, items: int, relevant: int, nearer: int) -> float:
    """The expected value of 1 over the place of the nth relevant item of a group of tied ones, with ``nearer`` before.

    With n items, r of them relevant, it stands at the t-th place of the group with probability
    ``C(t - 1, nth - 1) C(n - t, r - nth) / C(n, r)``: those before it, and those behind it, in any order.
    """
    places = np.arange(nth, items - relevant + nth + 1)
    at = places[:-1].astype(float)
    ratios = at * (items - relevant + nth - at) / ((at - nth + 1) * (items - at))
    return float(shares_of(ratios) @ (1 / (nearer + places)))


def precision_within(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, radius: int = 2
) -> float:
    """The share of relevant items within a Hamming radius, in percent; a mean over all queries, 0 where none is there.

    Arguments and errors as in `average_precision.average_precisions`; the radius is at least 0.
    """
    check_count("radius", radius, 0)
    found = []
    for groups in Lists(query_codes, gallery_codes, query_labels, gallery_labels).groups():
        near, relevant = (counts[:, : radius + 1].sum(1) for counts in groups)
        found.append(relevant / np.maximum(1, near))
    return 100 * float(np.concatenate(found).mean())
