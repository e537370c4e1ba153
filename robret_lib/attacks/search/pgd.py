"""Projected gradient descent with a fixed step: the search of the published tables."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import (
    Ball,
    Norm,
    check_images,
    check_length,
    check_norm,
    check_step,
    steepest,
)
from robret_lib.attacks.search.passes import Loss, NanWatch, losses_and_gradient
from robret_lib.fields import check_count
from robret_lib.models import frozen


@dataclass(frozen=True)
class PGD:
    """For ``steps`` times ``x <- project(x - step * direction(grad L))``; returns the last iterate.

    The direction is the sign for "linf" and the unit vector for "l2"; project clips to the eps-ball and to [0, 1]
    (Madry et al. 2018; RobRank, `AdvRank.attack`). Called as in `Search`.

    Args:
        eps: Radius of the ball around the image, in pixel units (images are in [0, 1]).
        step: Length of one step, in the same units.
        steps: Number of steps; each is one forward and one backward pass.
        norm: "linf" (largest change of a pixel) or "l2" (Euclidean length over all pixels).
        random_start: Begin at a uniform draw from the ball, not at the image. The published tables do not.
    """

    eps: float
    step: float
    steps: int
    norm: Norm = "linf"
    random_start: bool = False

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_length("eps", self.eps, self.norm)
        check_step("step", self.step, self.norm)
        check_count("steps", self.steps)

    @classmethod
    def fgsm(cls, eps: float) -> "PGD":
        """One step of full length (Goodfellow et al. 2015)."""
        return cls(eps, step=eps or 1.0, steps=1)  # at eps = 0 nothing moves, whatever the step

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        images = images.detach()
        if self.eps == 0:
            return images.clone()
        return self.within(Ball(images, self.eps, self.norm), model, loss_fn, generator)

    def within(self, ball: Ball, model: nn.Module, loss_fn: Loss, generator: torch.Generator | None = None) -> Tensor:
        """The same search in a ball of another radius, with steps that are larger or smaller by as much."""
        nan, step = NanWatch(ball.images.device), self.step * (ball.eps / self.eps)
        adversarial = ball.random_starts(1, generator)[0] if self.random_start else ball.images.clone()
        with frozen(model):
            for done in range(self.steps):
                _, gradient = losses_and_gradient(model, adversarial, loss_fn, nan, done / self.steps)
                adversarial = ball.project(adversarial.sub_(steepest(gradient, self.norm).mul_(step)))
        nan.check()
        return adversarial


def pgd(
    model: nn.Module, images: Tensor, loss_fn: Loss, budget: PGD, generator: torch.Generator | None = None
) -> Tensor:
    """``budget(model, images, loss_fn, generator)``, see `Search`."""
    return budget(model, images, loss_fn, generator)
