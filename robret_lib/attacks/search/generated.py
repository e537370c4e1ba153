"""No search at all: a network that was trained for it makes the adversarial images in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.ball import Ball, check_images, check_length
from robret_lib.attacks.search.passes import Loss
from robret_lib.models import evaluation_mode


@dataclass(frozen=True)
class Generated:
    """Images that a network makes for target labels; the attacked model is never asked, so that no passes are counted.

    For attacks whose plan has labels, such as those of `targeted_codes`. Called as in `Search`, by `attacks.run`.

    Args:
        network: Maps images ``[B, C, H, W]`` in [0, 1] and labels, ``[B]`` or ``[B, C]``, to images, each by itself;
            such as a `pros_gan.ImageGenerator`, trained on the attacked model.
        eps: Bound on the change of a pixel, to which the images are cut. 1, from black to white, is none: so ProS-GAN
            is published, which is asked for little change by its training alone. A network that is to be compared in a
            ball had better be trained for it.
    """

    network: nn.Module
    eps: float = 1.0

    def __post_init__(self) -> None:
        check_length("eps", self.eps, "linf")

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        check_images(images)
        labels = getattr(getattr(loss_fn, "plan", None), "labels", None)
        if labels is None:
            raise TypeError(
                "Generated needs target labels: give attacks.run an attack whose plan has them, such as Prototype"
            )
        with evaluation_mode(self.network), torch.no_grad():
            made = self.network(images.to(next(self.network.parameters(), images)), labels)
        return Ball(images, self.eps, "linf").project(torch.empty_like(images).copy_(made))
