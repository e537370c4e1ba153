"""Hash centers: one binary code for each class, far from all others."""

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from robret_lib.fields import check_count

DRAWS = 20
"""How often random centers are drawn anew in search of some that lie far apart."""


def hadamard_centers(classes: int, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Codes in {-1, +1} ``[classes, bits]``: rows of Sylvester's Hadamard matrix and its negative (CSQ).

    Any two are K/2 apart, or opposite. Beyond 2K classes, and for bits that are no power of two, the rest are random
    codes with as many +1 as -1: the first draw of twenty in which no two are nearer than K/4 and the mean distance is
    K/2 or more, else the one whose nearest two are farthest apart (Yuan et al., CVPR 2020; CgAT, `CSQLoss`). Where two
    of them are the same even there, see `each_once`.

    Raises:
        ValueError: No class, no bit, or more classes than there are codes.
    """
    check_one_each(classes, bits)
    rows = torch.empty(0, bits)
    if bits & (bits - 1) == 0:
        matrix = torch.from_numpy(hadamard(bits)).float()
        rows = torch.cat([matrix, -matrix])[:classes]
    return each_once(torch.cat([rows, _far_apart(rows, classes - len(rows), generator)]), generator)


def _far_apart(given: Tensor, more: int, generator: torch.Generator | None) -> Tensor:
    if not more:
        return given[:0]
    bits, best, apart = given.shape[1], given[:0], -1.0
    for _ in range(DRAWS):
        drawn = random_centers(more, bits, generator)
        distances = torch.pdist(torch.cat([given, drawn])).square() / 4 if len(given) + more > 1 else torch.ones(1)
        if distances.min() > apart:
            best, apart = drawn, distances.min().item()
        if distances.min() > bits / 4 and distances.mean() >= bits / 2:
            return drawn
    return best


def random_centers(classes: int, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """Random codes ``[classes, bits]`` with half of the bits +1 (one less, if their number is odd).

    Raises:
        ValueError: No class, or no bit.
    """
    check_count("classes", classes)
    check_count("bits", bits)
    order = torch.rand(classes, bits, generator=generator).argsort(1)
    return torch.where(order < bits // 2, 1.0, -1.0)


def each_once(centers: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The codes ``[classes, bits]`` in their order, each once; random codes, of any balance, for those that came twice.

    Two classes with one code could not be told apart. Where no code comes twice, nothing is drawn.

    Raises:
        ValueError: More classes than there are codes.
    """
    classes, bits = centers.shape
    check_one_each(classes, bits)
    found = _first_of_each(centers)
    while len(found) < classes:
        coins = 2.0 * torch.randint(0, 2, (classes, bits), generator=generator) - 1
        found = _first_of_each(torch.cat([found, coins]))[:classes]
    return found


def check_one_each(classes: int, bits: int) -> None:
    """Raise a ValueError unless there are classes, and a code of so many bits for each of them."""
    check_count("classes", classes)
    check_count("bits", bits)
    if classes > 2**bits:
        raise ValueError(f"classes={classes}, bits={bits}: expected at most {2**bits} classes, one for each code")


def _first_of_each(codes: Tensor) -> Tensor:
    _, places = np.unique(codes.numpy(), axis=0, return_index=True)
    return codes[np.sort(places)]


def center_of_labels(labels: Tensor, centers: Tensor, undecided: Tensor) -> Tensor:
    """The code of each image ``[n, bits]``: of several labels the majority, bit by bit.

    Args:
        labels: int ``[n]`` or multi-hot ``[n, C]``.
        centers: ``[C, bits]``.
        undecided: A code ``[bits]`` for bits on which labels are even, and for images without any.
    """
    if labels.ndim == 1:
        return centers[labels]
    votes = labels.to(centers) @ centers
    return torch.where(votes == 0, undecided, votes.sign())
