"""A ball of which only one half is gone into: nothing gets smaller."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.auto_pgd import AutoPGD
from robret_lib.attacks.search.ball import Ball, check_images
from robret_lib.attacks.search.passes import Loss
from robret_lib.attacks.search.pgd import PGD


class UpperBall(Ball):
    """The images of a ball by "linf" in which no entry is smaller than in its center."""

    def __init__(self, images: Tensor, eps: float | Tensor) -> None:
        super().__init__(images, eps, "linf")
        self.lower = images


@dataclass(frozen=True)
class Upwards:
    """A search by "linf" that makes entries larger alone: CMLA clips to [0, eps] (Li et al., NeurIPS 2019).

    Of a bag of words that is: no word is removed. Called as in `Search`.

    Args:
        search: `PGD` or `AutoPGD`.

    Raises:
        TypeError: Another search.
        ValueError: One by another norm.
    """

    search: PGD | AutoPGD

    def __post_init__(self) -> None:
        if not isinstance(self.search, PGD | AutoPGD):
            raise TypeError(f"Upwards with {self.search!r}: expected PGD or AutoPGD")
        if self.search.norm != "linf":
            raise ValueError(f"Upwards with norm={self.search.norm!r}: expected 'linf'")

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        if self.search.eps == 0:
            return images.detach().clone()
        return self.search.within(UpperBall(images.detach(), self.search.eps), model, loss_fn, generator)
