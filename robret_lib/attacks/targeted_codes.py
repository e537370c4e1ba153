"""Attacks on hash codes with a target: the ranking of a query becomes that of images with other, chosen labels.

Target labels are given, one label vector for each image, and shared by all attacks that are compared (`target_labels`).
All measure ``average_precision`` in percent by the *target* labels, so that its mean is the t-MAP; higher is stronger;
and ``bound``, that of the code which an attack makes for.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import (
    CodeLoss,
    OnCodes,
    check_drawing,
    check_known,
    drawn_items,
    known_items,
    mean_losses,
    smooth_precisions,
)
from robret_lib.data import relevance, same_kind
from robret_lib.fields import check_count, check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing.center_code import Weights, center_code, check_weights

TargetLoss = Literal["mean", "published", "symmetric"]
"""Of ``s_k = h~_k c_k``: minus its mean; SAAT's, whose slope is zero at s = -1, where a bit is to be flipped; or its
mirror image, with the largest slope there."""


@dataclass(frozen=True)
class Targeted(OnCodes):
    """An attack towards the labels of others.

    Args:
        wanted: Target labels of all images, ``[B]`` or ``[B, C]``, see `target_labels.draw_labels`, which draws none
            that shares a label with its image. Others may: then some of the image's own answers are wanted, too.
        loss: See `TargetLoss`.

    Raises:
        TypeError: No tensor of target labels.
        ValueError: No such loss.
    """

    wanted: Tensor = field(kw_only=True)
    loss: TargetLoss = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.wanted, Tensor):
            kind = type(self.wanted).__name__
            raise TypeError(f"wanted of type {kind}: expected a tensor of target labels, see target_labels.draw_labels")
        if self.loss not in get_args(TargetLoss):
            raise ValueError(f"loss={self.loss!r}: expected one of {get_args(TargetLoss)}")

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """Positions ``[B, 1]`` of the first item that has exactly the target labels."""
        return self.having_them(benign).int().argmax(1, keepdim=True).to(benign.embeddings.device)

    def having_them(self, benign: Benign) -> Tensor:
        """Which items have exactly the target labels, bool ``[B, N]``.

        Raises:
            ValueError: There is no such item for an image, or not one target for each.
        """
        if benign.gallery.labels is None:
            raise ValueError(f"{type(self).__name__} needs classes: give labels to Gallery.of")
        if len(self.wanted) != len(benign):
            raise ValueError(f"{len(self.wanted)} target labels of {len(benign)} images: expected one each")
        wanted, labels = same_kind(self.wanted.to(benign.gallery.labels.device), benign.gallery.labels)
        # to compare all with all label by label would take B x N x C bytes
        numbers = torch.cat([wanted, labels]).unique(dim=0, return_inverse=True)[1]
        same = numbers[: len(wanted), None] == numbers[len(wanted) :]
        if not same.any(1).all():
            raise ValueError(f"{int((~same.any(1)).sum())} of the target label vectors are those of no gallery item")
        return same

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The code int8 ``[B, bits]`` it would choose: that of the first target."""
        return benign.gallery.codes[targets[:, 0]]

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        bound = self.bound(benign, targets)
        codes = bound.to(benign.embeddings)
        judged, followed = TARGET_LOSSES["mean"], TARGET_LOSSES[self.loss]
        return self.towards(benign, targets, bound, lambda u: judged(u * codes), lambda u: followed(u * codes))

    def towards(
        self, benign: Benign, targets: Tensor, bound: Tensor, loss: CodeLoss, followed: CodeLoss | None = None
    ) -> Plan:
        """The plan of a loss of relaxed codes, with the target labels for a search that makes images for them."""
        labels = self.labels(benign, targets)
        plan = self.planned(benign, labels, bound, loss, followed)
        return plan._replace(labels=labels)

    def labels(self, benign: Benign, targets: Tensor) -> Tensor:
        """The target labels in the dtype of the gallery's, beside the embeddings."""
        labels = benign.gallery.labels.to(benign.embeddings.device)
        return labels[targets[:, 0]]


def _published(agreement: Tensor) -> Tensor:
    mask = (agreement < 0.5).to(agreement)
    return -(mask * (agreement + 2) * agreement).sum(1) / mask.sum(1).clamp(min=1)


def _symmetric(agreement: Tensor) -> Tensor:
    mask = (agreement < 0.5).to(agreement)
    return (mask * (agreement - 2) * agreement).sum(1) / mask.sum(1).clamp(min=1)


TARGET_LOSSES = {"mean": lambda agreement: -mean_losses(agreement), "published": _published, "symmetric": _symmetric}
"""What is followed. The latter two say nothing of bits that agree, so that images are judged by the mean."""


