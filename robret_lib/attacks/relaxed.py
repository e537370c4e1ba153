"""What attacks on hash codes share: codes made soft enough to follow, and how good the ranking is that is left.

A loss sees the outputs f of a `HashModel`. The relaxed code is ``h = tanh(alpha f)``: near the code where the sharpness
alpha is large, but then hardly any gradient comes through it. Published attacks raise alpha from 0.1 to 1 on their way,
and judge by the signs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, get_args

import torch
from torch import Tensor

from robret_lib.attacks.answers import has_classes
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.fields import check_count, check_number
from robret_lib.hamming import average_precisions, codes_of

Sharpness = Literal["rising", "one", "relative", "own"]
"""How alpha goes: from 0.1 to 1, in ten parts of the search (HAG, DHTA, SAAT); or 1 all the way; or `SPAN` over the
size of the gallery's outputs, so that a network is attacked alike whatever their scale, on which no code depends; or
`SPAN` over that of each image's own outputs, for a gallery that another network has made, as of texts."""

SPAN = 5.0
"""Root mean square of ``alpha f``. A sharp tanh moves the bits that can still be flipped and leaves the others alone;
one that is too sharp moves none. On the networks of chapter 3 by CSQ, DCH, DPSH and DPN, at 8 and 28/255, by the center
code and the soft precision, 5 left the least MAP of 0.3, 1, 2, 3, 5 and 10, or less than a point more
(tests/benchmarks/sharpness.md)."""

ALPHAS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

CodeLoss = Callable[[Tensor], Tensor]
"""A loss ``[B]`` of relaxed codes ``[B, bits]``."""

OutputLoss = Callable[[Tensor], Tensor]
"""A loss ``[B]`` of outputs ``[B, bits]``."""


def alpha_at(share: float) -> float:
    """alpha when a share of the search is over (SAAT, `get_alpha`)."""
    return ALPHAS[min(int(share * len(ALPHAS) + 1e-9), len(ALPHAS) - 1)]


@dataclass(frozen=True)
class OnCodes:
    """An attack on hash codes.

    Args:
        sharpness: See `Sharpness`.
        top_k: Depth of the average precision that is measured; None is the whole gallery.
    """

    sharpness: Sharpness = "one"
    top_k: int | None = None

    rows = 1

    def __post_init__(self) -> None:
        if self.sharpness not in get_args(Sharpness):
            raise ValueError(f"sharpness={self.sharpness!r}: expected one of {get_args(Sharpness)}")
        if self.top_k is not None:
            check_count("top_k", self.top_k)

    def planned(
        self, benign: Benign, labels: Tensor | None, bound: Tensor, loss: CodeLoss, followed: CodeLoss | None = None
    ) -> Plan:
        """The plan of a loss of relaxed codes; ``followed`` is one whose gradient is taken in its place.

        It measures ``flipped``, in how many percent of the bits a code differs from the benign one; and, by labels
        where there are any, ``average_precision`` in percent, ties as expected over their orders, the image itself left
        out; and ``bound``, the same of the codes ``bound [B, bits]``, which no image may have.
        """
        check_hash_gallery(benign.gallery)
        alpha = self._alpha(benign)
        changes = self.sharpness == "rising" or followed is not None
        return Plan(
            _relaxed(loss, alpha),
            _Measures(benign, labels, bound, self.top_k),
            at=partial(self._at, followed or loss, alpha) if changes else None,
            reached=lambda outputs: (codes_of(outputs) == bound).all(1),
        )

    def _alpha(self, benign: Benign) -> Tensor | float:
        """Of the search, a scalar or one for each image, ``[B, 1]``; "rising" has its own."""
        if self.sharpness == "relative":
            return SPAN / size_of(benign.gallery.embeddings)
        if self.sharpness == "own":
            return SPAN / size_of(benign.embeddings, dim=1)
        return 1.0

    def _at(self, followed: CodeLoss, alpha: Tensor | float, share: float) -> OutputLoss:
        """What is followed when a share of the search is over."""
        return _relaxed(followed, alpha_at(share) if self.sharpness == "rising" else alpha)


def _relaxed(loss: CodeLoss, alpha: Tensor | float) -> OutputLoss:
    """A loss of outputs ``[B, bits]``, given one of their relaxed codes."""
    return lambda outputs: loss(torch.tanh(alpha * outputs))


