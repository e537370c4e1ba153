"""Words added and removed: a search among bags of words that some text has."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import check_images
from robret_lib.attacks.search.passes import Loss, NanWatch, losses, losses_and_gradient
from robret_lib.attacks.search.schedules import Best
from robret_lib.fields import check_count
from robret_lib.models import frozen


@dataclass(frozen=True)
class WordFlips:
    """Bags of zeros and ones in which at most ``words`` entries are flipped; the best is returned. As in `Search`.

    Greedy: by the gradient, an entry x changes the loss by about ``(1 - 2x) dL/dx`` when it is flipped. Those that
    promise most are flipped, ``at_once`` at a time, none twice; which bag is returned is said by the loss, not by the
    promise, so that, one at a time, more words never leave a larger one. Published attacks on bags move all entries a
    little (CMLA), to which no text belongs; this search is of our own.

    Args:
        words: How many entries may change in all.
        at_once: How many change between two looks at the network. A look is one forward and one backward pass, and a
            last one is one more forward pass.
    """

    words: int
    at_once: int = 1

    def __post_init__(self) -> None:
        check_count("words", self.words, least=0)
        check_count("at_once", self.at_once)

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        if not ((images == 0) | (images == 1)).all():
            raise ValueError("entries other than 0 and 1: expected bags of words, see data.bag_of_words")
        images, nan = images.detach(), NanWatch(images.device)
        if not self.words:
            return images.clone()
        best, x, fixed = Best(images), images, torch.zeros_like(images, dtype=torch.bool)
        words = min(self.words, images.shape[1:].numel())
        with frozen(model):
            for done in range(0, words, self.at_once):
                loss, gradient = losses_and_gradient(model, x, loss_fn, nan, done / words)
                best.keep(x, loss)
                promised = ((1 - 2 * x) * gradient).masked_fill(fixed, torch.inf).flatten(1)
                chosen = promised.topk(min(self.at_once, words - done), dim=1, largest=False).indices
                flipped = torch.zeros_like(fixed).flatten(1).scatter_(1, chosen, True).view_as(fixed)
                x, fixed = torch.where(flipped, 1 - x, x), fixed | flipped
            best.keep(x, losses(model, x, loss_fn, nan))
        nan.check()
        return best.images.clone()
