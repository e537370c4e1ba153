"""How far to go in each step when the number of steps is known: rules that need no setting but the radius."""

from typing import Protocol

import torch
from torch import Tensor

from robret_lib.attacks.search.ball import Ball, steepest


class Best:
    """The best iterate so far, image by image.

    Args:
        start: ``[B, C, H, W]``.
    """

    def __init__(self, start: Tensor) -> None:
        self.images = start
        self.losses = torch.full((len(start),), torch.inf, dtype=torch.float64, device=start.device)
        self.improved = torch.zeros(len(start), dtype=torch.bool, device=start.device)  # by the last one offered

    def keep(self, x: Tensor, losses: Tensor) -> None:
        """Take over the images whose loss is smaller."""
        self.improved = losses < self.losses
        self.losses = torch.where(self.improved, losses.double(), self.losses)
        self.images = torch.where(_per_image(self.improved), x, self.images)


class Schedule(Protocol):
    """The rule of one descent; keeps what it has to remember."""

    def next(self, x: Tensor, losses: Tensor, gradient: Tensor, best: Best) -> Tensor:
        """The iterate after ``x``, at which losses ``[B]`` and gradient were found; ``best`` has seen it."""
        ...


class Falling:
    """Steps that fall in a straight line to zero, along an average of the gradients so far.

    ``v <- momentum v + g / mean|g|``, then ``x <- project(x - s (1 - i / steps) direction(v))``. Large steps find
    the region, small ones settle in it; a constant step keeps jumping to and fro.

    Args:
        ball: Where to stay.
        steps: How many there will be.
        momentum: 0 for the gradient alone.
        first: s, in units of the radius.
    """

    def __init__(self, ball: Ball, steps: int, momentum: float, first: float) -> None:
        self.ball, self.steps, self.momentum, self.first = ball, steps, momentum, first
        self.done = 0
        self.average = 0.0

    def next(self, x: Tensor, losses: Tensor, gradient: Tensor, best: Best) -> Tensor:
        size = gradient.abs().flatten(1).mean(1).clamp_(min=torch.finfo(gradient.dtype).tiny)
        self.average = self.momentum * self.average + gradient / _per_image(size)
        step = self.first * self.ball.eps * (1 - self.done / self.steps)
        self.done += 1
        return self.ball.project(x - steepest(self.average, self.ball.norm).mul_(step))


class APGD:
    """Auto-PGD as published (Croce and Hein 2020, "Reliable evaluation of adversarial robustness").

    Starts with steps of twice the radius and a quarter of the last movement as momentum. At fixed checkpoints an image
    halves its step and returns to its best iterate if too few steps brought progress, or if the best loss has stood
    still since the last checkpoint without a halving there.

    Args:
        ball: Where to stay.
        steps: How many there will be.
    """

    MOMENTUM = 0.75  # alpha, the weight of the new step
    PROGRESS = 0.75  # rho, the share of steps that have to lower the loss

    def __init__(self, ball: Ball, steps: int) -> None:
        count, device = len(ball.images), ball.images.device
        self.ball, self.checkpoints, self.done, self.last_checkpoint = ball, _checkpoints(steps), 0, 0
        self.step = (2 * ball.eps * ball.images.new_ones(count, 1, 1, 1)).flatten()
        self.previous: Tensor | None = None
        self.last_losses = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
        self.successes = torch.zeros(count, dtype=torch.int64, device=device)
        self.halved = torch.ones(count, dtype=torch.bool, device=device)
        self.best_at_checkpoint = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.best_gradient: Tensor | None = None

    def next(self, x: Tensor, losses: Tensor, gradient: Tensor, best: Best) -> Tensor:
        self._note(losses, gradient, best)
        if self.done in self.checkpoints:
            x, gradient = self._checkpoint(x, gradient, best)
        direction = steepest(gradient, self.ball.norm)
        ahead = self.ball.project(x - _per_image(self.step) * direction)
        if self.previous is not None:
            ahead = self.ball.project(x + self.MOMENTUM * (ahead - x) + (1 - self.MOMENTUM) * (x - self.previous))
        self.previous = x
        self.done += 1
        return ahead

    def _note(self, losses: Tensor, gradient: Tensor, best: Best) -> None:
        self.successes += losses < self.last_losses
        self.last_losses = losses
        old = gradient if self.best_gradient is None else self.best_gradient
        self.best_gradient = torch.where(_per_image(best.improved), gradient, old)

    def _checkpoint(self, x: Tensor, gradient: Tensor, best: Best) -> tuple[Tensor, Tensor]:
        slow = self.successes < self.PROGRESS * (self.done - self.last_checkpoint)
        stuck = ~self.halved & (best.losses >= self.best_at_checkpoint)
        self.halved = slow | stuck
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.best_at_checkpoint, self.last_checkpoint = best.losses, self.done
        self.successes = torch.zeros_like(self.successes)
        back = _per_image(self.halved)
        return torch.where(back, best.images, x), torch.where(back, self.best_gradient, gradient)


def _checkpoints(steps: int) -> set[int]:
    """After 22 % of the steps, then at distances that shrink by 3 % of all each time, to 6 %."""
    checkpoints, last, percent = set(), 0, 22
    while percent <= 100:
        checkpoints.add(-(-percent * steps // 100))
        last, percent = percent, percent + max(percent - last - 3, 6)
    return checkpoints


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
