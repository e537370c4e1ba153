"""Hubness: gallery items that are among the answers to far more queries than others are.

Counted over probe queries, which say nothing about who searches, so that an operator can run it over a gallery before
anybody does. A hub that serves few of the probes, those of one subject, stays in the crowd.
"""

import torch
from torch import Tensor

from robret_lib.distances import Centered, check_embeddings
from robret_lib.fields import check_count

CHUNK = 1024
"""Probes at once; decides memory, not the result."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


def k_occurrence(probes: Tensor, gallery: Tensor, k: int = 10, self_excluded: bool | Tensor = False) -> Tensor:
    """How many probes have each item among their k nearest (Radovanovic et al., JMLR 2010), int64 ``[N]``.

    Args:
        probes, gallery: Embeddings ``[P, D]`` and ``[N, D]``, ranked by Euclidean distance.
        k: From 1 to the size of the gallery.
        self_excluded: True where probe i is item i, or the position of each probe, int64 ``[P]``: never an answer.

    Returns:
        Counts; their mean is ``P k / N``.

    Raises:
        ValueError: NaN or infinity, or shapes, positions or a k that do not fit together; the message names them.
    """
    own = torch.arange(len(probes)) if self_excluded is True else self_excluded
    _check(probes, gallery, k, own)
    centered = Centered.of(gallery)
    counts = torch.zeros(len(gallery), dtype=torch.int64, device=gallery.device)
    for start in range(0, len(probes), CHUNK):
        rows = slice(start, start + CHUNK)
        distances = centered.distances_from(probes[rows].to(gallery.device))
        if own is not False:
            distances.scatter_(1, own[rows, None].to(gallery.device), torch.inf)
        counts += distances.topk(k, dim=1, largest=False).indices.flatten().bincount(minlength=len(gallery))
    return counts


def _check(probes: Tensor, gallery: Tensor, k: int, own: bool | Tensor) -> None:
    if probes.ndim != 2 or gallery.ndim != 2 or probes.shape[1] != gallery.shape[1]:
        shapes = f"{tuple(probes.shape)} and {tuple(gallery.shape)}"
        raise ValueError(f"probes and gallery of shapes {shapes}: expected [P, D] and [N, D]")
    check_embeddings("probes", probes)
    check_embeddings("gallery", gallery)
    available = len(gallery) - (own is not False)
    check_count("k", k)
    if k > available:
        raise ValueError(f"k={k}: expected 1 to {available}, the gallery items to choose from")
    if own is False:
        return
    if own.shape != probes.shape[:1]:
        shapes = f"{len(probes)} probes and self_excluded of shape {tuple(own.shape)}"
        raise ValueError(f"{shapes}: expected one position per probe")
    if len(own) and (own.min() < 0 or own.max() >= len(gallery)):
        found = f"{int(own.min())} to {int(own.max())}"
        raise ValueError(f"self_excluded holds {found}: the gallery has {len(gallery)} items")


def hubness(counts: Tensor) -> Tensor:
    """By how many robust standard deviations each item's k-occurrence exceeds the median, float64 ``[N]``.

    ``(n - median) / s`` with ``s = 1.4826 median |n - median|``, which no hub can inflate, but at least the square
    root of the mean, which is what pure chance gives where most items are never found at all. The score scanners of
    vector databases use (public code Habler-code/AdversarialHubness); a good threshold is the largest score of a
    gallery that is known to be clean, and a margin.

    Args:
        counts: See `k_occurrence`.
    """
    counts = counts.double()
    excess = counts - counts.quantile(0.5)
    scale = torch.maximum(NORMAL * excess.abs().quantile(0.5), counts.mean().sqrt())
    return excess / scale.clamp(min=torch.finfo(torch.float64).tiny)
