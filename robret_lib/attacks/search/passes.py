"""What a search pays for: one forward pass gives the losses, one backward pass to the input their gradient.

Weights get no gradient, and under autocast only the model runs in low precision: a loss sees float32.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from robret_lib.models import embeddings_of

Loss = Callable[[Tensor], Tensor]
"""One loss per image, ``[B]`` of embeddings ``[B, D]``, each depending on its image alone.

A loss that is followed along others, as codes are along softer ones, has an ``at(share) -> Loss``, not None: the one to
descend along when a share of the search is over. Which image is best is always said by the loss itself. One that can
have enough has a ``reached(embeddings) -> bool [B]``, not None.
"""


class Search(Protocol):
    """Images near the given ones whose embeddings have a small loss."""

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        """Search.

        Args:
            model: Embeds ``[B, C, H, W]`` as ``[B, D]``. Runs in evaluation mode and is left as it was found:
                weights, buffers, gradients, mode.
            images: float in [0, 1]. Any memory format; the result has the same type and format.
            loss_fn: Minimized. Per image, so that the batch size does not matter.
            generator: Of all random draws; None is torch's global one. On the CPU it draws image after image, so
                that one that is passed from batch to batch makes the batch size irrelevant.

        Returns:
            Adversarial images, detached; no further than eps (1e-6) from ``images``, inside [0, 1].

        Raises:
            ValueError: Images outside [0, 1] (normalized twice?), or not float, or a loss that is not one per image.
            FloatingPointError: The loss or its gradient became NaN, so that the result means nothing.
        """
        ...


def check_search(of: object, search: Search) -> None:
    """Raise a TypeError unless the search that another one makes use of can be called."""
    if isinstance(search, type) or not callable(search):
        given = f"the class {search.__name__}" if isinstance(search, type) else repr(search)
        raise TypeError(f"{type(of).__name__} with {given}: expected a search, such as PGD(8 / 255, 2 / 255, steps=8)")


def losses(model: nn.Module, images: Tensor, loss_fn: Loss, nan: "NanWatch") -> Tensor:
    """Losses ``[B]``: one forward pass."""
    with torch.inference_mode(False), torch.no_grad():
        embeddings = embeddings_of(model, images)
        with torch.autocast(images.device.type, enabled=False):
            loss = _checked(loss_fn(embeddings), images)
    nan.note(embeddings, loss)
    return loss


def losses_and_gradient(
    model: nn.Module, images: Tensor, loss_fn: Loss, nan: "NanWatch", share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Losses ``[B]`` and the gradient to the images: one forward and one backward pass.

    The gradient is that of ``loss_fn.at(share)`` where there is such a thing, see `Loss`.

    On its way through the model the gradient of each image is scaled by a power of two, so that half precision
    neither loses a small one nor overflows at a large one; for other types this changes no digit.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = (images.clone() if images.is_inference() else images.detach()).requires_grad_(True)
        embeddings = embeddings_of(model, images)
        reached = embeddings.detach().requires_grad_(True)
        with torch.autocast(images.device.type, enabled=False):
            loss = _checked(loss_fn(reached), images)
            at = getattr(loss_fn, "at", None)
            followed = loss if at is None else at(share)(reached)
            (slopes,) = torch.autograd.grad(followed.sum(), reached)
            scale = _power_of_two(slopes.abs().amax(1))
            (gradient,) = torch.autograd.grad(embeddings, images, slopes / scale[:, None])
    gradient = gradient * scale.to(gradient.dtype).view(-1, 1, 1, 1)
    nan.note(embeddings, loss, gradient)
    return loss.detach(), gradient


class NanWatch:
    """Notes any NaN without making the host wait for the device; `check` raises, once, at the end.

    The sign of NaN is zero and NaN is never the best loss, so that an attack would stand still and look like
    robustness.
    """

    def __init__(self, device: torch.device) -> None:
        self.unknown = torch.zeros((), dtype=torch.int64, device=device)  # embeddings in the pass where it began
        self.seen = torch.zeros((), dtype=torch.bool, device=device)

    def note(self, embeddings: Tensor, *found: Tensor) -> None:
        """What a pass found: embeddings ``[B, D]``, and losses and gradients of any shape."""
        self.unknown = torch.where(self.seen, self.unknown, embeddings.isnan().any(1).sum())
        self.note_values(*found)

    def note_values(self, *found: Tensor) -> None:
        for values in found:
            if values.numel():
                self.seen |= values.amax().isnan()  # NaN is the largest of all; isnan().any() takes ten times as long

    def check(self) -> None:
        if not self.seen:
            return
        if self.unknown:
            raise FloatingPointError(
                f"the model's embedding of {int(self.unknown)} attacked images is NaN: does it divide by a length of "
                "0, or overflow in half precision?"
            )
        raise FloatingPointError(
            "the loss or its gradient became NaN: does the loss take a square root or a logarithm of 0?"
        )


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two just above each size, 1 for 0; a quotient, since pow is not exact everywhere."""
    return torch.where(size == 0, 1, size / size.frexp().mantissa)


def _checked(loss: Tensor, images: Tensor) -> Tensor:
    if loss.shape != images.shape[:1]:
        raise ValueError(f"loss_fn returned shape {tuple(loss.shape)}: expected one loss per image, [{len(images)}]")
    return loss
