"""Where a search by values may go: shifts of the images, of their pixels or of a coarse grid."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate

from robret_lib.attacks.search.ball import Ball
from robret_lib.fields import check_count

Grid = tuple[int, int] | Literal["auto"] | None
"""Height and width of the coarse grid that is searched; "auto" is `COARSE` for large images; None searches pixels."""

COARSE = (32, 32)
"""The grid of the published searches for images of more than `LARGE` numbers (the order attack's code)."""

LARGE = 1000


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


def check_grid(grid: Grid) -> None:
    """Raise a ValueError unless it is a `Grid`."""
    if grid is None or grid == "auto":
        return
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise ValueError(f"grid={grid!r}: expected height and width, such as (32, 32), or 'auto', or None")
    for side in grid:
        check_count("grid", side)
