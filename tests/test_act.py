"""Anti-collapse triplets: the loss against a slow one, and that positive and negative meet."""

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import PGD, AutoPGD
from robret_lib.defenses import AntiCollapseTriplets
from robret_lib.models import embed
from robret_lib.objectives import TripletObjective
from tests.small_defenses import (
    CLOSE,
    INNER,
    a_batch,
    exact_batch,
    exact_model,
    shown_to,
    slow_attack,
    slow_distance,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded, small_model


def triplets_and_shown(distance="N", search=INNER):
    """The clean images of the triplets, and what the network was trained on instead, ``[P, C, H, W]`` each."""
    images, labels = a_batch()
    model, objective = small_model(distance), AntiCollapseTriplets(search, distance=distance)
    triplets = objective.triplets(embed(model, images), labels, seeded(3))
    return [images[role] for role in triplets], shown_to(model, objective, images, labels).chunk(3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance):
    images, labels = exact_batch()
    model, objective = exact_model(distance), AntiCollapseTriplets(INNER, distance=distance)
    anchor, *others = (images[role] for role in mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3)))

    def apart(step, positive, negative):
        return slow_distance(positive, negative, distance)

    moved = [slow_attack(model, pair, apart, INNER) for pair in zip(*others, strict=True)]
    found = objective(model, images, labels, seeded(3))
    torch.testing.assert_close(found, slow_triplet_loss(model, anchor, *zip(*moved, strict=True), distance), **CLOSE)
    plain = TripletObjective(mining.random, distance)(model, images, labels, seeded(3))
    assert found > plain + 1e-3


def test_with_one_step_candidates_move_by_the_whole_radius_along_the_sign_of_the_gradient():
    """As published beside the many steps: FGSM; images of the middle range touch no border."""
    images, labels = a_batch()
    model, defense = small_model(), AntiCollapseTriplets(PGD.fgsm(0.05))
    triplets = defense.triplets(embed(model, images), labels, seeded(3))
    clean = images[torch.cat([triplets.positive, triplets.negative])].requires_grad_()
    positive, negative = model(clean).chunk(2)
    (gradient,) = torch.autograd.grad((positive - negative + 1e-6).norm(dim=1).sum(), clean)
    expected = (clean - 0.05 * gradient.sign()).clamp(0, 1)
    moved = shown_to(model, defense, images, labels).chunk(3)[1:]
    torch.testing.assert_close(torch.cat(moved), expected.detach())


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_anchor_stays_clean_and_the_others_meet_within_the_budget(distance):
    (anchor, *others), (shown_anchor, *moved) = triplets_and_shown(distance)
    assert torch.equal(shown_anchor, anchor)
    for clean, shown in zip(others, moved, strict=True):
        change = (shown - clean).abs().flatten(1).amax(1)
        assert (change > 0).all() and change.max() <= INNER.eps + 1e-6
        assert shown.min() >= 0 and shown.max() <= 1
    model = small_model(distance)
    before, after = ((embed(model, p) - embed(model, n)).norm(dim=1) for p, n in (others, moved))
    assert (after < before).all() and after.mean() < 0.7 * before.mean()


def test_any_search_by_gradients_will_do_as_inner_attack():
    (_, *others), (_, *moved) = triplets_and_shown(search=AutoPGD(0.1, steps=5, restarts=2))
    model = small_model()
    before, after = ((embed(model, p) - embed(model, n)).norm(dim=1) for p, n in (others, moved))
    assert (after < before).all()
