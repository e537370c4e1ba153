"""A small engine of images and texts: four classes of 4x4 images and of bags of 24 words, and codes of 16 bits."""

import torch
from torch import nn
from torch.nn.functional import one_hot

from robret_lib.cross_modal import DCMH, Answers, Asked, Engine, ImagesAndTexts, ImageTextModel, encoder, text_model
from robret_lib.data import Split
from robret_lib.models import HashModel
from robret_lib.training import Schedule, train

CLASSES, WORDS, BITS, SIDE = 4, 24, 16, 4
PIXELS = 3 * SIDE**2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pairs(count: int, seed: int) -> Asked:
    """A pattern for each class, and noise; six words that are frequent in it, and others; a third have two classes."""
    generator = seeded(seed)
    labels = one_hot(torch.arange(count) % CLASSES, CLASSES)
    labels[::3] |= one_hot(torch.randint(CLASSES, (count,), generator=generator), CLASSES)[::3]
    patterns = torch.rand(CLASSES, PIXELS, generator=seeded())
    mixed = (labels / labels.sum(1, keepdim=True)) @ patterns
    images = 0.4 * mixed + 0.6 * torch.rand(count, PIXELS, generator=generator)
    frequent = labels @ one_hot(torch.arange(WORDS) % CLASSES, CLASSES).T
    bags = (torch.rand(count, WORDS, generator=generator) < 0.1 + 0.4 * frequent).float()
    return Asked(images.view(-1, 3, SIDE, SIDE), bags[:, None, None], labels)


def image_model(hidden: int = 32, bits: int = BITS) -> HashModel:
    return HashModel(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, bits)))


def small_networks(seed: int = 0, hidden: int = 32) -> ImageTextModel:
    torch.manual_seed(seed)
    return ImageTextModel(image_model(hidden), text_model(WORDS, BITS, (hidden,)))


def trained_networks(steps: int = 150) -> ImageTextModel:
    """They find images by texts and the other way round; in the end in float64, so that no sign hangs on rounding."""
    model, taught = small_networks(), some_pairs(160, seed=1)
    objective = ImagesAndTexts(DCMH(taught.labels, BITS), taught.texts, taught.labels)
    train(model, Split(taught.images, taught.labels), objective, Schedule(steps, batch=40, lr=5e-3))
    model.zero_grad()
    return model.double().eval()


def small_engine() -> Engine:
    """With 200 images and texts in its index."""
    return Engine.of(trained_networks(), some_pairs(200, seed=2))


def answers_of(model: ImageTextModel, count: int = 60, seed: int = 3) -> Answers:
    asked = some_pairs(count, seed)
    return Answers(asked.images, asked.texts, *encoder(model)(asked.images, asked.texts))


def random_codes(count: int, bits: int = BITS, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randint(2, (count, bits), generator=seeded(seed)).to(torch.int8) - 1
