"""A distribution over perturbations that learns where the good ones are: the Beta attack."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.search.draws import Draws
from robret_lib.attacks.search.space import LARGE, Space
from robret_lib.attacks.search.values import ValueSearch
from robret_lib.fields import check_number

BOUNDS = 1e-7, 1e3
"""Of both parameters (the order attack's code, `Batk`)."""

CLAMP = 5.0
"""Of what one draw adds to the gradient of a parameter."""


@dataclass(frozen=True)
class Beta(ValueSearch):
    """Every pixel's shift has a Beta distribution over [-eps, eps], which climbs towards the draws of small loss.

    Both parameters start at 1, the uniform distribution, and follow the score function: the gradient of the expected
    score ``-loss`` by a is the mean of ``score (digamma(a + b) - digamma(a) + log x)`` over draws x in [0, 1] (Zhou et
    al., ICCV 2021). See `ValueSearch`.

    The published code differs in two ways. It takes the score as it is, a rank correlation in [-1, 1], so that every
    draw pulls, good or bad, and a loss of another size would not work: that is ``standardized=False``, and weaker
    (tests/benchmarks/order_table.md). And on a coarse grid it averages the gradient over 49 neighbors along a row,
    where a cell has 7 x 7 pixels: here the grid itself is searched.

    Args:
        step: Of the parameters; None is the published one, 0.5, or 3 for images of more than 1,000 numbers.
        standardized: Subtract the mean score of the population and divide by its standard deviation.
    """

    step: float | None = None
    standardized: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None:
            check_number("step", self.step, above=0)

    def start(self, space: Space, draws: Draws) -> "_Beta":
        step = (3.0 if space.images[0].numel() > LARGE else 0.5) if self.step is None else self.step
        return _Beta(space, draws, step, self.standardized)


class _Beta:
    def __init__(self, space: Space, draws: Draws, step: float, standardized: bool) -> None:
        self.space, self.draws, self.step, self.standardized = space, draws, step, standardized
        self.a = space.zeros(1)[:, 0].double() + 1
        self.b = self.a.clone()

    def ask(self, size: int) -> Tensor:
        drawn = self.draws.beta(self.a, self.b, size)
        self.drawn = drawn.clamp(torch.finfo(drawn.dtype).tiny, 1 - torch.finfo(drawn.dtype).eps)  # for the logarithms
        return self.space.project((self.space.eps * (2 * self.drawn - 1)).to(self.space.images.dtype))

    def tell(self, shifts: Tensor, losses: Tensor) -> None:
        scores = -losses
        if self.standardized:
            spread = scores.std(1, correction=0, keepdim=True)
            scores = (scores - scores.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1)
        both = torch.digamma(self.a + self.b)
        up = self._mean(scores, (both - torch.digamma(self.a))[:, None] + self.drawn.log())
        down = self._mean(scores, (both - torch.digamma(self.b))[:, None] + (-self.drawn).log1p())
        self.a = (self.a + self.step * up).clamp(*BOUNDS)
        self.b = (self.b + self.step * down).clamp(*BOUNDS)

    @staticmethod
    def _mean(scores: Tensor, slopes: Tensor) -> Tensor:
        return (scores[:, :, None, None, None] * slopes).clamp(-CLAMP, CLAMP).mean(1)
