"""The code that lies at the center of what a label asks for: near all codes that share a label, far from all others."""

from typing import Literal, get_args

import torch
from torch import Tensor

from robret_lib.data import DataError, same_kind
from robret_lib.hamming import codes_of
from robret_lib.hamming.codes import check_binary

Weights = Literal["binary", "jaccard", "cosine"]
"""How much a code that shares labels counts: all alike (CgAT as released); the share of labels in common, among those
of either (its first commits, which also had sums in the place of means); the cosine of the label vectors (SAAT)."""


ROUNDED = 1e-12
"""What rounding leaves of a draw, at most, beside the size that votes can have: else the order of a sum would decide a
bit."""


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
    """For each bit the weighted mean of the codes that share a label, less that of the others, float64 ``[B, bits]``.

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
        ValueError: No codes ``[N, bits]`` in {-1, +1}, or no such weights.
        DataError: No labels, of other classes than those of the codes, or not as many as codes.
    """
    check_binary("train", train_codes)
    if len(train_codes) != len(train_labels):
        raise DataError(f"{len(train_codes)} train codes and {len(train_labels)} labels: expected one for each")
    check_weights(weights)
    shared = overlap(labels, train_labels.to(labels.device), weights).to(train_codes.device)
    return votes_of(shared, train_codes, balanced=balanced)


def votes_of(shared: Tensor, sums: Tensor, counts: Tensor | None = None, balanced: bool = True) -> Tensor:
    """`center_votes` of codes, or of their sums in groups of equal labels, which are fewer; float64 ``[B, bits]``.

    Codes may be relaxed too. Where all who share a label count alike, sums of binary codes are whole numbers and draws
    exactly zero; elsewhere, votes below `ROUNDED` are taken for draws. The others are not summed once more: they are
    all codes, less those that share a label.

    Args:
        shared: How much images have in common with each group, `overlap`, ``[B, groups]``.
        sums: Of the codes of each group, ``[groups, bits]``.
        counts: How many codes a group has, ``[groups]``; None is one.
        balanced: See `center_votes`.
    """
    counts = sums.new_ones(len(sums)) if counts is None else counts
    pulled, own = _weighted(shared, sums, counts)
    alike = ((shared == 0) | (shared == 1)).all()
    of_sharers, sharers = (pulled, own) if alike else _weighted((shared > 0).to(shared), sums, counts)
    pushed, other = sums.double().sum(0) - of_sharers, counts.double().sum() - sharers
    if balanced:
        own, other = (torch.where(part > 0, part, 1.0) for part in (own, other))  # of none, the votes are 0
        votes = (other * pulled - own * pushed) / (own * other)
    else:
        votes = pulled - pushed
    most = 1.0 if balanced else counts.sum()
    return torch.where(votes.abs() > ROUNDED * most, votes, 0.0)


def _weighted(weights: Tensor, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of groups, of codes ``[B, bits]`` and of how many there are ``[B, 1]``, float64."""
    return tuple((weights @ part.to(weights)).double() for part in (sums, counts[:, None]))


def check_weights(weights: str) -> None:
    """Raise a ValueError unless they are `Weights`."""
    if weights not in get_args(Weights):
        raise ValueError(f"weights={weights!r}: expected one of {get_args(Weights)}")


def overlap(labels: Tensor, others: Tensor, weights: Weights) -> Tensor:
    """How alike the labels of images are, in [0, 1], ``[B, N]``; 0 where they share none, also where there are none.

    Float32 where they are alike or not, which no sum of up to 2^24 codes rounds; else float64.
    """
    labels, others = same_kind(labels, others.to(labels.device))
    if labels.ndim == 1:
        return (labels[:, None] == others).float()
    common = labels.float() @ others.float().T
    if weights == "binary":
        return common.clamp_(max=1)
    sizes, theirs = labels.sum(1, dtype=torch.float64)[:, None], others.sum(1, dtype=torch.float64)
    either = sizes + theirs - common if weights == "jaccard" else (sizes * theirs).sqrt()
    return common / either.clamp(min=1)
