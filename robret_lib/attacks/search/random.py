"""Random search: what any other search has to beat."""

from dataclasses import dataclass

from torch import Tensor

from robret_lib.attacks.search.draws import Draws
from robret_lib.attacks.search.space import Space
from robret_lib.attacks.search.values import ValueSearch


@dataclass(frozen=True)
class RandomSearch(ValueSearch):
    """Uniform draws from the ball, of which the best is kept (Zhou et al., ICCV 2021: "Rand"). See `ValueSearch`."""

    def start(self, space: Space, draws: Draws) -> "_Random":
        return _Random(space, draws)


class _Random:
    def __init__(self, space: Space, draws: Draws) -> None:
        self.space, self.draws = space, draws

    def ask(self, size: int) -> Tensor:
        return self.space.project(self.space.eps * (2 * self.draws.uniform(size, *self.space.shape) - 1))

    def tell(self, shifts: Tensor, losses: Tensor) -> None:
        pass