class _Measures:
    """What is measured of the outputs ``[B, bits]`` for a batch, see `OnCodes.planned`."""

    def __init__(self, benign: Benign, labels: Tensor | None, code: Tensor, top_k: int | None) -> None:
        self.benign, self.labels, self.code, self.top_k = benign, labels, code, top_k
        self.own = codes_of(benign.embeddings)

    def __call__(self, outputs: Tensor) -> dict[str, Tensor]:
        codes = codes_of(outputs)
        found = {"flipped": 100 * (codes != self.own).float().mean(1)}
        if self.labels is None:
            return found
        return found | {"average_precision": self._precisions(codes), "bound": self._bound}

    @cached_property
    def _bound(self) -> Tensor:
        """Of the code that the attack makes for, once a batch."""
        return self._precisions(self.code)

    def _precisions(self, codes: Tensor) -> Tensor:
        gallery, labels = self.benign.gallery, self.labels
        given = codes, gallery.codes, labels, gallery.labels.to(labels.device)
        return 100 * average_precisions(*given, self.top_k, own=self.benign.own).to(codes.device)


def size_of(outputs: Tensor, dim: int | None = None) -> Tensor:
    """The root mean square, a scalar, or along a dimension that stays; 1 where all are 0."""
    size = outputs.square().mean(dim, keepdim=dim is not None).sqrt()
    return torch.where(size > 0, size, 1.0)


def mean_losses(agreement: Tensor) -> Tensor:
    """``[B]`` of ``s [B, bits]``."""
    return agreement.mean(1)


def masked_losses(agreement: Tensor) -> Tensor:
    """The mean of ``(s + 2) s`` over the bits with ``s > -1/2``, ``[B]``; 0 where there are none (SAAT)."""
    mask = (agreement > -0.5).to(agreement)
    return (mask * (agreement + 2) * agreement).sum(1) / mask.sum(1).clamp(min=1)


def smooth_precisions(codes: Tensor, relevant: Tensor, others: Tensor, temperature: float) -> Tensor:
    """The average precision of few items with soft ranks, ``[B]`` in [0, 1] (SmoothAP, Brown et al., ECCV 2020).

    The rank of an item is one more than the sum of ``sigmoid((s_j - s_i) / T)`` over the others, with the similarity
    ``s = h b / K``: how many are nearer, in soft steps.

    Args:
        codes: Relaxed, ``[B, bits]``.
        relevant, others: Codes of items that answer and of such that do not, ``[B, P, bits]`` and ``[B, N, bits]``.
        temperature: T, of similarities in [-1, 1].
    """
    own, foreign = ((items @ codes[:, :, None])[..., 0] / codes.shape[1] for items in (relevant, others))
    ahead = torch.sigmoid((own[:, None] - own[:, :, None]) / temperature).sum(2) + 0.5  # itself is one half of one
    before = torch.sigmoid((foreign[:, None] - own[:, :, None]) / temperature).sum(2)
    return (ahead / (ahead + before)).mean(1)


def check_drawing(items: int, others: int, temperature: float) -> None:
    """Raise a ValueError unless items can be drawn for `smooth_precisions`: at least one of a kind, T above 0."""
    check_count("items", items)
    check_count("others", others)
    check_number("temperature", temperature, above=0)


def drawn_items(wanted: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Positions ``[B, count]`` drawn from the items that are wanted, bool ``[B, N]``; with replacement where few are.

    Image after image, so that batches do not matter. Where none is wanted, from all.
    """
    found = []
    for row in wanted.cpu():
        weights = row.double() if row.any() else torch.ones(len(row), dtype=torch.float64)
        enough = int((weights > 0).sum()) >= count
        found.append(torch.multinomial(weights, count, replacement=not enough, generator=generator))
    return torch.stack(found)


def own_classes(benign: Benign) -> Tensor | None:
    """The labels of the images, if an average precision can be had by them."""
    return benign.labels if has_classes(benign) else None


def check_hash_gallery(gallery: Gallery) -> None:
    """Raise a ValueError unless it is one of hash codes."""
    if gallery.distance != "H":
        raise ValueError(f"a gallery with distance {gallery.distance!r}: expected one of a models.HashModel")


def check_known(known: Gallery | None, name: str = "known") -> None:
    """Raise a TypeError that tells the argument's name unless it is a gallery, or None."""
    if known is not None and not isinstance(known, Gallery):
        raise TypeError(f"{name} of type {type(known).__name__}: expected a Gallery of codes with labels, or None")


def known_items(known: Gallery | None, benign: Benign) -> Gallery:
    """The items with labels that an attack knows; None is the gallery.

    Raises:
        ValueError: They are no hash codes, or of another length than the gallery's, or have no labels.
    """
    known = benign.gallery if known is None else known
    check_hash_gallery(known)
    lengths = known.codes.shape[1], benign.gallery.codes.shape[1]
    if lengths[0] != lengths[1]:
        raise ValueError(f"known items with codes of {lengths[0]} bits: expected {lengths[1]}, as the gallery has")
    if known.labels is None:
        raise ValueError("known items without labels: give labels to Gallery.of")
    return known
