"""Fixed targets: the loss against a slow one, labels that nobody reads, and an original that stays what it was."""

from copy import deepcopy

import pytest
import torch

from robret_lib.attacks import PGD, AutoPGD, Averaged
from robret_lib.defenses import DrawnRadius, FixedTargets
from robret_lib.models import embed
from robret_lib.training import Schedule, train
from tests.small_defenses import CLOSE, a_batch, exact_batch, exact_model, one, slow_attack
from tests.small_retrieval import DISTANCES, seeded, small_model, some_split

SEARCH = PGD(0.1, 0.04, 5, random_start=True)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance):
    images, labels = exact_batch()
    original, model = exact_model(distance), small_model(distance, seed=1).double()
    starts, losses = torch.rand(12, 1, 1, 8, 8, generator=seeded(3)).double()[:, 0] * 2 - 1, []
    for image, start in zip(images, starts, strict=True):
        target = one(original, image).detach()

        def away(step, embedding, target=target):
            return -((embedding - target) ** 2).sum()

        (moved,) = slow_attack(model, [image], away, SEARCH, [(image + SEARCH.eps * start).clamp(0, 1)])
        losses.append(((one(model, moved) - target) ** 2).sum())
    found = FixedTargets(SEARCH, original)(model, images, labels, seeded(3))
    torch.testing.assert_close(found, torch.stack(losses).mean(), **CLOSE)


def test_the_copy_of_the_original_begins_at_no_loss_but_what_the_attack_makes():
    images, labels = a_batch()
    model = small_model()
    assert FixedTargets(PGD(0, 1, 1, random_start=True), model)(model, images, labels, seeded(3)) < 1e-10
    assert FixedTargets(SEARCH, model)(model, images, labels, seeded(3)) > 0.01


def test_labels_do_not_matter():
    images, labels = a_batch()
    model, defense = small_model(seed=1), FixedTargets(SEARCH, small_model())
    losses = [defense(model, images, given, seeded(3)) for given in (labels, labels.flip(0), labels * 0, None)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, expected):
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_original_is_a_copy_that_no_training_changes():
    """Not even where the network that is trained is the very one it was made of."""
    model = small_model()
    before, requires = state(model), [weight.requires_grad for weight in model.parameters()]
    defense = FixedTargets(SEARCH, model)
    train(model, some_split(80, seed=10), defense, Schedule(4, 8, lr=1e-2))
    assert not same(model, before) and same(defense.original, before)
    assert [weight.requires_grad for weight in model.parameters()] == requires == [True] * len(requires)
    assert not any(weight.requires_grad or weight.grad is not None for weight in defense.original.parameters())


def test_batch_norm_of_the_original_is_in_evaluation_mode_whatever_it_is():
    images, labels = a_batch()
    live = small_model()
    live.frozen_batchnorm = False
    defense = FixedTargets(SEARCH, live).train()
    before = state(defense.original)
    defense(small_model(seed=1), images, labels, seeded(3))
    assert same(defense.original, before)


def test_the_checkpoint_holds_the_original(tmp_path):
    """A training that goes on has the targets it began with, whatever original it is given then."""
    split, file = some_split(80, seed=10), tmp_path / "checkpoint"
    model, original = small_model(), small_model(seed=1)
    train(model, split, FixedTargets(SEARCH, original), Schedule(4, 8), file)
    kept = torch.load(file, weights_only=True)["weights"]
    for name, value in original.state_dict().items():
        assert torch.equal(kept[f"objective.original.{name}"], value)
    another = FixedTargets(SEARCH, small_model(seed=2))
    train(deepcopy(model), split, another, Schedule(4, 8), file)
    images = split.images[:8]
    assert torch.equal(embed(another.original, images), embed(original, images))


@pytest.mark.parametrize(
    "search",
    [PGD(0.1, 0.04, 5), AutoPGD(0.1, 5), DrawnRadius(PGD(0.1, 0.04, 5)), Averaged(AutoPGD(0.1, 5), 2)],
    ids=["PGD", "AutoPGD", "drawn radius", "averaged"],
)
def test_a_search_that_begins_at_the_image_is_refused(search):
    with pytest.raises(ValueError, match="expected random_start=True, at the image itself there is no slope"):
        FixedTargets(search, small_model())


@pytest.mark.parametrize(
    "search",
    [AutoPGD(0.1, 5, random_start=True), DrawnRadius(SEARCH), Averaged(SEARCH, 2)],
    ids=lambda s: type(s).__name__,
)
def test_any_other_will_do(search):
    images, labels = a_batch()
    model = small_model()
    assert FixedTargets(search, model)(model, images, labels, seeded(3)) > 0.01
