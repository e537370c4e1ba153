"""Projected gradient descent on images: the one engine behind every white-box attack of this library.

A step costs one forward and one backward to the input. Weights get no gradient, and nothing benign is recomputed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robret_lib.models import evaluation_mode

Loss = Callable[[Tensor], Tensor]
"""``loss_fn(embeddings [B, D]) -> [B]``: one loss per image, which depends on that image alone."""


@dataclass(frozen=True)
class PGD:
    """The budget of an attack.

    Args:
        eps: Radius of the ball around the image, in pixel units (images are in [0, 1]).
        step: Length of one step, in the same units.
        steps: Number of steps; each is one forward and one backward pass.
        norm: "linf" (largest change of a pixel) or "l2" (Euclidean length over all pixels).
        random_start: Begin at a uniform draw from the ball, not at the image. The published tables do not.
    """

    eps: float
    step: float
    steps: int
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = False

    def __post_init__(self) -> None:
        lengths = 0 <= self.eps < torch.inf and 0 < self.step < torch.inf  # NaN is neither
        if not lengths or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{self}: expected eps >= 0 and step > 0, both finite, and a whole number of steps >= 1")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f'norm={self.norm!r}: expected "linf" or "l2"')

    @classmethod
    def fgsm(cls, eps: float) -> "PGD":
        """One step of full length (Goodfellow et al. 2015)."""
        return cls(eps, step=eps or 1.0, steps=1)  # at eps = 0 nothing moves, whatever the step


def pgd(
    model: nn.Module, images: Tensor, loss_fn: Loss, budget: PGD, generator: torch.Generator | None = None
) -> Tensor:
    """Images near the given ones whose embeddings have a small loss (Madry et al. 2018; RobRank, `AdvRank.attack`).

    For ``steps`` times: ``x <- project(x - step * direction(grad L))``, where direction is the sign for "linf" and
    the unit vector for "l2"; project clips to the eps-ball and to [0, 1]. Returns the last iterate.

    Args:
        model: Embeds ``[B, C, H, W]`` as ``[B, D]``. Runs in evaluation mode and is left as it was found: weights,
            buffers, gradients, mode.
        images: float in [0, 1]. Any memory format; the result has the same type and format.
        loss_fn: Minimized. Per image, so that the batch size does not matter. Under autocast only the model runs in
            low precision: a loss sees float32.
        budget: See `PGD`.
        generator: Of the random start; None is torch's global one. On the CPU it draws image after image, so that
            one that is passed from batch to batch makes the batch size irrelevant.

    Returns:
        Adversarial images, detached; no further than eps (1e-6) from ``images``, inside [0, 1].

    Raises:
        ValueError: Images outside [0, 1] (normalized twice?), or not float, or a loss that is not one per image.
        FloatingPointError: The gradient became NaN, so that the result means nothing.
    """
    check_images(images)
    images = images.detach()
    if budget.eps == 0:
        return images.clone()
    start, project = images, _projection(images, budget)
    if budget.random_start:
        start = project(images + _uniform_in_ball(images, budget, generator))
    adversarial, undefined = start.clone(), torch.zeros((), dtype=torch.bool, device=images.device)
    with frozen(model), torch.enable_grad():
        for _ in range(budget.steps):
            adversarial.requires_grad_(True)
            gradient = _gradient(model(adversarial), loss_fn, adversarial)
            undefined |= gradient.isnan().any()  # which sign() would turn into a step of zero; looked at once, below
            adversarial = project(adversarial.detach().sub_(_direction(gradient, budget.norm), alpha=budget.step))
    if undefined:
        raise FloatingPointError("the gradient became NaN: does the loss take a square root or a logarithm of 0?")
    return adversarial


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; afterwards every module and weight is as it was."""
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)


def _gradient(embeddings: Tensor, loss_fn: Loss, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, enabled=False):
        loss = loss_fn(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)))
        if loss.shape != images.shape[:1]:
            shape = tuple(loss.shape)
            raise ValueError(f"loss_fn returned shape {shape}: expected one loss per image, [{len(images)}]")
        return torch.autograd.grad(loss.sum(), images)[0]


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / _lengths(gradient).clamp_(min=1e-12)


def _projection(images: Tensor, budget: PGD) -> Callable[[Tensor], Tensor]:
    """In-place projection onto the eps-ball around ``images``, then [0, 1]; both sets hold ``images``."""
    if budget.norm == "linf":
        lower, upper = (images - budget.eps).clamp_(min=0), (images + budget.eps).clamp_(max=1)
        return lambda x: torch.clamp(x, lower, upper, out=x)

    def project(x: Tensor) -> Tensor:
        shift = x.sub_(images)
        return shift.mul_((budget.eps / _lengths(shift).clamp_(min=1e-12)).clamp_(max=1)).add_(images).clamp_(0, 1)

    return project


def _uniform_in_ball(images: Tensor, budget: PGD, generator: torch.Generator | None) -> Tensor:
    """A uniform draw from the eps-ball around zero, drawn image after image so that batches do not matter."""
    where = images.device if generator is None else generator.device
    if budget.norm == "linf":
        cube = torch.rand(images.shape, generator=generator, device=where).mul_(2).sub_(1)
        return cube.mul_(budget.eps).to(images)
    # The first n coordinates of a uniform point on the sphere in n + 2 dimensions are uniform in the n-ball. The
    # row length is a multiple of 16, the block in which torch's CPU generator draws normal numbers.
    pixels = images.shape[1:].numel()
    normal = torch.randn(len(images), -(-(pixels + 2) // 16) * 16, generator=generator, device=where)[:, : pixels + 2]
    ball = normal / normal.norm(dim=1, keepdim=True)
    return (budget.eps * ball[:, :pixels]).view_as(images).to(images)


def _lengths(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless images are float ``[B, C, H, W]`` in [0, 1]."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}: expected float [B, C, H, W] in [0, 1]")
    if len(images) and not (images.amin() >= 0 and images.amax() <= 1):
        bounds = f"{images.amin().item():.3g} to {images.amax().item():.3g}"
        raise ValueError(f"images hold {bounds}: expected [0, 1]; pixel normalization belongs inside the model")
