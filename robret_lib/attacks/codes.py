"""Attacks on hash codes without a target: the ranking of a query gets as bad as it can.

All measure ``average_precision`` in percent, where classes are known, so that its mean over all queries is the MAP that
is left; ``flipped``, the percent of bits that differ from the benign code; and ``bound``, what would be left if every
bit could be set. That is the bound of an attack, the code that it makes for, so another attack may go below it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.answers import need_classes
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import (
    CodeLoss,
    OnCodes,
    check_drawing,
    check_known,
    drawn_items,
    known_items,
    masked_losses,
    mean_losses,
    own_classes,
    smooth_precisions,
)
from robret_lib.data import relevance
from robret_lib.fields import check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing.center_code import Weights, center_code, check_weights


@dataclass(frozen=True)
class Away(OnCodes):
    """An attack without a target, which makes for a code that is bad for each image."""

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        return None

    def bound(self, benign: Benign) -> Tensor:
        """The code int8 ``[B, bits]`` it would choose."""
        return -codes_of(benign.embeddings)

    def away(self, benign: Benign, bound: Tensor, loss: CodeLoss, followed: CodeLoss | None = None) -> Plan:
        """The plan of a loss of relaxed codes; see `OnCodes.planned`."""
        return self.planned(benign, own_classes(benign), bound, loss, followed)


@dataclass(frozen=True)
class OwnCode(Away):
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
class HammingAdversary(Away):
    """HAG: away from the benign relaxed code h, leaving alone what has been flipped (Yang et al., IEEE TCYB 2020).

    With the mask ``m_k = [|h~_k - sign h_k| < 1 + t]`` it follows ``(sum_k m_k h~_k h_k / sum_k m_k + 1)^2 +
    beta (mean_k m_k h~_k)^2`` of each image. That says nothing of bits that have flipped, so which image is best is
    said by ``mean_k h~_k h_k``: on CSQ's codes at 28/255, 100 steps of `AutoPGD` leave 1.5 ± 0.5 % less so. (The
    authors' code and SAAT's port have no other loss; they differ in the search, see `search.descent`. SAAT's takes the
    mean over a batch, so that its steps depend on the batch's size.)

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
        return self.away(
            benign, self.bound(benign), lambda codes: mean_losses(codes * own), lambda codes: self.losses(codes, own)
        )

    def losses(self, codes: Tensor, own: Tensor) -> Tensor:
        """``[B]`` of relaxed codes ``[B, bits]``, attacked and benign."""
        mask = ((codes - own.sign()).abs() < 1 + self.threshold).to(codes)
        alike = (mask * codes * own).sum(1) / (mask.sum(1) + 1e-8)
        return (alike + 1).square() + self.weight * (mask * codes).mean(1).square()


@dataclass(frozen=True)
class CenterCode(Away):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights)
        check_known(self.known)

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
class Precision(Away):
    """The average precision itself, with soft ranks, of few items drawn from the gallery; see `smooth_precisions`.

    The twin without a target of PTA (MM 2023, `targeted_codes.TowardsPrecision`): what all others want by a detour.

    Args:
        items, others: How many items that share a label with the image are drawn, and how many that share none.
        temperature: T of the soft ranks; the default is chosen by measurement (tests/benchmarks/sharpness.md).
    """

    items: int = 75
    others: int = 300
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drawing(self.items, self.others, self.temperature)

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
