"""Words added and removed: a search among bags of words that some text has."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import check_images
from robret_lib.attacks.search.parts import Parts
from robret_lib.attacks.search.passes import Loss, NanWatch, losses, losses_and_gradient
from robret_lib.attacks.search.schedules import Best
from robret_lib.fields import check_count
from robret_lib.models import frozen

AT_ONCE = 2048
"""Bags that go through the network together."""


@dataclass(frozen=True)
class WordFlips:
    """Bags of zeros and ones in which at most ``words`` entries are flipped; the best is returned. As in `Search`.

    Greedy, word by word: by the gradient, an entry x changes the loss by about ``(1 - 2x) dL/dx`` when it is flipped.
    Those entries that promise most are tried, and the one with the least loss stays; none is flipped twice. The loss
    says which bag is returned, so more words never leave a larger one, if it does not change on the way as a rising
    sharpness does. Published attacks on bags move all entries a little (CMLA), to which no text belongs; this search is
    of our own.

    Args:
        words: How many entries may change in all.
        tried: How many entries are tried for each word, a forward pass each, besides one forward and one backward pass;
            1 takes the gradient's word for it.
    """

    words: int
    tried: int = 64

    def __post_init__(self) -> None:
        check_count("words", self.words, least=0)
        check_count("tried", self.tried)

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        if not ((images == 0) | (images == 1)).all():
            raise ValueError("entries other than 0 and 1: expected bags of words, see data.bag_of_words")
        images, nan = images.detach(), NanWatch(images.device)
        if not self.words:
            return images.clone()
        best, x, fixed = Best(images), images, torch.zeros_like(images, dtype=torch.bool).flatten(1)
        parts, words = Parts(loss_fn, len(images)), min(self.words, images.shape[1:].numel())
        with frozen(model):
            for done in range(words):
                loss, gradient = losses_and_gradient(model, x, loss_fn, nan, done / words)
                best.keep(x, loss)
                promised = ((1 - 2 * x) * gradient).flatten(1).masked_fill(fixed, torch.inf)
                chosen = promised.topk(min(self.tried, promised.shape[1] - done), dim=1, largest=False).indices
                entry = self._best_of(chosen, x, model, parts, nan)
                x, fixed = _flipped(x, entry), fixed.scatter(1, entry, True)
            best.keep(x, losses(model, x, loss_fn, nan))
        nan.check()
        return best.images.clone()

    def _best_of(self, chosen: Tensor, x: Tensor, model: nn.Module, parts: Parts, nan: NanWatch) -> Tensor:
        """Of the entries ``[B, tried]`` of each bag the one ``[B, 1]`` whose flip has the least loss."""
        if chosen.shape[1] == 1 or not len(x):
            return chosen[:, :1]
        found = []
        for rows in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // chosen.shape[1])):
            again = rows.repeat_interleave(chosen.shape[1])
            bags = _flipped(x[again], chosen[rows].reshape(-1, 1))
            found.append(losses(model, bags, parts.of(again), nan).view(len(rows), -1))
        return chosen.gather(1, torch.cat(found).argmin(1, keepdim=True))


def _flipped(bags: Tensor, entries: Tensor) -> Tensor:
    """Bags with one entry each flipped, number ``entries [B, 1]``."""
    flat = bags.flatten(1)
    return flat.scatter(1, entries, 1 - flat.gather(1, entries)).view_as(bags)
