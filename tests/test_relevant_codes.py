"""SDHA in both directions: worked numbers, the slow loop, and images that share a label with nothing."""

import pytest
import torch

from robret_lib import attacks, models
from robret_lib.attacks import PGD, Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.relevant_codes import (
    RelevantCodes,
    TowardsRelevantCodes,
    away_step,
    even,
    far_first,
    mean_distances,
    near_first,
    surrogate_distances,
    towards_step,
)
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.hamming import codes_of
from tests.small_codes import BITS, QUERIES, benign_of, seeded, small_world

ATTACKED = torch.tensor([[-0.9, -0.2, 0.1, 0.7]], dtype=torch.float64)
ITEMS = torch.tensor([[1, -1, 1, -1], [1, 1, -1, 1]], dtype=torch.float64)


@pytest.fixture(scope="module")
def world():
    return small_world()


@pytest.mark.parametrize(
    ("step", "weights", "distances", "weigh", "mean"),
    [
        (away_step, near_first, (3.214066, 2.896896), (0.707107, 0.577350), 1.972606),
        (towards_step, far_first, (1.967813, 1.880580), (1.231144, 1.390389), 2.518700),
    ],
    ids=["away", "towards"],
)
def test_it_has_the_worked_distances_and_weights(step, weights, distances, weigh, mean):
    torch.testing.assert_close(
        surrogate_distances(ATTACKED, ITEMS, step)[0], torch.tensor(distances, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        weights(torch.tensor([2.0, 3.0], dtype=torch.float64)),
        torch.tensor(weigh, dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )
    for relevant, expected in (([1, 0], distances[0] * weigh[0]), ([0, 1], distances[1] * weigh[1]), ([1, 1], mean)):
        given = torch.tensor([relevant], dtype=torch.float64)
        assert mean_distances(ATTACKED, ITEMS, given, weights, step).item() == pytest.approx(expected, abs=2e-6)


def test_sdha_is_the_slow_loop(world):
    benign = benign_of(world)
    outputs = torch.randn(QUERIES, BITS, generator=seeded(5))
    codes = torch.tanh(outputs)
    followed = RelevantCodes().plan(benign, None).at(1.0)(outputs)
    for loss, code, labels in zip(followed, codes, benign.labels, strict=True):
        terms = []
        for item, theirs in zip(benign.gallery.codes.float(), benign.gallery.labels, strict=True):
            if (labels * theirs).sum() > 0:
                near = torch.sigmoid(5 * code * item)
                distance = (0.5 * (code - item).abs() * near).sum() + (1 - near).sum()
                differing = (BITS - code.sign() @ item) / 2
                terms.append((differing + 1e-8) ** -0.5 * distance)
        assert loss.item() == pytest.approx(-25 / BITS * torch.stack(terms).mean().item(), rel=1e-4)


def test_of_sdha_the_best_image_is_not_the_one_that_keeps_its_code():
    """Its weights are 10,000 at a distance of 0, and at most 1 elsewhere, so that what they say is best is to stay."""
    own = torch.tensor([[1.0, 1, 1, 1]])
    gallery = Gallery(own.repeat(5, 1), "H", torch.zeros(5, dtype=torch.int64))
    plan = RelevantCodes().plan(Benign(gallery, own, labels=torch.tensor([0])), None)
    outputs = torch.tensor([[3.0, 3, 3, 3], [-3, 3, 3, 3], [-3, -3, -3, -3]])
    stays, moves, flees = (plan.loss(output[None]).item() for output in outputs)
    assert stays > moves > flees
    assert plan.at(1.0)(outputs[:1]) < plan.at(1.0)(outputs[2:])
    codes = torch.tanh(outputs)
    torch.testing.assert_close(
        mean_distances(codes, own, torch.ones(3, 1), even, away_step), surrogate_distances(codes, own, away_step)[:, 0]
    )


def test_sdha_without_a_relevant_item_flees_from_the_own_code(world):
    model, images, _, gallery = world
    lonely = torch.zeros(QUERIES, 4, dtype=torch.int64)
    benign = Benign(gallery, models.embed(model, images), labels=lonely)
    plan = RelevantCodes().plan(benign, None)
    away, stay = (plan.loss(5 * sign * codes_of(benign.embeddings).float()) for sign in (-1, 1))
    assert (away < stay).all()
    assert torch.equal(RelevantCodes().bound(benign), -codes_of(benign.embeddings))
    assert torch.isfinite(away).all() and torch.isfinite(stay).all()


def slowly_towards(code, items, shared):
    """The loss of one relaxed code, item by item and bit by bit."""
    terms = []
    for item in items[shared]:
        distance = sum(0.5 * abs(h - r) * torch.sigmoid(-10 * h * r) for h, r in zip(code, item, strict=True))
        differing = int((code.sign() != item).sum())
        terms.append(differing**0.3 * distance)
    return 25 / BITS * torch.stack(terms).mean().item()


def test_with_a_target_it_is_the_slow_loop(world):
    benign = benign_of(world)
    wanted = draw_labels(benign.labels, benign.gallery.labels, seeded())
    attack = TowardsRelevantCodes(wanted=wanted)
    outputs = torch.randn(QUERIES, BITS, generator=seeded(5))
    found = attack.plan(benign, attack.targets(benign, seeded())).loss(outputs)
    for loss, code, labels in zip(found, torch.tanh(outputs), wanted, strict=True):
        shared = (benign.gallery.labels * labels).sum(1) > 0
        assert loss.item() == pytest.approx(slowly_towards(code, benign.gallery.codes.float(), shared), rel=1e-4)


def test_where_known_items_have_no_target_label_it_makes_for_the_code_of_the_first_target(world):
    benign = benign_of(world)
    wanted = draw_labels(benign.labels, benign.gallery.labels, seeded())
    known = Gallery(benign.gallery.embeddings[:5], "H", torch.zeros(5, 4, dtype=torch.int64))
    attack = TowardsRelevantCodes(wanted=wanted, known=known)
    targets = attack.targets(benign, seeded())
    theirs = benign.gallery.codes[targets[:, 0]]
    assert torch.equal(attack.bound(benign, targets), theirs)
    loss = attack.plan(benign, targets).loss
    there, elsewhere = loss(5 * theirs.float()), loss(-5 * theirs.float())
    assert (there < elsewhere).all() and there.isfinite().all()


def test_towards_the_codes_of_a_label_the_ranking_becomes_theirs(world):
    model, images, labels, gallery = world
    wanted = draw_labels(labels, gallery.labels, seeded())
    attack = TowardsRelevantCodes(wanted=wanted)
    found = attacks.run(attack, model, images, gallery, PGD(0.2, 0.04, 20), labels=labels)
    assert found.measured["average_precision"].mean() > found.benign["average_precision"].mean() + 10
