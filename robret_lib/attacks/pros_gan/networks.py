"""The networks of ProS-GAN: one that changes images towards labels, and one that tells such images from real ones.

Both take pixels in [0, 1], and compute with them in [-1, 1]. For images of 224 pixels they are those of the authors'
code (`model/module.py`); for smaller ones they halve less often.
"""

from copy import deepcopy
from math import gcd

import torch
from torch import Tensor, nn

from robret_lib.fields import check_count, check_share
from robret_lib.hashing.prototype import PrototypeNet

Shape = tuple[int, int, int]
"""Of an image: channels, height, width."""

PUBLISHED: Shape = (3, 224, 224)

DOUBLINGS = 4
"""How often the picture of the labels is enlarged, at most: from 14 pixels to 224."""

HALVINGS = 5
"""How often the discriminator halves an image, at most: from 224 pixels to 7."""

COARSEST = 7
"""Pixels below which the discriminator halves no more."""

RESIDUAL_BLOCKS = 6
"""Half of them end the encoder, half begin the decoder."""


class ImageGenerator(nn.Module):
    """Images and target labels to adversarial images.

    The feature of the labels is grown to a picture, which lies on top of the image; both go through a network that
    halves twice and doubles twice; and from what comes out, on top of the image again, a convolution makes the image
    that is shown.

    Args:
        prototypes: Knows the labels. The generator has a copy, which no training changes.
        shape: Of the images; height and width multiples of four, of at least 8.
        width: Channels of the first layer.
        eps: Bound on the change of a pixel, in [0, 1]: what comes out last is then a change of the image, no image.
            None is none, as published. Trained without, and cut to a ball afterwards, a generator loses most of what
            it can do there.

    Raises:
        ValueError: Another shape, a width below 8, or an impossible eps.
    """

    def __init__(
        self, prototypes: PrototypeNet, shape: Shape = PUBLISHED, width: int = 64, eps: float | None = None
    ) -> None:
        super().__init__()
        check_count("width", width, least=8)
        if eps is not None:
            check_share("eps", eps)
        channels, height, side = _checked(shape)
        if height % 4 or side % 4 or min(height, side) < 8:
            raise ValueError(f"images of {height} x {side} pixels: expected multiples of four, of at least 8")
        self.shape, self.eps = shape, eps
        self.prototypes = deepcopy(prototypes).requires_grad_(False)
        self.picture = _picture_of_labels(prototypes.features, shape, 2 * width)
        blocks = (_Residual(4 * width) for _ in range(RESIDUAL_BLOCKS))
        self.body = nn.Sequential(
            nn.Conv2d(2 * channels, width, 7, padding=3),
            *_normalized(width),
            *_halved(width),
            *_halved(2 * width),
            *blocks,
            *_doubled(4 * width),
            *_doubled(2 * width),
        )
        self.last = nn.Conv2d(width + channels, channels, 3, padding=1, bias=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [0, 1] of images there and labels, int ``[B]`` or multi-hot ``[B, classes]``."""
        if images.shape[1:] != self.shape:
            raise ValueError(f"images of shape {tuple(images.shape)}: expected [B, {', '.join(map(str, self.shape))}]")
        pixels = 2 * images - 1
        picture = self.picture(self.prototypes.feature(labels))
        changes = self.body(torch.cat([picture, pixels], dim=1))
        shown = self.last(torch.cat([changes, pixels], dim=1)).tanh()
        return (shown + 1) / 2 if self.eps is None else (images + self.eps * shown).clamp(0, 1)


class Discriminator(nn.Module):
    """Tells which labels an image has, and whether it was made: C + 1 numbers, the last near 0 for a real image.

    Convolutions of a spectral norm of one, each of which halves the image.

    Args:
        classes: C.
        shape: Of the images.
        width: Channels of the first layer.
    """

    def __init__(self, classes: int, shape: Shape = PUBLISHED, width: int = 64) -> None:
        super().__init__()
        check_count("classes", classes)
        check_count("width", width)
        channels, height, side = _checked(shape)
        layers: list[nn.Module] = []
        while len(layers) < 2 * HALVINGS and min(height, side) >= 2 * COARSEST:
            convolution = nn.Conv2d(channels, width, 4, stride=2, padding=1)
            layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.01)]
            channels, width, height, side = width, 2 * width, height // 2, side // 2
        self.classes = classes
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, classes + 1, (height, side), bias=False), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Real numbers ``[B, classes + 1]`` of images ``[B, C, H, W]`` in [0, 1]."""
        return self.body(2 * images - 1)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *_normalized(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def _picture_of_labels(features: int, shape: Shape, width: int) -> nn.Sequential:
    """A feature ``[B, features]`` to pictures of this shape, from a small one of so many channels."""
    channels, height, side = shape
    doublings = min(DOUBLINGS, _factors_of_two(gcd(height, side)))
    start = width, height >> doublings, side >> doublings
    grown = [layer for step in range(doublings) for layer in _doubled(width >> step)]
    return nn.Sequential(
        nn.Linear(features, start[0] * start[1] * start[2]),
        nn.ReLU(),
        nn.Unflatten(1, start),
        *grown,
        nn.Conv2d(width >> doublings, channels, 3, padding=1, bias=False),
    )


def _halved(channels: int) -> list[nn.Module]:
    """Half the side, twice the channels."""
    return [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), *_normalized(2 * channels)]


def _doubled(channels: int) -> list[nn.Module]:
    """Twice the side, half the channels."""
    half = channels // 2
    return [nn.ConvTranspose2d(channels, half, 4, stride=2, padding=1, bias=False), *_normalized(half)]


def _normalized(channels: int) -> list[nn.Module]:
    """Each image by itself, so that batches do not matter."""
    return [nn.InstanceNorm2d(channels), nn.ReLU()]


def _factors_of_two(number: int) -> int:
    return (number & -number).bit_length() - 1


def _checked(shape: Shape) -> Shape:
    for name, count in zip(("channels", "height", "width of the image"), shape, strict=True):
        check_count(name, count)
    return shape
