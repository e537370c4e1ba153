"""Suppressed shifts: the clean loss and the price of a shift, against slow ones."""

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses import ShiftSuppressedTriplets
from robret_lib.objectives import TripletObjective
from tests.small_defenses import (
    CLOSE,
    INNER,
    MODES,
    exact_batch,
    exact_model,
    one,
    slow_distance,
    slow_shift,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance, mode):
    """The published code scales the moved embedding, and it alone, to length one where distances are raw."""
    images, labels = exact_batch()
    model, generator = exact_model(distance), seeded(3)
    triplets = mining.random(torch.zeros(12, 12), labels, 0.2, generator)
    moved = slow_shift(model, images, distance, INNER, mode, generator)
    prices = []
    for image, other in zip(images, moved, strict=True):
        clean, shifted = one(model, image), one(model, other)
        if mode == "reference" and distance == "E":
            shifted = shifted / shifted.norm()
        prices.append(slow_distance(shifted, clean, distance))
    loss = slow_triplet_loss(model, *(images[role] for role in triplets), distance)
    for weight in (1.0, 0.3):
        objective = ShiftSuppressedTriplets(INNER, distance=distance, mode=mode, weight=weight)
        found = objective(model, images, labels, seeded(3))
        torch.testing.assert_close(found, loss + weight * torch.stack(prices).mean(), **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_raw_embeddings_have_a_price_without_a_shift_in_the_published_code_alone(mode):
    images, labels = exact_batch()
    model = exact_model("E")
    defended = ShiftSuppressedTriplets(PGD(0, 1, 1), distance="E", mode=mode)(model, images, labels, seeded(3))
    price = defended - TripletObjective(mining.random, "E")(model, images, labels, seeded(3))
    lengths = model(images).norm(dim=1)
    expected = (lengths - 1).abs().mean() if mode == "reference" else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(price, expected, rtol=0, atol=1e-4)
    assert (lengths - 1).abs().mean() > 0.1


def test_the_price_of_a_shift_is_paid_by_both_sides():
    """The clean embedding has a gradient of it, too."""
    images, labels = exact_batch()
    model = exact_model()
    gradients = []
    for weight in (0.0, 1.0):
        loss = ShiftSuppressedTriplets(INNER, weight=weight)(model, images, labels, seeded(3))
        gradients.append(torch.autograd.grad(loss, model.backbone[-1].bias)[0])
    generator = seeded(3)
    mining.random(torch.zeros(12, 12), labels, 0.2, generator)
    moved = slow_shift(model, images, "N", INNER, "fixed", generator)
    price = (model(moved) - model(images) + 1e-6).norm(dim=1).mean()
    (expected,) = torch.autograd.grad(price, model.backbone[-1].bias)
    torch.testing.assert_close(gradients[1] - gradients[0], expected, **CLOSE)
