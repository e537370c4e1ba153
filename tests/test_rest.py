"""Embedding-shifted candidates: the loss against a slow one, and an anchor that stays clean."""

import pytest
import torch

from robret_lib import mining
from robret_lib.defenses import ShiftedCandidateTriplets
from tests.small_defenses import CLOSE, INNER, MODES, exact_batch, exact_model, shown_to, slow_shift, slow_triplet_loss
from tests.small_retrieval import DISTANCES, seeded


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance, mode):
    images, labels = exact_batch()
    model, generator = exact_model(distance), seeded(3)
    anchor, positive, negative = mining.random(torch.zeros(12, 12), labels, 0.2, generator)
    candidates = images[torch.cat([positive, negative])]
    moved = slow_shift(model, candidates, distance, INNER, mode, generator)
    expected = slow_triplet_loss(model, images[anchor], *moved.chunk(2), distance)
    objective = ShiftedCandidateTriplets(INNER, distance=distance, mode=mode)
    torch.testing.assert_close(objective(model, images, labels, seeded(3)), expected, **CLOSE)
    shown = shown_to(model, objective, images, labels).chunk(3)
    assert torch.equal(shown[0], images[anchor])
    torch.testing.assert_close(torch.cat(shown[1:]), moved, **CLOSE)
