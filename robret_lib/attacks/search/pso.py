"""Particle swarm optimization."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.search.draws import Draws
from robret_lib.attacks.search.space import Space
from robret_lib.attacks.search.values import ValueSearch
from robret_lib.fields import check_number


@dataclass(frozen=True)
class PSO(ValueSearch):
    """A swarm of images, each drawn towards the best place it has seen and towards the best that any has seen.

    With p the best place of a particle, g that of the swarm, and r uniform in [0, 1] for every pixel, anew each time:
    ``v <- inertia v + own r (p - x) + common r (g - x)``, then ``x <- x + v``, clipped to the ball. Places start
    uniform in the ball, velocities uniform in twice its width (Kennedy and Eberhart 1995, with the settings of Zhou et
    al., ICCV 2021; all particles move at once, as in their tables). See `ValueSearch`.

    Where r is drawn on a coarse grid, the published code still has places for every pixel; here all is on the grid.

    Args:
        population: Particles.
        inertia: omega, how much of its velocity a particle keeps.
        own, common: phi_p and phi_g, how strongly it is drawn to either place.
    """

    population: int = 40
    inertia: float = 1.10
    own: float = 0.57
    common: float = 0.44

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("inertia", "own", "common"):
            check_number(name, getattr(self, name), least=0)

    def start(self, space: Space, draws: Draws) -> "_Swarm":
        return _Swarm(self, space, draws)


class _Swarm:
    def __init__(self, settings: PSO, space: Space, draws: Draws) -> None:
        self.settings, self.space, self.draws = settings, space, draws
        self.shape = settings.population, *space.shape
        self.places = space.project(self._within(space.eps))
        self.velocities = self._within(2 * space.eps)
        self.best_places = self.places.clone()
        self.best_losses = torch.full(self.places.shape[:2], torch.inf, dtype=torch.float64, device=self.places.device)
        self.begun = False

    def _within(self, bound: float) -> Tensor:
        return bound * (2 * self.draws.uniform(*self.shape) - 1)

    def ask(self, size: int) -> Tensor:
        if self.begun:
            self._move()
        self.begun = True
        return self.places[:, :size]

    def tell(self, shifts: Tensor, losses: Tensor) -> None:
        size = losses.shape[1]
        better = losses < self.best_losses[:, :size]
        self.best_losses[:, :size] = torch.where(better, losses, self.best_losses[:, :size])
        self.best_places[:, :size] = torch.where(better[:, :, None, None, None], shifts, self.best_places[:, :size])

    def _move(self) -> None:
        leaders = self.best_places[torch.arange(len(self.space)), self.best_losses.argmin(1), None]
        to_own = self.draws.uniform(*self.shape) * (self.best_places - self.places)
        to_common = self.draws.uniform(*self.shape) * (leaders - self.places)
        pulled = self.settings.own * to_own + self.settings.common * to_common
        self.velocities = self.settings.inertia * self.velocities + pulled
        self.places = self.space.project(self.places + self.velocities)
