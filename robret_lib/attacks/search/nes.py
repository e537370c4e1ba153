"""Natural evolution strategies: the gradient of a loss that is blurred by Gaussian noise."""

from dataclasses import dataclass

from torch import Tensor

from robret_lib.attacks.search.antithetic import Antithetic
from robret_lib.attacks.search.draws import Draws
from robret_lib.fields import check_number


@dataclass(frozen=True)
class NES(Antithetic):
    """Steps by the sign of a gradient estimated with Gaussian noise (Ilyas et al. 2018). See `Antithetic`.

    The settings are those of the order attack (Zhou et al., ICCV 2021). RobRank's black-box form of its attacks is
    ``NES(eps, queries=3202, population=100, step=3 / 255, momentum=0)``: 32 steps, the first look and the last one.

    Both clip the noise to the radius, though its standard deviation is twice as large: most of it is close to random
    signs. So is it here, and the gradient is estimated with the noise as it was drawn and clipped, as in both codes,
    not with what the projection to the ball leaves of it. The order attack passes the gradient through Adam before it
    takes the sign, which leaves of Adam its running mean, ``momentum=0.9``. In its code the first step does nothing
    (the bias correction of step 0 divides by zero), and Adam cannot be switched off (``NES_ADAM=0`` reads as true).
    RobRank spends one more population before its first step, returns the last place instead of the best, and in LTM
    takes the classes of another image.

    Args:
        sigma: Standard deviation of the noise, in units of eps; clipped to eps.
    """

    momentum: float = 0.9
    sigma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigma", self.sigma, above=0)

    def noise(self, draws: Draws, size: int, shape: tuple[int, ...]) -> Tensor:
        return (self.sigma * self.eps * draws.normal(size, *shape)).clamp(-self.eps, self.eps)
