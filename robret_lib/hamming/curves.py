"""What a ranking by Hamming distance holds at a depth, at a recall, or within a radius."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robret_lib.hamming.lists import Lists


def precision_at(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, depths: Sequence[int]
) -> Tensor:
    """Precision among the first N items in percent, float64 ``[depths]``; a mean over all queries.

    Of a group of ties that the depth cuts, its share of relevant items counts, as expected over a random order.

    Args:
        query_codes, gallery_codes, query_labels, gallery_labels: As in `average_precision.average_precisions`.
        depths: Each N, from 1 to the size of the gallery.

    Raises:
        ValueError, DataError: As there; an impossible depth.
    """
    if not len(depths) or min(depths) < 1 or max(depths) > len(gallery_codes):
        raise ValueError(f"depths={tuple(depths)}: expected numbers from 1 to {len(gallery_codes)}, the gallery's size")
    at, found = np.asarray(depths), []
    for groups in Lists(query_codes, gallery_codes, query_labels, gallery_labels).groups():
        reached = zip(*(np.pad(counts.cumsum(1), ((0, 0), (1, 0))) for counts in groups), strict=True)
        found += [np.interp(at, items, relevant) / at for items, relevant in reached]
    return torch.from_numpy(100 * np.mean(found, axis=0))


def precision_at_recall(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, recalls: Sequence[float]
) -> Tensor:
    """The PR curve: precision in percent where a share of the relevant items has been found, float64 ``[recalls]``.

    A share of R relevant items is ``floor(recall R)`` of them, and at least one. A mean over the queries that have an
    answer; ties in the order of the gallery (SAAT, `pr_curve`, which divides by zero where the share is none).

    Args:
        query_codes, gallery_codes, query_labels, gallery_labels: As in `average_precision.average_precisions`.
        recalls: Shares above 0, up to 1.

    Raises:
        ValueError, DataError: As there; an impossible share; no query has an answer.
    """
    if not len(recalls) or min(recalls) <= 0 or max(recalls) > 1:
        raise ValueError(f"recalls={tuple(recalls)}: expected shares above 0, up to 1")
    shares, found = np.asarray(recalls), []
    for hits in Lists(query_codes, gallery_codes, query_labels, gallery_labels).ranked():
        places = np.flatnonzero(hits) + 1
        if len(places):
            wanted = np.maximum(1, np.floor(shares * len(places) + 1e-9).astype(int))
            found.append(wanted / places[wanted - 1])
    if not found:
        raise ValueError("no query has a relevant item: there is no PR curve")
    return torch.from_numpy(100 * np.mean(found, axis=0))


def precision_within(
    query_codes: Tensor, gallery_codes: Tensor, query_labels: Tensor, gallery_labels: Tensor, radius: int = 2
) -> float:
    """The share of relevant items within a Hamming radius, in percent; a mean over all queries, 0 where none is there.

    Arguments and errors as in `average_precision.average_precisions`; the radius is at least 0.
    """
    if radius < 0:
        raise ValueError(f"radius={radius}: expected at least 0")
    found = []
    for groups in Lists(query_codes, gallery_codes, query_labels, gallery_labels).groups():
        near, relevant = (counts[:, : radius + 1].sum(1) for counts in groups)
        found.append(relevant / np.maximum(1, near))
    return 100 * float(np.concatenate(found).mean())
