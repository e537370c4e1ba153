"""Simultaneous perturbation stochastic approximation: the gradient from random signs."""

from dataclasses import dataclass

from torch import Tensor

from robret_lib.attacks.search.antithetic import Antithetic
from robret_lib.attacks.search.ball import check_step
from robret_lib.attacks.search.draws import Draws


@dataclass(frozen=True)
class SPSA(Antithetic):
    """Steps by the sign of a gradient estimated with random signs (Uesato et al. 2018). See `Antithetic`.

    The settings are those of the order attack (Zhou et al., ICCV 2021), whose noise keeps its size at any radius. Where
    the loss is a rank correlation, so small a noise often changes no rank, and the search stands still: at 16/255, with
    all answers visible, it is no stronger than `RandomSearch`, in their table and in tests/benchmarks/order_table.md.

    Args:
        sigma: Size of the noise, in pixel units.
    """

    sigma: float = 2 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step("sigma", self.sigma, "linf")

    def noise(self, draws: Draws, size: int, shape: tuple[int, ...]) -> Tensor:
        return self.sigma * draws.signs(size, *shape)
