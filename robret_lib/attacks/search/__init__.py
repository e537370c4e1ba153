"""How a loss is minimized inside the ball of allowed images; a search never knows which attack it serves.

Every search is called as ``search(model, images, loss_fn, generator) -> images``, and is described by `Search`.
"""

from robret_lib.attacks.search.auto_pgd import AutoPGD
from robret_lib.attacks.search.averaged import Averaged
from robret_lib.attacks.search.beta import Beta
from robret_lib.attacks.search.descent import Descent
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.attacks.search.generated import Generated
from robret_lib.attacks.search.nes import NES
from robret_lib.attacks.search.passes import Loss, Search
from robret_lib.attacks.search.pgd import PGD, pgd
from robret_lib.attacks.search.pso import PSO
from robret_lib.attacks.search.random import RandomSearch
from robret_lib.attacks.search.spsa import SPSA
from robret_lib.attacks.search.transfer import Transfer
from robret_lib.attacks.search.upwards import Upwards

__all__ = [
    "NES",
    "PGD",
    "PSO",
    "SPSA",
    "AutoPGD",
    "Averaged",
    "Beta",
    "Descent",
    "Generated",
    "Loss",
    "RandomSearch",
    "Search",
    "Transfer",
    "Upwards",
    "WordFlips",
    "pgd",
]
