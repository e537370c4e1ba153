"""Collapse: how near a network is, by closed forms, and when a training counts as collapsed."""

import pytest
import torch
from torch.nn.functional import normalize

from robret_lib import mining
from robret_lib.defenses.collapse import COLLAPSED, collapsed_at, collapseness, signs, smallest_half, spread
from tests.small_retrieval import DISTANCES, seeded


@pytest.mark.parametrize(
    ("sharpness", "expected"),
    [(0.0, -1 / 6), (2.0, -0.016727), (9.5, 0.133604), (10.0, 0.132508), (float("inf"), 0.1)],
)
def test_collapseness_of_three_triplets(sharpness, expected):
    d_ap, d_an = torch.tensor([0.2, 0.4, 0.9]).double(), torch.tensor([0.5, 0.7, 0.8]).double()
    assert collapseness(d_ap, d_an, sharpness).item() == pytest.approx(expected, abs=5e-7)
    assert collapseness(d_an, d_ap, sharpness).item() == pytest.approx(-expected, abs=5e-7)


def test_collapseness_has_a_slope_through_its_weights():
    """d/dx_i of sum w x with w = softmax(s x) is w_i (1 + s (x_i - sum w x))."""
    d_ap, d_an = torch.tensor([0.2, 0.4, 0.9]).double().requires_grad_(), torch.tensor([0.5, 0.7, 0.8]).double()
    (slope,) = torch.autograd.grad(collapseness(d_ap, d_an, 2.0), d_ap)
    weights = (2 * d_ap).exp() / (2 * d_ap).exp().sum()
    torch.testing.assert_close(slope, weights * (1 + 2 * (d_ap - (weights * d_ap).sum())))
    assert torch.autograd.gradcheck(lambda values: collapseness(values, d_an, 9.5), d_ap)


@pytest.mark.parametrize(
    ("values", "expected"), [([0.4], 0.4), ([0.9, 0.1], 0.1), ([0.3, 0.9, 0.1], 0.1), ([4.0, 1, 3, 2], 1.5)]
)
def test_the_smallest_half_is_rounded_down_to_at_least_one(values, expected):
    assert smallest_half(torch.tensor(values)).item() == pytest.approx(expected)


def test_spread_has_closed_forms():
    """Two points at +-a around c: a / sqrt(a^2 + c^2)."""
    around = torch.tensor([[3.0, 4.0], [-3.0, 4.0]])
    assert spread(around) == pytest.approx(0.6)
    assert spread(1024 * around) == spread(around / 1024) == spread(around)
    assert spread(around - torch.tensor([0.0, 4.0])) == 1
    assert spread(torch.ones(5, 3)) == spread(torch.zeros(5, 3)) == 0
    assert spread(torch.ones(5, 3) + torch.tensor([[0.0], [1], [0], [0], [0]]) * 1e-6) > 0  # float32 has it


@pytest.mark.parametrize("distance", DISTANCES)
def test_signs_are_those_of_random_triplets_in_batches_of_64_pairs(distance):
    embeddings = torch.randn(150, 8, generator=seeded(1))
    embeddings = embeddings if distance == "E" else normalize(embeddings, dim=1)
    labels, generator, found = torch.randint(5, (150,), generator=seeded(2)), seeded(), []
    for batch in mining.spc2_epoch(labels, 64, generator):
        anchors, positives, negatives = mining.random(torch.zeros(2 * [len(batch)]), labels[batch], 0.0, generator)
        pairs = (
            (embeddings[batch[anchors]], embeddings[batch[positives]]),
            (embeddings[batch[anchors]], embeddings[batch[negatives]]),
        )
        distances = [(u - v).norm(dim=1) if distance != "C" else 1 - (u * v).sum(1) for u, v in pairs]
        found.append(collapseness(*distances, 10.0).item())
    assert len(found) == 3
    given = signs(embeddings, labels, distance)
    assert given == {"spread": spread(embeddings), "collapseness": pytest.approx(sum(found) / 3, abs=1e-6)}
    assert given == signs(embeddings, labels, distance)


def test_a_constant_embedding_has_neither_spread_nor_collapseness():
    found = signs(torch.ones(40, 8), torch.arange(40) % 4, "E")
    assert found == {"spread": 0.0, "collapseness": 0.0}


def test_classes_that_lie_apart_have_negative_collapseness_and_mixed_ones_do_not():
    labels = torch.arange(60) % 3
    apart = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3, generator=seeded())
    assert signs(apart, labels, "E")["collapseness"] < -1
    mixed = normalize(torch.randn(60, 3, generator=seeded()), dim=1)
    assert signs(mixed, labels, "N")["collapseness"] == pytest.approx(0, abs=0.1)


def test_one_class_has_no_signs():
    with pytest.raises(ValueError, match="40 images of 1 classes: expected some of two"):
        signs(torch.ones(40, 8), torch.zeros(40, dtype=torch.int64), "E")


def test_a_small_last_batch_of_one_class_is_passed_over():
    """Of 65 images, all but one pair are in the first batch: that pair has no negative."""
    embeddings = normalize(torch.randn(65, 4, generator=seeded()), dim=1)
    assert abs(signs(embeddings, torch.arange(65) % 2, "N")["collapseness"]) < 0.2


NEAR, FAR = 0.9 * COLLAPSED, COLLAPSED


@pytest.mark.parametrize(
    ("spreads", "expected"),
    [
        ([], None),
        ([FAR, FAR, FAR], None),
        ([NEAR], 10),
        ([NEAR, NEAR, NEAR], 10),
        ([FAR, NEAR, NEAR], 20),
        ([NEAR, FAR, NEAR], 30),  # it had come back
        ([NEAR, NEAR, FAR], None),
        ([None, None], None),
        ([None, NEAR], 20),
    ],
)
def test_a_training_collapsed_where_it_never_came_back(spreads, expected):
    history = [
        {"step": step, "loss": 0.2} | ({} if value is None else {"spread": value})
        for step, value in zip((10, 20, 30), spreads, strict=False)
    ]
    assert collapsed_at(history) == expected
