"""Where a search may go: the eps-ball around each image, within [0, 1]."""

import numbers
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
"""How a perturbation is measured, "linf" by its largest pixel, "l2" by its Euclidean length over all pixels."""


class Ball:
    """The allowed images around a batch.

    Args:
        images: float ``[B, C, H, W]`` in [0, 1], the centers.
        eps: Radius, in pixel units; or one for each image, ``[B, 1, 1, 1]``.
        norm: See `Norm`.
    """

    def __init__(self, images: Tensor, eps: float | Tensor, norm: Norm) -> None:
        self.images, self.norm = images, norm
        self.eps = eps if isinstance(eps, Tensor) else float(eps)
        if norm == "linf":
            self.lower, self.upper = (images - self.eps).clamp_(min=0), (images + self.eps).clamp_(max=1)

    def project(self, x: Tensor) -> Tensor:
        """In place: onto the ball, then [0, 1]. Both sets hold the centers, so the second leaves the first intact."""
        if self.norm == "linf":
            return torch.clamp(x, self.lower, self.upper, out=x)
        shift = x.sub_(self.images)
        return shift.mul_((self.eps / _lengths(shift).clamp_(min=1e-12)).clamp_(max=1)).add_(self.images).clamp_(0, 1)

    def random_starts(self, count: int, generator: torch.Generator | None) -> list[Tensor]:
        """Uniform draws from the ball around each image, projected; `count` batches of them.

        They are drawn image after image, so that batches do not matter. The generator may live on the CPU whatever
        the images' device; None is torch's global one.
        """
        draws = self._uniform(count, generator)
        return [self.project(self.images + self.eps * draw.to(self.images)) for draw in draws.unbind(1)]

    def _uniform(self, count: int, generator: torch.Generator | None) -> Tensor:
        """``[B, count, C, H, W]`` from the ball of radius one, around zero."""
        images = self.images
        shape = len(images), count, *images.shape[1:]
        where = images.device if generator is None else generator.device
        if self.norm == "linf":
            draws = torch.rand(shape, generator=generator, dtype=torch.float32, device=where)
            return draws.mul_(2).sub_(1)
        # The first n coordinates of a uniform point on the sphere in n + 2 dimensions are uniform in the n-ball. The
        # row length is a multiple of 16, the block in which torch's CPU generator draws normal numbers.
        pixels = images.shape[1:].numel()
        width = -(-(pixels + 2) // 16) * 16
        draws = torch.randn(len(images), count, width, generator=generator, dtype=torch.float32, device=where)
        normal = draws[..., : pixels + 2]
        ball = normal / normal.norm(dim=-1, keepdim=True)
        return ball[..., :pixels].reshape(shape)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of length one in which a linear loss grows most: the sign, or the unit vector for "l2"."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _lengths(gradient).clamp_(min=1e-12)


def check_length(name: str, length: float, norm: Norm) -> None:
    """Raise a ValueError unless it is a finite number of at least 0, and by "linf" at most 1, from black to white."""
    is_number = isinstance(length, numbers.Real) and not isinstance(length, bool)
    if not is_number or not 0 <= length < torch.inf:  # NaN is neither
        raise ValueError(f"{name}={length!r}: expected a finite length of at least 0, a number")
    if norm == "linf" and length > 1:
        raise ValueError(f"{name}={length!r}: expected pixel units, black is 0 and white is 1; {length}/255 is meant?")


def check_step(name: str, length: float, norm: Norm) -> None:
    """Raise a ValueError unless it is a length, see `check_length`, above 0."""
    check_length(name, length, norm)
    if length == 0:
        raise ValueError(f"{name}={length!r}: expected a length above 0")


def check_norm(norm: str) -> None:
    """Raise a ValueError unless it is a `Norm`."""
    if norm not in get_args(Norm):
        raise ValueError(f'norm={norm!r}: expected "linf" or "l2"')


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless images are float ``[B, C, H, W]`` in [0, 1]."""
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64):
        given, expected = f"images {images.dtype} {tuple(images.shape)}", "expected float [B, C, H, W] in [0, 1]"
        raise ValueError(f"{given}: {expected}, float32 or float64 also for a model of half precision")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        bounds = f"{images.amin().item():.3g} to {images.amax().item():.3g}"
        raise ValueError(f"images hold {bounds}: expected [0, 1]; pixel normalization belongs inside the model")


def _lengths(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
