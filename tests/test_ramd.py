"""Min-max with a clean anchor: the loss against a slow one, also with the anchor as the published attack has it."""

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses import CandidateMinMaxTriplets
from tests.small_defenses import (
    CLOSE,
    INNER,
    MODES,
    exact_batch,
    exact_model,
    one,
    shown_to,
    slow_attack,
    slow_hardness,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance, mode):
    """The published attack, and not the published loss, compares unit vectors with a raw anchor; it ends the same."""
    images, labels = exact_batch()
    model = exact_model(distance)
    roles = mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3))
    triplets = list(zip(*(images[role] for role in roles), strict=True))
    forgotten = mode == "reference" and distance == "N"

    def candidates_moved(anchor, *candidates):
        with torch.no_grad():
            fixed = one(model.backbone if forgotten else model, anchor)

        def easy(step, positive, negative):
            return -slow_hardness(fixed, positive, negative, distance)

        return slow_attack(model, candidates, easy, INNER)

    moved = [[triplet[0], *candidates_moved(*triplet)] for triplet in triplets]
    expected = slow_triplet_loss(model, *zip(*moved, strict=True), distance)
    objective = CandidateMinMaxTriplets(INNER, distance=distance, mode=mode)
    torch.testing.assert_close(objective(model, images, labels, seeded(3)), expected, **CLOSE)
    assert torch.equal(shown_to(model, objective, images, labels).chunk(3)[0], images[roles.anchor])


class Asked(PGD):
    """Moves nothing; keeps the losses if all positives were in one place and all negatives in another."""

    def __call__(self, model, images, loss_fn, generator=None):
        places = torch.eye(2, 16, dtype=images.dtype).repeat_interleave(len(images) // 2, dim=0)
        losses.append(loss_fn(places))
        return images


losses = []


@pytest.mark.parametrize(("mode", "differ"), [("fixed", False), ("reference", True)])
def test_the_published_attack_forgets_to_scale_the_anchor(mode, differ):
    """Ten times the last layer makes the same network, but another aim."""
    images, labels = exact_batch()
    model, objective = exact_model("N"), CandidateMinMaxTriplets(Asked(0.1, 0.1, 1), mode=mode)
    losses.clear()
    for factor in (1, 10):
        with torch.no_grad():
            for weights in model.backbone[-1].parameters():
                weights *= factor
        objective(model, images, labels, seeded(3))
    assert torch.allclose(*losses) is not differ
