"""What the tests of the defenses share: a batch, slow attacks on it, what a network was shown, all defenses by name.

The slow implementations go triplet by triplet and embed image by image; in float64, so that no sign of a gradient
depends on the order of sums.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses import (
    AntiCollapseTriplets,
    CandidateMinMaxTriplets,
    CollapseAwareTriplets,
    EmbeddingShiftedTriplets,
    FixedTargets,
    HardnessManipulation,
    KeptNeighborhood,
    MinMaxTriplets,
    PanumTriplets,
    ShiftedCandidateTriplets,
    ShiftSuppressedTriplets,
)
from robret_lib.objectives import MARGIN
from robret_lib.training import Schedule, train
from tests.small_retrieval import seeded, small_model, some_split

INNER = PGD(eps=0.1, step=0.04, steps=5)
MODES = ["fixed", "reference"]
CLOSE = {"rtol": 0, "atol": 1e-7}

BY_TRIPLETS = {
    "est": EmbeddingShiftedTriplets,
    "ses": ShiftSuppressedTriplets,
    "rest": ShiftedCandidateTriplets,
    "act": AntiCollapseTriplets,
    "min_max": MinMaxTriplets,
    "ramd": CandidateMinMaxTriplets,
    "panum": PanumTriplets,
    "hm": HardnessManipulation,
}
"""Those that are made by a search, a sampler, a distance and a mode."""

DEFENSES = [*BY_TRIPLETS, "ca_tride, candidates", "ca_tride, anchor", "fare", "neighborhood"]


WITH_ONE_MODE = ("panum", "fare", "neighborhood")

IN_ALL_MODES = [(name, "fixed") for name in DEFENSES]
IN_ALL_MODES += [(name, "reference") for name in DEFENSES if name not in WITH_ONE_MODE]


def a_defense(name, search=INNER, sampler=mining.random, distance="N", mode="fixed"):
    """A defense in the middle of a training of eight steps, whose first weights are those of `small_model`."""
    if name in BY_TRIPLETS:
        return BY_TRIPLETS[name](search, sampler, distance=distance, mode=mode)
    if name == "fare":
        search = replace(search, random_start=True) if isinstance(search, PGD) else search
        return FixedTargets(search, small_model(distance))
    if name == "neighborhood":
        return at_step(KeptNeighborhood(search, steps=8), 6)
    defense = CollapseAwareTriplets(search, steps=8, epochs=4, distance=distance, mode=mode)
    return at_step(defense, 6 if name == "ca_tride, candidates" else 7)


def at_step(defense, step):
    defense.progress.done.fill_(step)
    return defense


def at_the_beginning(defense, steps):
    """The same defense, before a training of so many steps."""
    if hasattr(defense, "progress"):
        defense.progress.steps = steps
        defense.progress.done.zero_()
    return defense


def a_batch(pairs=6):
    """An SPC-2 batch of ten classes of 8x8 images, in which none is its own partner."""
    split = some_split(80, seed=10)
    positions = next(mining.spc2_epoch(split.labels, pairs, seeded(18)))
    assert len(positions.unique()) == len(positions)
    return split.images[positions], split.labels[positions]


def exact_batch(pairs=6):
    images, labels = a_batch(pairs)
    return images.double(), labels


def exact_model(distance="N"):
    return small_model(distance).double()


class Watched(nn.Module):
    """Keeps what a network was shown in training mode, which is what the loss is made of."""

    def __init__(self, network):
        super().__init__()
        self.network, self.distance, self.shown = network, network.distance, []

    def forward(self, images):
        if self.training:
            self.shown.append(images.detach().clone())
        return self.network(images)

    def features(self, images):
        return self.network.features(images)


def shown_to(model, defense, images, labels, seed=3):
    """What a network is trained on instead of the images of a batch; the batches of all calls one after the other."""
    watched = Watched(model).train()
    defense(watched, images, labels, seeded(seed))
    return torch.cat(watched.shown)


def slow_distance(u, v, distance):
    if distance == "C":
        return 1 - (u * v).sum() / (u.norm() * v.norm())
    return (u - v + 1e-6).norm()


def slow_hardness(a, p, n, distance):
    return slow_distance(a, p, distance) - slow_distance(a, n, distance)


def slow_loss(a, p, n, distance):
    return (slow_hardness(a, p, n, distance) + MARGIN[distance]).clamp(min=0)


def one(model, image):
    """The embedding ``[D]`` of one image."""
    return model(image[None])[0]


def slow_attack(model, images, loss, search, starts=None):
    """Images that a loss looks at together; each step follows the sign of the gradient, in the ball and in [0, 1].

    ``loss`` is called with the number of the step and one embedding for each image.
    """
    found = [image.clone() for image in starts or images]
    for step in range(search.steps):
        found = [image.detach().requires_grad_(True) for image in found]
        gradients = torch.autograd.grad(loss(step, *(one(model, image) for image in found)), found)
        for k, clean in enumerate(images):
            moved = found[k].detach() - search.step * gradients[k].sign()
            found[k] = moved.clamp(clean - search.eps, clean + search.eps).clamp(0, 1)
    return found


def slow_shift(model, images, distance, search, mode, generator):
    """Each image ``[B, C, H, W]`` driven away from its embedding; the draws of all of them come first."""
    with torch.no_grad():
        clean = [one(model, image) for image in images]
    if mode == "fixed":
        draws = torch.randn(len(images), len(clean[0]), generator=generator)
        origins = [[c + 1e-3 * c.norm() * draw / draw.norm()] for c, draw in zip(clean, draws.double(), strict=True)]
    else:
        signs = torch.randint(-1, 2, (len(images), len(clean[0])), generator=generator)
        origins = [[c + 1e-7 * sign, c] for c, sign in zip(clean, signs, strict=True)]

    def moved(image, origin):
        def away(step, embedding):
            return -slow_distance(embedding, origin[min(step, len(origin) - 1)], distance)

        return slow_attack(model, [image], away, search)[0]

    return torch.stack([moved(image, origin) for image, origin in zip(images, origins, strict=True)])


class Stopped(Exception):
    pass


def stop(_):
    raise Stopped


def assert_resumes_bit_for_bit(
    make_defense, folder, steps=12, stopped_at=7, checkpoint_every=5, make_model=small_model
):
    """A training that was stopped ends with the weights and the memory of one that was not."""
    split, schedule, file = some_split(80, seed=10), Schedule(steps, 8), folder / "checkpoint"
    whole, resumed = make_model(), make_model()
    expected, defense = make_defense(), make_defense()
    train(whole, split, expected, schedule)
    with pytest.raises(Stopped):
        train(make_model(), split, make_defense(), schedule, file, checkpoint_every, stop, stopped_at)
    assert torch.load(file, weights_only=True)["step"] == stopped_at // checkpoint_every * checkpoint_every > 0
    train(resumed, split, defense, schedule, file)
    for trained, undisturbed in ((resumed, whole), (defense, expected)):
        for name, value in undisturbed.state_dict().items():
            assert torch.equal(trained.state_dict()[name], value), name


def slow_triplet_loss(model, anchors, positives, negatives, distance):
    """The mean over triplets of images."""
    roles = zip(anchors, positives, negatives, strict=True)
    losses = [slow_loss(*(one(model, image) for image in triplet), distance) for triplet in roles]
    return torch.stack(losses).mean()
