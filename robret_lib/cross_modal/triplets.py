"""Cross-modal triplets from codes alone: an anchor of one kind, a nearer and a farther item of the other."""

from math import ceil
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from robret_lib.hamming import hamming_distance

Choice = Literal["ordered", "extreme"]
"""Of positive and negative. "ordered": a positive from the nearest `SHARE` of the items, and a negative at least
``ceil(K / 8)`` bits farther than it, or, where there is none, from the farthest `SHARE`. "extreme": from the nearest
and from the farthest `SHARE`."""

SHARE = 0.05


class Triplets(NamedTuple):
    """Positions ``[T]`` of anchors in their kind, and of positives and negatives in the other."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


def cross_modal_triplets(
    anchor_codes: Tensor,
    other_codes: Tensor,
    choice: Choice = "ordered",
    generator: torch.Generator | None = None,
) -> Triplets:
    """One triplet for each anchor, but for those whose draw has no strict order: a positive nearer than the negative.

    AACH (ICCV 2021) makes them of the codes that it was answered, of which no labels are known. The paper was not to be
    had: which items are chosen is reconstructed by us.

    Args:
        anchor_codes: In {-1, +1}, ``[A, bits]``.
        other_codes: Of the other kind, ``[M, bits]``, M of at least two.
        choice: See `Choice`.
        generator: Of ties and draws.

    Raises:
        ValueError: No codes, fewer than two others, or no such choice.
    """
    if choice not in get_args(Choice):
        raise ValueError(f"choice={choice!r}: expected one of {get_args(Choice)}")
    if len(other_codes) < 2:
        raise ValueError(f"{len(other_codes)} codes of the other kind: expected at least two")
    distances = hamming_distance(anchor_codes, other_codes).float()
    device = "cpu" if generator is None else generator.device
    order = torch.rand(distances.shape, generator=generator, device=device).to(distances)  # of those that are tied
    nearest = (distances + order / 2).argsort(dim=1)
    few = max(1, ceil(SHARE * len(other_codes)))
    positives = _one_of(nearest[:, :few], generator)
    to_positives = distances.gather(1, positives)
    farthest = torch.zeros_like(distances, dtype=torch.bool).scatter_(1, nearest[:, -few:], True)
    allowed = farthest
    if choice == "ordered":
        farther = distances >= to_positives + ceil(anchor_codes.shape[1] / 8)
        allowed = torch.where(farther.any(1, keepdim=True), farther, farthest)
    negatives = torch.multinomial(allowed.float().to(device), 1, generator=generator).to(distances.device)
    strict = (distances.gather(1, negatives) > to_positives)[:, 0]
    anchors = torch.arange(len(distances), device=distances.device)[strict]
    return Triplets(anchors, positives[strict, 0], negatives[strict, 0])


def _one_of(items: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of each row, ``[A, 1]``."""
    device = "cpu" if generator is None else generator.device
    drawn = torch.randint(items.shape[1], (len(items), 1), generator=generator, device=device)
    return items.gather(1, drawn.to(items.device))
