"""A world small enough for any test: ten classes of 8x8 images, and a network that learns them in seconds.

And what many tests run over: the distances, and the devices there are.
"""

import pytest
import torch
from torch import nn

from robret_lib import mining
from robret_lib.attacks import Gallery
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.hashing import CSQ, HashObjective, KnownCodes
from robret_lib.models import EmbeddingModel, HashModel
from robret_lib.objectives import TripletObjective
from robret_lib.training import Schedule, train

SIZE = 500
DISTANCES = ["N", "E", "C"]
NAMES = tuple("abcdefghij")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def some_split(count, seed):
    """Ten classes of 8x8 images: a pattern each, and noise."""
    patterns = torch.rand(10, 1, 8, 8, generator=seeded(0))
    labels = torch.randint(10, (count,), generator=seeded(seed))
    noise = torch.rand(count, 1, 8, 8, generator=seeded(seed + 1))
    return Split(0.4 * patterns[labels] + 0.6 * noise, labels)


def small_model(distance="N", seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return EmbeddingModel(nn.Sequential(*layers, nn.Linear(128, 16)), distance)


def trained_model(distance="N", steps=60, model=None):
    model = model or small_model(distance)
    train(model, some_split(1000, seed=20), TripletObjective(mining.random, distance), Schedule(steps, pairs=32))
    model.zero_grad()
    return model


def hash_model(steps=60, seed=0):
    """The same network with codes of 16 bits, trained towards a code for each class."""
    model, split = HashModel(small_model(seed=seed).backbone), some_split(1000, seed=20)
    train(model, split, HashObjective(CSQ(10, 16), KnownCodes(split.labels, 16)), Schedule(steps, batch=64, lr=1e-2))
    model.zero_grad()
    return model


def searched_in_itself(count=300):
    split = some_split(count, seed=10)
    return RetrievalData("toy", some_split(40, 1), split, split, NAMES, Protocol("itself", "...", True, False))


def gallery_on(device, gallery):
    """The same gallery, moved."""
    return Gallery(gallery.embeddings.to(device), gallery.distance, gallery.labels, gallery.images)