@dataclass(frozen=True)
class PointToSet(Targeted):
    """DHTA: towards the code for which most of some items with the target labels vote, bit by bit (Bai et al., 2020).

    The majority code has the smallest sum of Hamming distances to them, since each bit adds to it alone. Minimizes
    minus ``mean_k h~_k c_k``.

    Args:
        items: How many items, drawn from those with exactly the target labels, with replacement where they are fewer;
            1 is P2P. An odd number has no draws; a bit with one is +1.
    """

    items: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("items", self.items)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        return drawn_items(self.having_them(benign), self.items, generator).to(benign.embeddings.device)

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The code most of them vote for."""
        return codes_of(benign.gallery.codes[targets].float().sum(1))


@dataclass(frozen=True)
class TowardsCenter(Targeted):
    """SAAT's targeted attack: towards the center code of the target labels (TIFS 2023).

    Args:
        weights, balanced: Of the center code; "cosine" is the mainstay code.
        known: Items with their labels, the training set in the published code; None is the gallery.
    """

    weights: Weights = "cosine"
    balanced: bool = True
    loss: TargetLoss = "symmetric"
    known: Gallery | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights)
        check_known(self.known)

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The center code of the target labels."""
        known = known_items(self.known, benign)
        labels = self.labels(benign, targets)
        return codes_of(center_code(labels, known.codes, known.labels, self.weights, self.balanced))


@dataclass(frozen=True)
class TowardsPrecision(Targeted):
    """PTA: the average precision by the target labels itself, with soft ranks (MM 2023); see `smooth_precisions`.

    Args:
        items, others: How many items that share a target label are drawn, and how many that share none. (The published
            code draws the latter from those with a true label of the image, 300 for each.)
        temperature: T of the soft ranks. The published one is 0.1 bits, 0.2 / K of these similarities.
    """

    items: int = 75
    others: int = 300
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drawing(self.items, self.others, self.temperature)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """Gallery positions ``[B, 1 + items + others]``, the first that of an item with exactly the target labels."""
        first, gallery = super().targets(benign, generator), benign.gallery
        shared = relevance(self.labels(benign, first), gallery.labels.to(first.device))
        kinds = (shared, self.items), (~shared, self.others)
        drawn = (drawn_items(*kind, generator).to(first.device) for kind in kinds)
        return torch.cat([first, *drawn], dim=1)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        relevant, others = benign.gallery.items[targets[:, 1:]].split([self.items, self.others], dim=1)
        bound = self.bound(benign, targets)
        return self.towards(
            benign, targets, bound, lambda codes: -smooth_precisions(codes, relevant, others, self.temperature)
        )

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The center code of the target labels, for want of the best code there is."""
        return codes_of(center_code(self.labels(benign, targets), benign.gallery.codes, benign.gallery.labels))


@dataclass(frozen=True)
class Prototype(Targeted):
    """THA and the code part of ProS-GAN: towards the code that a network has for the target labels (SIGIR, CVPR 2021).

    Args:
        network: Maps label vectors ``[B, C]`` to relaxed codes ``[B, bits]``, see `hashing.prototype`.
    """

    network: nn.Module = field(kw_only=True)

    def bound(self, benign: Benign, targets: Tensor) -> Tensor:
        """The signs of what the network says.

        Raises:
            ValueError: Its codes are not as long as the gallery's.
        """
        with torch.no_grad():
            codes = codes_of(self.network(self.labels(benign, targets).to(benign.embeddings)))
        expected = len(targets), benign.gallery.codes.shape[1]
        if codes.shape != expected:
            raise ValueError(
                f"a network that gives codes {tuple(codes.shape)}: expected {expected}, as the gallery has"
            )
        return codes


@dataclass(frozen=True)
class Collision(Targeted):
    """The very code of one item with the target labels: what a perceptual hash must not allow.

    Minimizes the sum of ``[m - h~_k c_k]_+`` over the bits, which is zero only where all agree by the margin m, where
    an average is content with most of them. Measures ``collision``, 100 where the codes are equal and 0 elsewhere.

    Args:
        margin: m, of relaxed bits. One of 2 is never reached, so that the loss is K times that of the mean, plus 2 K.
    """

    margin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("margin", self.margin, least=0)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        target = self.bound(benign, targets)

        def loss(codes: Tensor) -> Tensor:
            return (self.margin - codes * target).clamp(min=0).sum(1)

        plan = self.towards(benign, targets, target, loss)

        def measures(outputs: Tensor) -> dict[str, Tensor]:
            equal = (codes_of(outputs) == target).all(1)
            return plan.measures(outputs) | {"collision": 100 * equal.float()}

        return plan._replace(measures=measures)
