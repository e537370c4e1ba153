"""Adversarial training of both branches: each is attacked away from the center of the other's codes, and led back."""

from functools import partial

import torch
from torch import Tensor, nn

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import mean_losses
from robret_lib.cross_modal.objective import Pairs
from robret_lib.defenses.inner import check_inner
from robret_lib.fields import check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing import KnownCodes, center_code
from robret_lib.models import HashModel


class CenterGuidedPairs(nn.Module):
    """A loss of clean pairs, and ``-mean_k h~_k c_k`` of each attacked image and text.

    c is the center code of an item's labels among the codes of the *other* kind, since that is what it is searched in;
    the same ``mean_k h~_k c_k`` is made small by the inner attack. Cross-modal SAAT (`SAAT-Cross`, the authors' code)
    is guided in this way; it has the mainstay code, a masked loss, a rising sharpness, a quantization term and passes
    of images and texts by turns, and moves all entries of a text a little, where here words are changed.

    Args:
        clean: A loss of pairs.
        of_images: The inner attack on images, as ``PGD(8 / 255, 2 / 255, 7, random_start=True)``.
        of_texts: That on bags of words, as ``WordFlips(3, tried=1)``.
        known_images, known_texts: Codes of the training set by the network that training starts from.
        weight: Of what attacked codes cost.

    Raises:
        TypeError: One of the two is no search by gradients.
        ValueError: A weight below 0.
    """

    def __init__(
        self,
        clean: nn.Module,
        of_images: Search,
        of_texts: Search,
        known_images: KnownCodes,
        known_texts: KnownCodes,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        for search in (of_images, of_texts):
            check_inner(self, search)
        check_number("weight", weight, least=0)
        self.clean, self.of_images, self.of_texts, self.weight = clean, of_images, of_texts, weight
        self.known_images, self.known_texts = known_images, known_texts

    def forward(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """Scalar."""
        centers = [self._centers(pairs.labels, known) for known in (self.known_texts, self.known_images)]
        branches = pairs.model.images, pairs.model.texts
        searches, inputs = (self.of_images, self.of_texts), (pairs.images, pairs.bags)
        moved = [
            search(branch, given, partial(_agreement, centers=center), generator)
            for search, branch, given, center in zip(searches, branches, inputs, centers, strict=True)
        ]
        for known, outputs in zip((self.known_images, self.known_texts), pairs.outputs, strict=True):
            known.with_batch(pairs.rows, torch.tanh(outputs))
        cost = sum(_price(*each) for each in zip(branches, moved, centers, strict=True))
        return self.clean(pairs, generator) + self.weight * cost

    def _centers(self, labels: Tensor, known: KnownCodes) -> Tensor:
        """The center codes ``[n, bits]`` among codes of the other kind."""
        seen = known.all()
        return center_code(labels, codes_of(seen.codes), seen.labels).to(seen.codes)


def _agreement(outputs: Tensor, centers: Tensor) -> Tensor:
    return mean_losses(torch.tanh(outputs) * centers)


def _price(branch: HashModel, moved: Tensor, centers: Tensor) -> Tensor:
    return -_agreement(branch(moved), centers).mean()
