"""Learned whitening: what it is defined by, what it is good for, what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from robret_lib.metrics import recall_at_k
from robret_lib.whitening import learned_whitening


def classes_with_a_loud_direction(classes: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose classes differ in four directions, while a fifth says nothing and varies most."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(each)
    quiet = centers[labels] + 0.3 * torch.randn(classes * each, 4, generator=generator, dtype=torch.float64)
    loud = 30 * torch.randn(classes * each, 1, generator=generator, dtype=torch.float64)
    return torch.cat([loud, quiet], dim=1), labels


def within(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Covariance around the class means, class by class, as one would write it down."""
    parts = [features[labels == label] - features[labels == label].mean(0) for label in labels.unique()]
    return sum(part.T @ part for part in parts) / len(features)


def test_what_varies_within_a_class_becomes_white():
    features, labels = classes_with_a_loud_direction(20, 15, seed=0)
    weight, bias = learned_whitening(features, labels, dim=5, shrinkage=1e-12)
    assert_close(within(features @ weight.T + bias, labels), torch.eye(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_mean_goes_to_the_origin_and_directions_come_by_their_variance():
    features, labels = classes_with_a_loud_direction(20, 15, seed=1)
    weight, bias = learned_whitening(features + 7, labels, dim=5)
    mapped = (features + 7) @ weight.T + bias
    assert_close(mapped.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
    covariance = torch.cov(mapped.T)
    assert_close(covariance, covariance.diag().diag(), atol=1e-9, rtol=0)  # principal directions
    assert (covariance.diag().diff() <= 1e-9).all()


def test_fewer_directions_are_the_first_of_all():
    features, labels = classes_with_a_loud_direction(20, 15, seed=2)
    whole, few = (learned_whitening(features, labels, dim)[0] for dim in (5, 2))
    assert_close(few, whole[:2])


def test_shrinkage_without_end_leaves_the_distances_of_the_features():
    features, labels = classes_with_a_loud_direction(6, 4, seed=3)
    weight, _ = learned_whitening(features, labels, dim=5, shrinkage=1e12)
    mapped = torch.cdist(features @ weight.T, features @ weight.T)
    assert_close(mapped / mapped.max(), torch.cdist(features, features) / torch.cdist(features, features).max())


def test_unseen_classes_are_found_where_features_hide_them():
    features, labels = classes_with_a_loud_direction(40, 12, seed=4)
    trains = labels < 20
    weight, bias = learned_whitening(features[trains], labels[trains], dim=5, shrinkage=0.01)
    queries, answers = features[~trains], labels[~trains]
    before = recall_at_k(queries, queries, answers, answers, (1,), self_excluded=True)[1]
    mapped = queries @ weight.T + bias
    after = recall_at_k(mapped, mapped, answers, answers, (1,), self_excluded=True)[1]
    assert before < 40 < 70 < after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"dim": 6}, "expected 1 to 5"),
        ({"shrinkage": 0.0}, "shrinkage=0.0"),
        ({"shrinkage": float("nan")}, "shrinkage=nan"),
        ({"labels": torch.arange(3)}, "expected .n, F. and .n."),
        ({"labels": torch.arange(24)}, "no class has two"),
        ({"features": torch.ones(24, 5)}, "all alike"),
    ],
)
def test_refuses(changes, message):
    features, labels = classes_with_a_loud_direction(6, 4, seed=5)
    with pytest.raises(ValueError, match=message):
        learned_whitening(**{"features": features, "labels": labels, "dim": 2} | changes)
