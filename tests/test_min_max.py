"""Min-max on triplets: the loss against a slow one, and that every triplet becomes harder."""

import pytest
import torch

from robret_lib import mining
from robret_lib.defenses import MinMaxTriplets
from robret_lib.models import embed
from tests.small_defenses import (
    CLOSE,
    INNER,
    exact_batch,
    exact_model,
    shown_to,
    slow_attack,
    slow_hardness,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance):
    images, labels = exact_batch()
    model = exact_model(distance)
    triplets = [images[role] for role in mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3))]

    def easy(step, *embeddings):
        return -slow_hardness(*embeddings, distance)

    moved = [slow_attack(model, triplet, easy, INNER) for triplet in zip(*triplets, strict=True)]
    expected = slow_triplet_loss(model, *zip(*moved, strict=True), distance)
    found = MinMaxTriplets(INNER, distance=distance)(model, images, labels, seeded(3))
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("distance", DISTANCES)
def test_all_three_move_and_every_triplet_becomes_harder(distance):
    images, labels = exact_batch()
    model, objective = exact_model(distance), MinMaxTriplets(INNER, distance=distance)
    clean = [images[role] for role in mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3))]
    moved = shown_to(model, objective, images, labels).chunk(3)
    assert all((after != before).flatten(1).any(1).all() for before, after in zip(clean, moved, strict=True))
    before, after = (objective.hardness(*(embed(model, role) for role in roles)) for roles in (clean, moved))
    assert (after > before).all()
