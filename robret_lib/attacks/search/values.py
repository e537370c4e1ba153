"""What all searches share that see the values of a loss and nothing else: the budget and the loop.

Such a search looks at a population of images around each attacked one, then at the next, which it draws in the light of
what it saw. The five of them (`RandomSearch`, `Beta`, `PSO`, `NES`, `SPSA`) differ in their `Strategy` alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import check_images, check_length
from robret_lib.attacks.search.draws import Draws, seeds_for
from robret_lib.attacks.search.parts import AT_ONCE, Parts
from robret_lib.attacks.search.passes import Loss, NanWatch, losses
from robret_lib.attacks.search.schedules import Best
from robret_lib.attacks.search.space import Grid, Space, check_grid
from robret_lib.fields import check_count, check_number
from robret_lib.models import evaluation_mode

Values = Callable[[Tensor, Tensor], Tensor]
"""Losses ``[R]`` of images ``[R, C, H, W]``; the second argument, int64 ``[R]``, says around which image each lies."""


class Strategy(Protocol):
    """How a search goes on, for A images at once; everything is a shift of the image, ``[A, *, C, h, w]``."""

    def ask(self, size: int) -> Tensor:
        """The next ``size`` shifts to look at, ``[A, size, C, h, w]``, within the bounds of its `Space`."""
        ...

    def tell(self, shifts: Tensor, losses: Tensor) -> None:
        """What was found there, float64 ``[A, size]``."""
        ...


@dataclass(frozen=True)
class ValueSearch(ABC):
    """A search that needs values only. Called as in `Search`, or by `minimize` on anything that gives values.

    The image itself is looked at first, the best image seen is returned, and the perturbation is bounded by its largest
    pixel ("linf"). Every image has its own random draws, so that batches do not matter.

    Args:
        eps: Radius of the ball around the image, in pixel units (images are in [0, 1]).
        queries: How often the loss may be evaluated for each image, the first look included.
        population: How many images are looked at between two decisions.
        stop_below: An image whose loss has come down to this is not asked for again.
        grid: See `Grid`. A shift on the grid is that of all pixels which are nearest to it.
    """

    eps: float
    queries: int = 1000
    population: int = 50
    stop_below: float = -torch.inf
    grid: Grid = "auto"

    def __post_init__(self) -> None:
        check_length("eps", self.eps, "linf")
        check_count("queries", self.queries)
        check_count("population", self.population)
        check_grid(self.grid)
        if self.stop_below != -torch.inf:
            check_number("stop_below", self.stop_below)

    @abstractmethod
    def start(self, space: Space, draws: Draws) -> Strategy:
        """What is done for the images of a space."""

    def sizes(self) -> list[int]:
        """How many shifts are asked for each time; with the first look, never more than ``queries`` of them."""
        full, rest = divmod(self.queries - 1, self.population)
        return [self.population] * full + [rest] * (rest > 0)

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        parts, nan = Parts(loss_fn, len(images)), NanWatch(images.device)

        def values(looked_at: Tensor, rows: Tensor) -> Tensor:
            pieces = zip(looked_at.split(parts.at_once), rows.split(parts.at_once), strict=True)
            return torch.cat([losses(model, piece, parts.of(numbers), nan) for piece, numbers in pieces])

        with evaluation_mode(model):
            return self._minimize(images, values, generator, parts.at_once, nan)

    def minimize(self, images: Tensor, values: Values, generator: torch.Generator | None = None) -> Tensor:
        """Search where there is no model to look into, such as behind a network connection.

        Args:
            images: As in `Search`.
            values: See `Values`.
            generator: As in `Search`.
        """
        return self._minimize(images, values, generator, AT_ONCE, NanWatch(images.device))

    @torch.no_grad()
    def _minimize(
        self, images: Tensor, values: Values, generator: torch.Generator | None, at_once: int, nan: NanWatch
    ) -> Tensor:
        """As many images are searched together as make about ``at_once`` with their populations."""
        check_images(images)
        images = images.detach()
        if self.eps == 0 or not len(images):
            return images.clone()
        seeds = seeds_for(len(images), generator)
        rows = torch.arange(len(images), device=images.device)
        found = [
            self._search(images[some], values, some, Draws(seeds[some.cpu()], images), nan)
            for some in rows.split(max(1, at_once // self.population))
        ]
        return torch.cat(found)

    def _search(self, images: Tensor, values: Values, rows: Tensor, draws: Draws, nan: NanWatch) -> Tensor:
        """Of some images, number ``rows`` of all."""
        space, best = Space(images, self.eps, self.grid), Best(images)
        strategy = self.start(space, draws)
        first = values(images, rows)
        nan.note_values(first)
        best.keep(images, first)
        for size in self.sizes():
            open_ones = (best.losses > self.stop_below).nonzero()[:, 0]
            if not len(open_ones):
                break
            shifts = strategy.ask(size)
            looked_at = space.images_at(shifts[open_ones], open_ones)
            values_there = values(looked_at.flatten(0, 1), rows[open_ones].repeat_interleave(size))
            found = best.losses[:, None].repeat(1, size)  # an image that is not asked for again learns nothing new
            found[open_ones] = values_there.double().view(-1, size)
            nan.note_values(found)
            self._keep(best, open_ones, looked_at, found)
            strategy.tell(shifts, found)
        nan.check()
        return best.images.clone()

    @staticmethod
    def _keep(best: Best, open_ones: Tensor, looked_at: Tensor, found: Tensor) -> None:
        smallest, which = found.nan_to_num(nan=torch.inf).min(1)
        candidates = best.images.clone()
        candidates[open_ones] = looked_at[torch.arange(len(open_ones), device=which.device), which[open_ones]]
        best.keep(candidates, smallest)
