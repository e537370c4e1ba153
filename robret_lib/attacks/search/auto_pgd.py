"""Projected gradient descent that chooses its own steps and keeps the best of what it saw."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import Ball, Norm, check_images, check_length, check_norm
from robret_lib.attacks.search.passes import Loss, NanWatch, losses, losses_and_gradient
from robret_lib.attacks.search.schedules import APGD, Best, Falling, Schedule
from robret_lib.fields import check_count
from robret_lib.models import frozen

ScheduleName = Literal["falling", "momentum", "apgd"]
"""Names of schedules; `Falling` without and with momentum, and `APGD` as published."""

SCHEDULES: dict[ScheduleName, Callable[[Ball, int], Schedule]] = {
    "falling": lambda ball, steps: Falling(ball, steps, momentum=0.0, first=2.0),
    "momentum": lambda ball, steps: Falling(ball, steps, momentum=0.5, first=2.0),
    "apgd": APGD,
}
"""First step and momentum of the two, and the default, are chosen by measurement (tests/benchmarks/schedules.md)."""


@dataclass(frozen=True)
class AutoPGD:
    """The strong search: nothing to set but the radius and the number of passes. Called as in `Search`.

    The step falls from twice the radius to zero, and the best iterate of each image is returned; the published
    search (`PGD`) keeps one step and returns the last iterate. In the sense of Croce and Hein 2020, whose own
    schedule is one of three to choose from.

    Args:
        eps: Radius of the ball around the image, in pixel units (images are in [0, 1]).
        steps: Number of steps of each run; each is one forward and one backward pass, as of `PGD`, and a last look
            at the end is one more forward pass.
        norm: "linf" (largest change of a pixel) or "l2" (Euclidean length over all pixels).
        restarts: Number of runs, of which the best image counts: one from the image itself, the others from uniform
            draws from the ball.
        random_start: Begin the first run at a draw, too.
        schedule: See `ScheduleName`; or one of your own, called with the `Ball` and the number of steps.
    """

    eps: float
    steps: int
    norm: Norm = "linf"
    restarts: int = 1
    random_start: bool = False
    schedule: ScheduleName | Callable[[Ball, int], Schedule] = "momentum"

    def __post_init__(self) -> None:
        check_norm(self.norm)
        check_length("eps", self.eps, self.norm)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r}: expected one of {get_args(ScheduleName)}")

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        images = images.detach()
        if self.eps == 0:
            return images.clone()
        return self.within(Ball(images, self.eps, self.norm), model, loss_fn, generator)

    def within(self, ball: Ball, model: nn.Module, loss_fn: Loss, generator: torch.Generator | None = None) -> Tensor:
        """The same search in a ball of another radius."""
        images, nan, best = ball.images, NanWatch(ball.images.device), Best(ball.images)
        drawn = self.restarts - (not self.random_start)
        starts = [] if self.random_start else [images]
        with frozen(model):
            for start in starts + (ball.random_starts(drawn, generator) if drawn else []):
                run = self._descend(model, start, loss_fn, ball, nan)
                best.keep(run.images, run.losses)
        nan.check()
        return best.images.clone()

    def _descend(self, model: nn.Module, x: Tensor, loss_fn: Loss, ball: Ball, nan: NanWatch) -> Best:
        make_schedule = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        schedule, best = make_schedule(ball, self.steps), Best(x)
        for done in range(self.steps):
            loss, gradient = losses_and_gradient(model, x, loss_fn, nan, done / self.steps)
            best.keep(x, loss)
            x = schedule.next(x, loss, gradient, best)
        last = losses(model, x, loss_fn, nan)
        best.keep(x, last)
        return best
