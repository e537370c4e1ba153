"""Descent along the gradient itself, as the published attacks on hash codes do: its steps are as long as it is."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import Ball, Norm, check_images, check_length, check_norm
from robret_lib.attacks.search.passes import Loss, NanWatch, losses_and_gradient
from robret_lib.fields import check_count, check_number, check_share
from robret_lib.models import frozen

Rule = Literal["sgd", "unit", "adam"]
"""What a step is made of: the gradient; the gradient divided by its Euclidean length; or Adam's average of it."""


@dataclass(frozen=True)
class Descent:
    """For ``steps`` times a step of an optimizer, projected to the ball; returns the last image. Called as in `Search`.

    HAG and SDHA are published with it. Where the gradient is tiny, so are the steps of "sgd": a network that saturates
    then looks robust.

    Args:
        eps: Radius of the ball around the image, in pixel units (images are in [0, 1]).
        rate: Learning rate for the loss of one image. A loss that is published as the mean over a batch of n has n
            times the rate there.
        steps: Number of steps; each is one forward and one backward pass.
        rule: See `Rule`.
        momentum: Of "sgd", below 1: with 1 no step would ever fade.
        fidelity: Weight of the mean squared change of a pixel, which is added to the loss (SDHA has 1).
        norm: "linf" (largest change of a pixel) or "l2" (Euclidean length over all pixels).
        stops: Leave an image alone once it has all that its attack wants, for HAG once all bits are flipped; and stop
            when all images have. A loss that says so has a ``reached(embeddings)``, bool ``[B]``.
    """

    eps: float
    rate: float
    steps: int
    rule: Rule = "sgd"
    momentum: float = 0.0
    fidelity: float = 0.0
    norm: Norm = "linf"
    stops: bool = False

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_length("eps", self.eps, self.norm)
        check_number("rate", self.rate, above=0)
        check_count("steps", self.steps)
        check_share("momentum", self.momentum)
        if self.momentum == 1:
            raise ValueError(f"momentum={self.momentum}: expected a share below 1")
        check_number("fidelity", self.fidelity, least=0)
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule={self.rule!r}: expected one of {get_args(Rule)}")
        if self.momentum and self.rule != "sgd":
            raise ValueError(f"momentum={self.momentum} with rule={self.rule!r}: expected rule='sgd'")

    @classmethod
    def hag(cls, steps: int = 2000) -> "Descent":
        """HAG's: in pixels of 0 to 255 eps 10 and a rate of 100, until all bits are flipped (the authors' `main.py`).

        The authors forget to clip to valid pixels; here they are.
        """
        return cls(10 / 255, 100 / 255**2, steps, stops=True)

    @classmethod
    def hag_ported(cls, steps: int = 2000) -> "Descent":
        """As SAAT ports it: a rate of 100 for the mean over 128 images in [0, 1], some 500 times as much."""
        return cls(8 / 255, 100 / 128, steps, momentum=0.9)

    @classmethod
    def sdha(cls, steps: int = 1500) -> "Descent":
        """SDHA's, as SAAT ports it."""
        return cls(8 / 255, 0.01, steps, rule="adam", fidelity=1.0)

    @classmethod
    def dhta(cls, steps: int = 2000) -> "Descent":
        """DHTA's and P2P's: eps 0.032 and steps of length 1 (Bai et al., ECCV 2020, the authors' code).

        Both in units of the standard deviation of ImageNet's pixels, 0.226 on average, by which images are divided
        there: eps is 1.8/255, where later papers say 8/255.
        """
        return cls(0.032 * 0.226, 0.226, steps, rule="unit")

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        images = images.detach()
        if self.eps == 0:
            return images.clone()
        ball, nan, x = Ball(images, self.eps, self.norm), NanWatch(images.device), images.clone()
        optimizer, watched = self._optimizer(x), _Watched(loss_fn, len(x), x.device)
        with frozen(model):
            for done in range(self.steps):
                _, gradient = losses_and_gradient(model, x, watched, nan, done / self.steps)
                if self.stops and watched.reached.all():
                    break
                before = x.clone() if self.stops else x
                x.grad = self._direction(gradient, x - images)
                optimizer.step()
                ball.project(x)
                if self.stops:
                    x[watched.reached] = before[watched.reached]
        nan.check()
        x.grad = None
        return x

    def _optimizer(self, x: Tensor) -> torch.optim.Optimizer:
        if self.rule == "adam":
            return torch.optim.Adam([x], self.rate)
        return torch.optim.SGD([x], self.rate, self.momentum)

    def _direction(self, gradient: Tensor, change: Tensor) -> Tensor:
        gradient = gradient + self.fidelity * 2 * change / change[0].numel()
        if self.rule == "unit":
            return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        return gradient


class _Watched:
    """A loss that remembers which images have had all they want."""

    def __init__(self, loss_fn: Loss, count: int, device: torch.device) -> None:
        self.loss_fn, self.at = loss_fn, getattr(loss_fn, "at", None)
        self.reached = torch.zeros(count, dtype=torch.bool, device=device)
        self._has_reached = getattr(loss_fn, "reached", None)

    def __call__(self, embeddings: Tensor) -> Tensor:
        if self._has_reached is not None:
            self.reached |= self._has_reached(embeddings)
        return self.loss_fn(embeddings)
