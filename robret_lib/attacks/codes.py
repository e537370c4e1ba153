"""Attacks on hash codes without a target: the ranking of a query gets as bad as it can.

All measure ``average_precision`` in percent, where classes are known, so that its mean over all queries is the MAP that
is left; ``flipped``, the percent of bits that differ from the benign code; and ``bound``, what would be left if every
bit could be set. That is the bound of an attack, the code that it makes for, so another attack may go below it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.answers import need_classes
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import (
    CodeLoss,
    OnCodes,
    drawn_items,
    known_items,
    masked_losses,
    mean_losses,
    own_classes,
    smooth_precisions,
)
from robret_lib.data import relevance
from robret_lib.fields import check_count, check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing.center_code import Weights, center_code


@dataclass(frozen=True)
class _Away(OnCodes):
    """An attack without a target."""

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        return None

    def bound(self, benign: Benign) -> Tensor:
        """The code int8 ``[B, bits]`` it would choose."""
        return -codes_of(benign.embeddings)

    def away(self, benign: Benign, bound: Tensor, loss: CodeLoss, followed: CodeLoss | None = None) -> Plan:
        """The plan of a loss of relaxed codes; see `OnCodes.planned`."""
        return self.planned(benign, own_classes(benign), bound, loss, followed)


@dataclass(frozen=True)
class OwnCode(_Away):
    """Away from the benign code: minimizes ``mean_k h~_k b_k`` with ``b = sign f(x)``.

    Threat model of all attacks of this file: *knowledge*, white-box: the network, and what the attack looks at besides.
    *Goal*: a bad ranking of the gallery by Hamming distance. *Norm* and *budget*: of the search. *What moves*: the
    query. *Success*: the mean average precision that is left, over all queries.
    """

    def plan(self, benign: Benign, targets: None) -> Plan:
        away = self.bound(benign)
        own = -away.to(benign.embeddings)
        return self.away(benign, away, lambda codes: mean_losses(codes * own))


@dataclass(frozen=True)
class HammingAdversary(_Away):
    """HAG: away from the benign relaxed code h, leaving alone what has been flipped (Yang et al., IEEE TCYB 2020).

    With the mask ``m_k = [|h~_k - sign h_k| < 1 + t]`` it minimizes ``(sum_k m_k h~_k h_k / sum_k m_k + 1)^2 +
    beta (mean_k m_k h~_k)^2`` of each image. (The authors' code and SAAT's port have no other loss; they differ in the
    search, see `search.descent`. SAAT's takes the mean over a batch, so that its steps depend on the batch's size.)

    Args:
        threshold: t. A bit that is further than this on the other side counts no more.
        weight: beta.
    """

    threshold: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, least=0)
        check_number("weight", self.weight, least=0)

    def plan(self, benign: Benign, targets: None) -> Plan:
        own = torch.tanh(benign.embeddings)
        return self.away(benign, self.bound(benign), lambda codes: self.losses(codes, own))

    def losses(self, codes: Tensor, own: Tensor) -> Tensor:
        """``[B]`` of relaxed codes ``[B, bits]``, attacked and benign."""
        mask = ((codes - own.sign()).abs() < 1 + self.threshold).to(codes)
        alike = (mask * codes * own).sum(1) / (mask.sum(1) + 1e-8)
        return (alike + 1).square() + self.weight * (mask * codes).mean(1).square()


@dataclass(frozen=True)
class RelevantCodes(_Away):
    """SDHA: away from the codes of the items that share a label, the near ones first (ICMR 2021, as ported in SAAT).

    Follows ``-(25 / K) mean_r w D_s(h~, r)`` over the codes r of known items that share a label, with the
    `surrogate_distances` D_s and the weights ``w = (D_H + 1e-8)^(-1/2)`` of the moment. These make it smallest, by
    thousands, at the very codes that it leaves, so that which image is best is said without them. Without such an item
    it flees from the own code. The published search adds the mean squared change of a pixel, see `search.descent`.

    Args:
        known: Items with their labels, the training set in the published code; None is the gallery.
    """

    known: Gallery | None = None

    def plan(self, benign: Benign, targets: None) -> Plan:
        need_classes(self, benign)
        known, relevant = self._relevant(benign)
        items = known.codes.to(benign.embeddings)
        own = codes_of(benign.embeddings).to(items)
        alone = relevant.sum(1) == 0

        def loss(codes: Tensor, weights: Weighting = even) -> Tensor:
            far = mean_distances(codes, items, relevant, weights)
            far_from_own = [mean_distances(*pair, codes.new_ones(1, 1), weights) for pair in _pairs(codes, own)]
            return -25 / codes.shape[1] * torch.where(alone, torch.cat(far_from_own), far)

        return self.away(benign, self._away_from(known, relevant, own), loss, lambda codes: loss(codes, near_first))

    def bound(self, benign: Benign) -> Tensor:
        """Away from the majority of the relevant codes, bit by bit."""
        return self._away_from(*self._relevant(benign), codes_of(benign.embeddings))

    def _relevant(self, benign: Benign) -> tuple[Gallery, Tensor]:
        known = known_items(self.known, benign)
        shared = relevance(benign.labels, known.labels.to(benign.labels.device))
        return known, shared.to(benign.embeddings)

    @staticmethod
    def _away_from(known: Gallery, relevant: Tensor, own: Tensor) -> Tensor:
        away = -codes_of(relevant @ known.codes.to(relevant))
        return torch.where(relevant.any(1, keepdim=True), away, -codes_of(own))


def _pairs(codes: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(codes.split(1), others.split(1), strict=True)


Weighting = Callable[[Tensor, Tensor], Tensor]
"""Weights ``[B, N]`` of relaxed codes ``[B, bits]`` and codes ``[N, bits]``."""


def even(codes: Tensor, items: Tensor) -> Tensor:
    return codes.new_ones(len(codes), len(items))


def near_first(codes: Tensor, items: Tensor) -> Tensor:
    """``(D_H + 1e-8)^(-1/2)`` with the Hamming distance, without a gradient."""
    differing = (codes.shape[1] - codes.detach().sign() @ items.T) / 2
    return (differing.clamp(min=0) + 1e-8).rsqrt()


def surrogate_distances(codes: Tensor, items: Tensor) -> Tensor:
    """D_s ``[B, N]`` of relaxed codes ``[B, bits]`` and codes ``[N, bits]``: Hamming distances in soft steps.

    ``D_s = sum_k |h_k - r_k| s / 2 + 1 - s`` with ``s = sigmoid(5 h_k r_k)`` depends on a bit of r by its sign
    alone, so that all items are two matrix products.
    """
    plus, minus = (
        (codes - sign).abs() / 2 * torch.sigmoid(5 * codes * sign) + 1 - torch.sigmoid(5 * codes * sign)
        for sign in (1.0, -1.0)
    )
    positive = (items > 0).to(codes)
    return plus @ positive.T + minus @ (1 - positive).T


def mean_distances(codes: Tensor, items: Tensor, relevant: Tensor, weights: Weighting) -> Tensor:
    """``mean_r w D_s(h, r)``, ``[B]``, over the items that are relevant ``[B, N]``; 0 where none is."""
    distances = relevant * weights(codes, items) * surrogate_distances(codes, items)
    return distances.sum(1) / relevant.sum(1).clamp(min=1)


@dataclass(frozen=True)
class CenterCode(_Away):
    """Away from the center of what shares a label: CgA of CgAT (WWW 2023), and SAAT's mainstay attack (TIFS 2023).

    The center code c of an image's own labels (`hashing.center_code`) is near all codes that share a label, and far
    from the others; its negative is the worst code by mean distances. With ``s_k = h~_k c_k`` it minimizes
    ``mean_k s_k``, or, masked, the mean of ``(s_k + 2) s_k`` over the bits with ``s_k > -1/2``, which leaves alone
    what is flipped. That says nothing of bits that have flipped, so it is followed, and images are judged by the other.

    Args:
        weights, balanced: Of the center code. "cosine" is the mainstay code.
        masked: See above; published so.
        known: Items with their labels, the training set in the published code; None is the gallery.
    """

    weights: Weights = "binary"
    balanced: bool = True
    masked: bool = False
    known: Gallery | None = None

    def plan(self, benign: Benign, targets: None) -> Plan:
        away = self.bound(benign)
        center = -away.to(benign.embeddings)
        followed = (lambda codes: masked_losses(codes * center)) if self.masked else None
        return self.away(benign, away, lambda codes: mean_losses(codes * center), followed)

    def bound(self, benign: Benign) -> Tensor:
        """The negative of the center code."""
        need_classes(self, benign)
        known = known_items(self.known, benign)
        return -codes_of(center_code(benign.labels, known.codes, known.labels, self.weights, self.balanced))


@dataclass(frozen=True)
class Precision(_Away):
    """The average precision itself, with soft ranks, of few items drawn from the gallery; see `smooth_precisions`.

    The twin without a target of PTA (MM 2023, `targeted_codes.TowardsPrecision`): what all others want by a detour.

    Args:
        items, others: How many items that share a label with the image are drawn, and how many that share none.
        temperature: T of the soft ranks.
    """

    items: int = 75
    others: int = 300
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("items", self.items)
        check_count("others", self.others)
        check_number("temperature", self.temperature, above=0)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """Gallery positions ``[B, items + others]``."""
        need_classes(self, benign)
        shared = relevance(benign.labels, benign.gallery.labels.to(benign.labels.device))
        if benign.own is not None:
            shared = shared.scatter(1, benign.own[:, None].to(shared.device), False)
        kinds = (shared, self.items), (~shared, self.others)
        return torch.cat([drawn_items(*kind, generator) for kind in kinds], dim=1).to(benign.embeddings.device)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        relevant, others = benign.gallery.items[targets].split([self.items, self.others], dim=1)
        return self.away(
            benign, self.bound(benign), lambda codes: smooth_precisions(codes, relevant, others, self.temperature)
        )

    def bound(self, benign: Benign) -> Tensor:
        """The negative of the center code, for want of the worst code there is."""
        return CenterCode().bound(benign)
