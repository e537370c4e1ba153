"""A small hash network, and images of three classes, some of which share a label with another class."""

import torch
from torch import nn
from torch.nn.functional import one_hot

from robret_lib import models
from robret_lib.attacks import Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.models import HashModel

BITS, ITEMS, QUERIES = 16, 60, 12
World = tuple[HashModel, torch.Tensor, torch.Tensor, Gallery]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hash_model(side: int = 4) -> HashModel:
    torch.manual_seed(0)
    return HashModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 32), nn.Tanh(), nn.Linear(32, BITS)))


def small_world(side: int = 4) -> World:
    """The network, queries, their labels, and a gallery."""
    model, classes = hash_model(side), torch.arange(ITEMS + QUERIES) % 3
    centers = torch.rand(3, 3, side, side, generator=seeded(1))
    images = (centers[classes] + 0.2 * torch.randn(len(classes), 3, side, side, generator=seeded(2))).clamp(0, 1)
    labels = one_hot(classes, 4)
    labels[::5, 3] = 1
    gallery = Gallery.of(model, images[QUERIES:], labels[QUERIES:])
    return model, images[:QUERIES], labels[:QUERIES], gallery


def benign_of(world: World) -> Benign:
    model, images, labels, gallery = world
    return Benign(gallery, models.embed(model, images), labels=labels)


class Shifted(nn.Module):
    """Pixels less one half: any code is that of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) - self.shift


def free_world() -> World:
    """As `small_world`, with images of a pixel for each bit, and a network that returns them."""
    classes = torch.arange(ITEMS + QUERIES) % 3
    images = torch.rand(len(classes), 1, 4, 4, generator=seeded(2))
    model, labels = HashModel(Shifted()), one_hot(classes, 4)
    return model, images[:QUERIES], labels[:QUERIES], Gallery.of(model, images[QUERIES:], labels[QUERIES:])
