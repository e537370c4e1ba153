"""SDHA: away from the codes of all items that share a label, or towards them, by distances in soft steps.

"A Smart Adversarial Attack on Deep Hashing Based Image Retrieval" (ICMR 2021), as SAAT's code ports it. Where the
center code is one code that stands for many, here all of them are looked at in each step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.answers import need_classes
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.codes import Away
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import check_known, known_items
from robret_lib.attacks.targeted_codes import Targeted
from robret_lib.data import relevance
from robret_lib.hamming import codes_of

SCALE = 25.0
"""Of both losses, over the number of bits: what they weigh beside the change of the pixels (`search.descent`)."""

Weighting = Callable[[Tensor], Tensor]
"""Weights of items by their Hamming distances, of any shape."""

SoftStep = Callable[[Tensor, float], Tensor]
"""What relaxed bits ``[B, bits]`` add to the distance from a code whose bits are all +1, or all -1."""


@dataclass(frozen=True)
class RelevantCodes(Away):
    """Away from the codes of the items that share a label with the image, the near ones first.

    Follows ``-(25 / K) mean_r w D_s(h~, r)`` over the codes r of known items that share a label, with D_s in the steps
    of `away_step` and the weights w of `near_first`. These make it smallest, by thousands, at the very codes that it
    leaves, so that which image is best is said without them. Without such an item it flees from the own code.

    Args:
        known: Items with their labels, the training set in the published code; None is the gallery.
    """

    known: Gallery | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known(self.known)

    def plan(self, benign: Benign, targets: None) -> Plan:
        need_classes(self, benign)
        far = self._distances(benign)
        bound = -far.majority()
        return self.away(
            benign, bound, lambda codes: -far.mean(codes, even), lambda codes: -far.mean(codes, near_first)
        )

    def bound(self, benign: Benign) -> Tensor:
        """Away from the majority of the relevant codes, bit by bit."""
        return -self._distances(benign).majority()

    def _distances(self, benign: Benign) -> "_Distances":
        known, relevant = _sharing(self.known, benign, benign.labels)
        return _Distances(known, relevant, codes_of(benign.embeddings), away_step)


@dataclass(frozen=True)
class TowardsRelevantCodes(Targeted):
    """Towards the codes of the items that share a target label, the far ones first.

    Minimizes ``(25 / K) mean_r w D_s(h~, r)`` over the codes r of known items that share one, with D_s in the steps of
    `towards_step` and the weights w of `far_first`. Without such an item it makes for the code of the first target.

    Args:
        known: As of `RelevantCodes`.
    """

    known: Gallery | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_known(self.known)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        distances = self._distances(benign, targets)
        return self.towards(benign, targets, distances.majority(), lambda codes: distances.mean(codes, far_first))

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The majority of the codes of the items that share a target label, bit by bit."""
        return self._distances(benign, targets).majority()

    def _distances(self, benign: Benign, targets: Tensor) -> "_Distances":
        known, relevant = _sharing(self.known, benign, self.labels(benign, targets))
        return _Distances(known, relevant, super().bound(benign, targets), towards_step)


def _sharing(known: Gallery | None, benign: Benign, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of the known items ``[N, bits]``, and which of them share one of these labels, ``[B, N]``."""
    known = known_items(known, benign)
    shared = relevance(labels, known.labels.to(labels.device))
    return known.codes.to(benign.embeddings), shared.to(benign.embeddings)


class _Distances:
    """From the relevant codes of each image of a batch; from a code of its own, where it has none of them."""

    def __init__(self, items: Tensor, relevant: Tensor, instead: Tensor, step: SoftStep) -> None:
        self.items, self.relevant, self.step = items, relevant, step
        self.instead, self.alone = instead.to(items), relevant.sum(1) == 0

    def majority(self) -> Tensor:
        """int8 ``[B, bits]``."""
        votes = self.relevant @ self.items
        return codes_of(torch.where(self.alone[:, None], self.instead, votes))

    def mean(self, codes: Tensor, weights: Weighting) -> Tensor:
        """Of relaxed codes ``[B, bits]``, times 25 / K: ``[B]``."""
        among = mean_distances(codes, self.items, self.relevant, weights, self.step)
        steps = torch.where(self.instead > 0, self.step(codes, 1.0), self.step(codes, -1.0)).sum(1)
        differing = (codes.detach().sign() != self.instead).to(codes).sum(1)
        return SCALE / codes.shape[1] * torch.where(self.alone, weights(differing) * steps, among)


def even(distances: Tensor) -> Tensor:
    """All weigh 1."""
    return torch.ones_like(distances)


def near_first(distances: Tensor) -> Tensor:
    """``(D_H + 1e-8)^(-1/2)``."""
    return (distances + 1e-8).rsqrt()


def far_first(distances: Tensor) -> Tensor:
    """``D_H^0.3``."""
    return distances**0.3


def away_step(codes: Tensor, sign: float) -> Tensor:
    """``|h - r| s / 2 + 1 - s`` with ``s = sigmoid(5 h r)``: steep where the bits agree."""
    agree = torch.sigmoid(5 * codes * sign)
    return (codes - sign).abs() / 2 * agree + 1 - agree


def towards_step(codes: Tensor, sign: float) -> Tensor:
    """``|h - r| sigmoid(-10 h r) / 2``: steep where they differ."""
    return (codes - sign).abs() / 2 * torch.sigmoid(-10 * codes * sign)


def surrogate_distances(codes: Tensor, items: Tensor, step: SoftStep) -> Tensor:
    """D_s ``[B, N]`` of relaxed codes ``[B, bits]`` and codes ``[N, bits]``: Hamming distances in soft steps.

    A bit of r counts by its sign alone, so that all items are two matrix products.
    """
    plus, minus = step(codes, 1.0), step(codes, -1.0)
    positive = (items > 0).to(codes)
    return plus @ positive.T + minus @ (1 - positive).T


def mean_distances(codes: Tensor, items: Tensor, relevant: Tensor, weights: Weighting, step: SoftStep) -> Tensor:
    """``mean_r w D_s(h, r)``, ``[B]``, over the items that are relevant ``[B, N]``; 0 where none is."""
    differing = ((codes.shape[1] - codes.detach().sign() @ items.T) / 2).clamp(min=0)
    distances = relevant * weights(differing) * surrogate_distances(codes, items, step)
    return distances.sum(1) / relevant.sum(1).clamp(min=1)
