"""Collapse: a network that maps all images to one point. How near it is, and how to notice.

A constant embedding makes every perturbation harmless, and every triplet loss equal to its margin; training against a
strong adversary may end there.
"""

import torch
from torch import Tensor

from robret_lib import mining
from robret_lib.checks.model import COLLAPSED
from robret_lib.distances import row_distance
from robret_lib.models import Distance

SHARPNESS = 10.0
"""lambda with which `signs` measures collapseness."""

PAIRS = 64
"""In the batches in which `signs` measures it."""


def collapseness(d_ap: Tensor, d_an: Tensor, sharpness: float) -> Tensor:
    """C ``[]``: how far the positives of a batch lie beyond its negatives; below 0 if all is well.

    ``C = sum w_i d_ap,i - sum v_i d_an,i`` with ``w = softmax(lambda d_ap)`` and ``v = softmax(lambda d_an)``: the mean
    hardness for lambda = 0, ``max d_ap - max d_an`` for infinity. Differentiable through the weights too. (Tian et al.,
    "Collapse-Aware Triplet Decoupling for Adversarially Robust Image Retrieval", ICML 2024, public code.)

    Args:
        d_ap, d_an: Distances ``[P]`` of the anchors to their positives and negatives.
        sharpness: lambda.
    """
    return _soft_maximum(d_ap, sharpness) - _soft_maximum(d_an, sharpness)


def smallest_half(distances: Tensor) -> Tensor:
    """The mean of the smaller half of distances ``[P]``, a scalar; of an odd number, the middle one is left out."""
    return distances.topk(max(1, len(distances) // 2), largest=False).values.mean()


def spread(embeddings: Tensor) -> float:
    """How far embeddings ``[N, D]`` lie apart, relative to their lengths: 0 for one point, 1 for a mean of zero.

    The root of the mean squared distance to their mean, divided by that of the mean squared length.
    """
    embeddings = embeddings.double()
    apart = (embeddings - embeddings.mean(0)).square().sum(1).mean()
    return (apart / embeddings.square().sum(1).mean().clamp(min=torch.finfo(torch.float64).tiny)).sqrt().item()


def signs(embeddings: Tensor, labels: Tensor, distance: Distance) -> dict[str, float]:
    """The signs of collapse in embeddings ``[N, D]`` with int labels ``[N]``: ``spread`` and ``collapseness``.

    The latter is the mean over batches of random triplets, always the same ones.

    Raises:
        ValueError: No batch has images of two classes.
    """
    generator = torch.Generator().manual_seed(0)
    embeddings, labels, found = embeddings.cpu(), labels.cpu(), []
    for batch in mining.spc2_epoch(labels, min(PAIRS, len(labels)), generator):
        if len(labels[batch].unique()) > 1:  # the last one may be small
            roles = mining.random(embeddings.new_empty(len(batch), 0), labels[batch], 0.0, generator)
            anchor, positive, negative = (embeddings[batch][role] for role in roles)
            distances = (row_distance(anchor, other, distance) for other in (positive, negative))
            found.append(collapseness(*distances, SHARPNESS).item())
    if not found:
        raise ValueError(f"{len(labels)} images of {len(labels.unique())} classes: expected some of two in a batch")
    return {"spread": spread(embeddings), "collapseness": sum(found) / len(found)}


def collapsed_at(history: list[dict[str, float]]) -> int | None:
    """The step of the first entry of a training's history that is collapsed and after which none is not, or None.

    Args:
        history: See `training.train`; entries with ``spread`` of `signs`. Without any, None.
    """
    first = None
    for entry in history:
        if entry.get("spread", torch.inf) >= COLLAPSED:
            first = None
        elif first is None:
            first = int(entry["step"])
    return first


def _soft_maximum(values: Tensor, sharpness: float) -> Tensor:
    if sharpness == torch.inf:
        return values.max()
    return (sharpness * values).softmax(0) @ values
