"""Embedding-shifted triplets: the loss against a slow one, and a batch norm that is live in the published code."""

from copy import deepcopy

import pytest
import torch

from robret_lib import mining
from robret_lib.defenses import EmbeddingShiftedTriplets
from robret_lib.models import embed
from tests.small_defenses import (
    CLOSE,
    INNER,
    MODES,
    a_batch,
    exact_batch,
    exact_model,
    slow_shift,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded, small_model


def with_statistics(model):
    """A network whose batch norm remembers another world than the batch."""
    model.backbone[1].running_mean.uniform_(-0.5, 0.5, generator=seeded(5))
    model.backbone[1].running_var.uniform_(0.5, 2.0, generator=seeded(6))
    return model


def statistics(model, images):
    """Mean and variance over the batch of what batch norm is given."""
    features = model.backbone[0](images).detach().transpose(0, 1).flatten(1)
    return features.mean(1), features.var(1, correction=0), features.shape[1]


def see(model, images):
    """Batch norm's running statistics, a tenth of the way to those of a batch."""
    mean, variance, count = statistics(model, images)
    norm = model.backbone[1]
    norm.running_mean += 0.1 * (mean - norm.running_mean)
    norm.running_var += 0.1 * (variance * count / (count - 1) - norm.running_var)


def normalize_by(model, images):
    mean, variance, _ = statistics(model, images)
    model.backbone[1].running_mean.copy_(mean)
    model.backbone[1].running_var.copy_(variance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance, mode):
    """Reference: the clean batch is seen, the attack runs in evaluation mode, the moved batch normalizes itself."""
    images, labels = exact_batch()
    model, generator = with_statistics(exact_model(distance)), seeded(3)
    slow = deepcopy(model).eval()
    if mode == "reference":
        see(slow, images)
    moved = slow_shift(slow, images, distance, INNER, mode, generator)
    triplets = mining.random(torch.zeros(12, 12), labels, 0.2, generator)
    remembered = deepcopy(slow)
    if mode == "reference":
        see(remembered, moved)
        normalize_by(slow, moved)
    expected = slow_triplet_loss(slow, *(moved[role] for role in triplets), distance)
    found = EmbeddingShiftedTriplets(INNER, distance=distance, mode=mode)(model, images, labels, seeded(3))
    torch.testing.assert_close(found, expected, **CLOSE)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(model.backbone[1], name), getattr(remembered.backbone[1], name), **CLOSE)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_every_module_is_in_its_mode_afterwards(mode, training):
    """The published code alone moves statistics: of the clean batch, and of the moved one."""
    images, labels = a_batch()
    model = small_model().train(training)
    modes, norm = [module.training for module in model.modules()], model.backbone[1]
    before = norm.running_mean.clone()
    EmbeddingShiftedTriplets(INNER, mode=mode)(model, images, labels, seeded(3))
    assert [module.training for module in model.modules()] == modes
    assert not norm.training
    assert torch.equal(norm.running_mean, before) == (mode == "fixed")
    assert norm.num_batches_tracked == {"fixed": 0, "reference": 2}[mode]


def test_modes_are_restored_after_an_error():
    images, labels = a_batch()
    model = small_model()

    def broken(*_):
        raise RuntimeError

    for part in (0, 2):  # before batch norm, and after it
        handle = model.backbone[part].register_forward_hook(broken)
        with pytest.raises(RuntimeError):
            EmbeddingShiftedTriplets(INNER, mode="reference")(model, images, labels, seeded(3))
        assert not model.backbone[1].training
        handle.remove()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_image_is_moved_though_at_the_start_the_distance_has_no_slope(distance, mode, searches):
    images, labels = a_batch()
    model = small_model(distance)
    EmbeddingShiftedTriplets(INNER, distance=distance, mode=mode)(model, images, labels, seeded(3))
    ((given, moved),) = searches
    assert torch.equal(given, images)
    before, after = embed(model, images), embed(model, moved)
    assert ((after - before).norm(dim=1) > 0.2 * before.norm(dim=1)).all()


def test_no_image_depends_on_the_others(searches):
    """The triplets are drawn afterwards, from what was moved."""
    images, labels = exact_batch()
    for count in (12, 8):
        EmbeddingShiftedTriplets(INNER)(exact_model(), images[:count], labels[:count], seeded(3))
    (_, moved), (_, moved_alone) = searches
    torch.testing.assert_close(moved[:8], moved_alone, rtol=0, atol=1e-12)


def test_the_triplets_are_those_of_the_moved_images(searches):
    images, labels = a_batch()
    model, seen = small_model(), []

    def hard(distances, *rest):
        seen.append(distances)
        return mining.hard(distances, *rest)

    EmbeddingShiftedTriplets(INNER, hard)(model, images, labels, seeded(3))
    moved = embed(model, searches[0][1])
    torch.testing.assert_close(seen[0], torch.cdist(moved, moved), rtol=0, atol=1e-3)
