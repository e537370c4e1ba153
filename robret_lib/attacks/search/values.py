"""What all searches share that see the values of a loss and nothing else: the budget, the loop and the random draws.

Such a search looks at a population of images around each attacked one, then at the next, which it draws in the light of
what it saw. The five of them (`RandomSearch`, `Beta`, `PSO`, `NES`, `SPSA`) differ in their `Strategy` alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robret_lib.attacks.fields import check_count
from robret_lib.attacks.search.ball import Ball, check_images, check_length
from robret_lib.attacks.search.passes import Loss, NanWatch, losses
from robret_lib.attacks.search.schedules import Best
from robret_lib.models import evaluation_mode

Values = Callable[[Tensor, Tensor], Tensor]
"""Losses ``[R]`` of images ``[R, C, H, W]``; the second argument, int64 ``[R]``, says around which image each lies."""

Grid = tuple[int, int] | Literal["auto"] | None
"""Height and width of the coarse grid that is searched; "auto" is `COARSE` for large images; None searches pixels."""

COARSE = (32, 32)
"""The grid of the published searches for images of more than `LARGE` numbers (the order attack's code)."""

LARGE = 1000

AT_ONCE = 256
"""About how many images go through the network together."""


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
        if self.grid not in ("auto", None):
            for side in self.grid:
                check_count("grid", side)

    @abstractmethod
    def start(self, space: "Space", draws: "Draws") -> Strategy:
        """What is done for the images of a space."""

    def sizes(self) -> list[int]:
        """How many shifts are asked for each time; with the first look, never more than ``queries`` of them."""
        full, rest = divmod(self.queries - 1, self.population)
        return [self.population] * full + [rest] * (rest > 0)

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        parts = Parts(loss_fn, len(images))

        def values(looked_at: Tensor, rows: Tensor) -> Tensor:
            pieces = zip(looked_at.split(parts.at_once), rows.split(parts.at_once), strict=True)
            return torch.cat([losses(model, piece, parts.of(numbers)) for piece, numbers in pieces])

        with evaluation_mode(model):
            return self.minimize(images, values, generator)

    @torch.no_grad()
    def minimize(self, images: Tensor, values: Values, generator: torch.Generator | None = None) -> Tensor:
        """Search where there is no model to look into, such as behind a network connection.

        Args:
            images: As in `Search`.
            values: See `Values`.
            generator: As in `Search`.
        """
        check_images(images)
        images = images.detach()
        if self.eps == 0 or not len(images):
            return images.clone()
        seeds = seeds_for(len(images), generator)
        size = max(1, AT_ONCE // self.population)
        rows = torch.arange(len(images), device=images.device)
        return torch.cat(
            [self._search(images[some], values, some, Draws(seeds[some.cpu()], images)) for some in rows.split(size)]
        )

    def _search(self, images: Tensor, values: Values, rows: Tensor, draws: "Draws") -> Tensor:
        """Of some images, number ``rows`` of all."""
        space, best, nan = Space(images, self.eps, self.grid), Best(images), NanWatch(images.device)
        strategy = self.start(space, draws)
        first = values(images, rows)
        nan.note(first)
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
            nan.note(found)
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


class Space:
    """Where some images may go: shifts between ``lower`` and ``upper``, both ``[A, 1, C, h, w]``.

    Args:
        images: float ``[A, C, H, W]`` in [0, 1].
        eps: Radius, in pixel units.
        grid: See `Grid`.
    """

    def __init__(self, images: Tensor, eps: float, grid: Grid) -> None:
        self.images, self.ball = images, Ball(images, eps, "linf")
        channels, *size = images.shape[1:]
        if grid == "auto":
            grid = COARSE if images[0].numel() > LARGE and min(size) > max(COARSE) else None
        self.reduced = grid is not None
        self.shape = (channels, *(grid or size))
        if self.reduced:
            self.upper = images.new_full((len(images), 1, *self.shape), self.ball.eps)
            self.lower = -self.upper
        else:
            self.lower, self.upper = (
                self.ball.lower[:, None] - images[:, None],
                self.ball.upper[:, None] - images[:, None],
            )
        self.eps = self.ball.eps

    def __len__(self) -> int:
        return len(self.images)

    def zeros(self, size: int) -> Tensor:
        """Shifts ``[A, size, C, h, w]`` of nothing."""
        return self.images.new_zeros(len(self), size, *self.shape)

    def project(self, shifts: Tensor) -> Tensor:
        """Into the bounds."""
        return shifts.clamp(self.lower, self.upper)

    def images_at(self, shifts: Tensor, which: Tensor) -> Tensor:
        """The images ``[B, size, C, H, W]`` at shifts ``[B, size, C, h, w]`` of the images number ``which [B]``."""
        if self.reduced:
            size = self.images.shape[-2:]
            shifts = interpolate(shifts.flatten(0, 1), size=size, mode="nearest").unflatten(0, shifts.shape[:2])
        lower, upper = self.ball.lower[which, None], self.ball.upper[which, None]
        return (self.images[which, None] + shifts).clamp(lower, upper)


class Draws:
    """Random numbers for A images, each from its own generator, in the type and on the device of the images.

    Args:
        seeds: int64 ``[A]``.
        images: float ``[A, C, H, W]``.
    """

    def __init__(self, seeds: Tensor, images: Tensor) -> None:
        self.generators = [np.random.default_rng(seed) for seed in seeds.tolist()]
        self.like = images

    def uniform(self, *shape: int) -> Tensor:
        """``[A, *shape]`` between 0 and 1."""
        return self._joined([g.random(shape, np.float32) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """``[A, *shape]`` of mean 0 and variance 1."""
        return self._joined([g.standard_normal(shape, np.float32) for g in self.generators])

    def signs(self, *shape: int) -> Tensor:
        """``[A, *shape]`` of -1 and 1."""
        return 2 * self._joined([g.integers(0, 2, shape, np.int8) for g in self.generators]) - 1

    def beta(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """``[A, size, *]`` from Beta(a, b), float64, for parameters ``[A, *]``."""
        pairs = zip(self.generators, a.cpu().numpy(), b.cpu().numpy(), strict=True)
        drawn = [g.beta(some, others, (size, *some.shape)) for g, some, others in pairs]
        return torch.from_numpy(np.stack(drawn)).to(self.like.device)

    def _joined(self, drawn: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(drawn)).to(self.like)


class Parts:
    """A loss of B images, for some of them, each as often as is liked.

    A loss of `attacks.run` plans its attack anew for them, and the last plan is kept. Any other one is called with all
    B embeddings, of which only some matter.
    """

    def __init__(self, loss_fn: Loss, count: int) -> None:
        self.loss_fn, self.count = loss_fn, count
        self.at_once = getattr(loss_fn, "at_once", AT_ONCE)
        self._rows: Tensor | None = None

    def of(self, rows: Tensor) -> Loss:
        """The loss ``[R]`` of embeddings ``[R, D]`` of the images number ``rows [R]``."""
        if not hasattr(self.loss_fn, "part"):
            return lambda embeddings: self._one_by_one(embeddings, rows)
        if self._rows is None or not torch.equal(rows, self._rows):
            self._rows, self._part = rows, self.loss_fn.part(rows)
        return self._part

    def _one_by_one(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Every image once, then those that come a second time, and so on."""
        turn = (rows[:, None] == rows).tril(-1).sum(1)
        found = embeddings.new_empty(len(rows))
        for which in (turn == number for number in range(int(turn.max()) + 1)):
            everything = embeddings[:1].repeat(self.count, 1)
            everything[rows[which]] = embeddings[which]
            found[which] = self.loss_fn(everything)[rows[which]].to(found.dtype)
        return found


def seeds_for(count: int, generator: torch.Generator | None) -> Tensor:
    """A seed for each of ``count`` images, int64, drawn one after the other."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).cpu()
