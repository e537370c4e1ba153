"""Descent along a gradient that is estimated from pairs of opposite steps: what `NES` and `SPSA` share."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.search.ball import check_step
from robret_lib.attacks.search.draws import Draws
from robret_lib.attacks.search.space import Space
from robret_lib.attacks.search.values import ValueSearch


@dataclass(frozen=True)
class Antithetic(ValueSearch):
    """``x <- project(x - step sign(m))`` with ``m <- momentum m + (1 - momentum) g``, see `ValueSearch`.

    With noise n, ``g = mean of (loss(x + n) - loss(x - n)) n`` over half a population of them. The last look is at x
    itself.

    Args:
        population: Looks for one step, an even number: half of them at x + n and half at x - n.
        step: Length of one step, in pixel units.
        momentum: Share of the earlier gradients in the direction of a step; 0 is the gradient alone.
    """

    step: float = 2 / 255
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step("step", self.step, "linf")
        if self.population % 2:
            raise ValueError(f"population={self.population}: expected an even number, half of it looks the other way")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: expected at least 0 and less than 1")

    def sizes(self) -> list[int]:
        full, rest = divmod(max(0, self.queries - 2), self.population)
        return [self.population] * full + [rest - rest % 2] * (rest > 1) + [1] * (self.queries > 1)

    @abstractmethod
    def noise(self, draws: Draws, size: int, shape: tuple[int, ...]) -> Tensor:
        """``[A, size, *shape]``, in pixel units."""

    def start(self, space: Space, draws: Draws) -> "_Descent":
        return _Descent(space, lambda size: self.noise(draws, size, space.shape), self.step, self.momentum)


class _Descent:
    def __init__(self, space: Space, noise: Callable[[int], Tensor], step: float, momentum: float) -> None:
        self.space, self.noise, self.step, self.momentum = space, noise, step, momentum
        self.place = space.zeros(1)
        self.average = space.zeros(1)

    def ask(self, size: int) -> Tensor:
        if size == 1:
            return self.place
        self.drawn = self.noise(size // 2)
        return self.space.project(self.place + torch.cat([self.drawn, -self.drawn], dim=1))

    def tell(self, shifts: Tensor, losses: Tensor) -> None:
        if losses.shape[1] == 1:
            return
        ahead, behind = losses.chunk(2, dim=1)
        slopes = (ahead - behind)[:, :, None, None, None]  # in float64, since the loss may be large beside them
        gradient = (slopes * self.drawn).mean(1, keepdim=True)
        self.average = self.momentum * self.average + (1 - self.momentum) * gradient
        self.place = self.space.project(self.place - self.step * self.average.sign().to(self.place.dtype))
