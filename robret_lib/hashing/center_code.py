"""The code that lies at the center of what a label asks for: near all codes that share a label, far from all others."""

from typing import Literal, get_args

import torch
from torch import Tensor

from robret_lib.data import DataError, relevance, same_kind
from robret_lib.hamming import codes_of
from robret_lib.hamming.codes import check_binary

Weights = Literal["binary", "jaccard", "cosine"]
"""How much a code that shares labels counts: all alike (CgAT as released); the share of labels in common, among those
of either (its first commits); the cosine of the label vectors (SAAT)."""


def center_code(
    labels: Tensor,
    train_codes: Tensor,
    train_labels: Tensor,
    weights: Weights = "binary",
    balanced: bool = True,
) -> Tensor:
    """The center code of each image, float in {-1, +1} ``[B, bits]``: the signs of `center_votes`, a draw being +1.

    It minimizes the weighted Hamming distances to the codes that share a label, less those to the others, since each
    bit adds to them alone (Wang et al., WWW 2023). Its negative maximizes them: by this measure, the worst code.
    Arguments and errors as there.
    """
    return codes_of(center_votes(labels, train_codes, train_labels, weights, balanced)).to(torch.float32)


def center_votes(
    labels: Tensor,
    train_codes: Tensor,
    train_labels: Tensor,
    weights: Weights = "binary",
    balanced: bool = True,
) -> Tensor:
    """For each bit the weighted mean of the codes that share a label, less the mean of the others, ``[B, bits]``.

    Where one of the two sets is empty, the other decides alone. (CgAT's code multiplies by the number of the empty set
    and has no center then.)

    Args:
        labels: int ``[B]`` or multi-hot ``[B, C]``.
        train_codes: In {-1, +1}, ``[N, bits]``.
        train_labels: As the labels.
        weights: See `Weights`.
        balanced: Whether both sets count alike; else sums stand in the place of means, as in CgAT's first commits,
            where the larger set decides.

    Raises:
        ValueError: No codes, or no such weights.
        DataError: No labels, of other classes than those of the codes, or not as many as codes.
    """
    check_binary("train", train_codes)
    if len(train_codes) != len(train_labels):
        raise DataError(f"{len(train_codes)} train codes and {len(train_labels)} labels: expected one for each")
    check_weights(weights)
    shared = overlap(labels, train_labels.to(labels.device), weights).to(train_codes.device)
    return votes_of(shared, train_codes, balanced)


def votes_of(shared: Tensor, train_codes: Tensor, balanced: bool = True) -> Tensor:
    """`center_votes` by how much images have in common with the training set, `overlap`, ``[B, N]``.

    Sums over a side that is weighted alike are of whole numbers, so that draws are exactly zero.
    """
    codes = train_codes.to(shared)
    others = (shared == 0).to(shared)
    pulled, pushed = ((part @ codes).double() for part in (shared, others))
    if not balanced:
        return pulled - pushed
    own, other = (_counted(part) for part in (shared, others))
    return (other * pulled - own * pushed) / (own * other)


def _counted(weights: Tensor) -> Tensor:
    """Their sum, float64 ``[B, 1]``; 1 where there are none, whose votes are 0."""
    sums = weights.sum(1, keepdim=True, dtype=torch.float64)
    return torch.where(sums > 0, sums, 1.0)


def check_weights(weights: str) -> None:
    """Raise a ValueError unless they are `Weights`."""
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r}: expected one of {get_args(Weights)}")


def overlap(labels: Tensor, others: Tensor, weights: Weights) -> Tensor:
    """How alike the labels of images are, in [0, 1], ``[B, N]``; 0 where they share none, also where there are none.

    Float32 where they are alike or not, which no sum of up to 2^24 codes rounds; else float64.
    """
    others = others.to(labels.device)
    shared = relevance(labels, others)
    labels, others = same_kind(labels, others)
    if weights == "binary" or labels.ndim == 1:
        return shared.float()
    common = labels.double() @ others.double().T
    sizes, theirs = labels.sum(1, dtype=torch.float64)[:, None], others.sum(1, dtype=torch.float64)
    either = sizes + theirs - common if weights == "jaccard" else (sizes * theirs).sqrt()
    return common / either.clamp(min=1)
