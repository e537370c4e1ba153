"""Anti-collapse triplets: the loss against a slow one, what the inner attack may touch, and a training that resumes."""

import pytest
import torch
from torch import nn

from robret_lib import mining
from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, Transfer
from robret_lib.defenses import AntiCollapseTriplets
from robret_lib.models import embed
from robret_lib.objectives import MARGIN, TripletObjective
from robret_lib.training import Schedule, train
from tests.small_retrieval import DEVICES, DISTANCES, seeded, small_model, some_split

INNER = PGD(eps=0.1, step=0.04, steps=5)


def a_batch(pairs=6):
    """An SPC-2 batch of ten classes of 8x8 images."""
    split = some_split(80, seed=10)
    positions = next(mining.spc2_epoch(split.labels, pairs, seeded(2)))
    return split.images[positions], split.labels[positions]


class Watched(nn.Module):
    """Keeps what a network was shown in training mode, which is what the loss is made of."""

    def __init__(self, network):
        super().__init__()
        self.network, self.shown = network, []

    def forward(self, images):
        if self.training:
            self.shown.append(images.detach().clone())
        return self.network(images)


def triplets_and_shown(distance="N", search=INNER, model=None):
    """The clean images of the triplets, and what the network was trained on instead, ``[P, C, H, W]`` each."""
    images, labels = a_batch()
    watched = Watched(model or small_model(distance)).train()
    objective = AntiCollapseTriplets(search, distance=distance)
    clean = embed(watched, images)
    triplets = objective.triplets(clean, labels, seeded(3))
    objective(watched, images, labels, seeded(3))
    (shown,) = watched.shown
    return [images[role] for role in triplets], shown.chunk(3)


def slow_distance(u, v, distance):
    if distance == "C":
        return 1 - (u * v).sum() / (u.norm() * v.norm())
    return (u - v + 1e-6).norm()


def slow_inner_attack(model, positive, negative, distance, search):
    """One pair; each step follows the sign of the gradient, and stays in the ball and in [0, 1]."""
    found = [positive.clone(), negative.clone()]
    for _ in range(search.steps):
        found = [image.detach().requires_grad_(True) for image in found]
        u, v = (model(image[None])[0] for image in found)
        gradients = torch.autograd.grad(slow_distance(u, v, distance), found)
        for k, clean in enumerate((positive, negative)):
            moved = found[k].detach() - search.step * gradients[k].sign()
            found[k] = moved.clamp(clean - search.eps, clean + search.eps).clamp(0, 1)
    return found


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance):
    """Triplet by triplet; in float64, so that no sign of a gradient depends on the order of sums."""
    images, labels = a_batch()
    images, model = images.double(), small_model(distance).double()
    objective = AntiCollapseTriplets(INNER, distance=distance)
    triplets = mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3))
    losses = []
    for a, p, n in zip(*triplets, strict=True):
        moved = slow_inner_attack(model, images[p], images[n], distance, INNER)
        anchor, positive, negative = (model(image[None])[0] for image in (images[a], *moved))
        difference = slow_distance(anchor, positive, distance) - slow_distance(anchor, negative, distance)
        losses.append((difference + MARGIN[distance]).clamp(min=0))
    found = objective(model, images, labels, seeded(3))
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=0, atol=1e-7)
    plain = TripletObjective(mining.random, distance)(model, images, labels, seeded(3))
    assert found > plain + 1e-3


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


def test_without_a_budget_it_is_the_plain_objective():
    images, labels = a_batch()
    model = small_model()
    for sampler in (mining.random, mining.softhard):
        defended = AntiCollapseTriplets(PGD(0, 1, 1), sampler)(model, images, labels, seeded(3))
        plain = TripletObjective(sampler)(model, images, labels, seeded(3))
        torch.testing.assert_close(defended, plain, rtol=0, atol=1e-6)


def test_the_inner_attack_touches_neither_weights_nor_modes_nor_statistics():
    """Gradients come from the loss alone: those of a clean pass over what was found."""
    images, labels = a_batch()
    model = small_model().train()
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 0.5)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    objective = AntiCollapseTriplets(INNER)
    loss = objective(model, images, labels, seeded(3))
    assert all((weight.grad == 0.5).all() and weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    _, shown = triplets_and_shown()
    expected = torch.autograd.grad(objective.loss(*map(model, shown)), [*model.parameters()])
    found = torch.autograd.grad(loss, [*model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_search_by_values_is_refused():
    """It takes the loss of an image for its own, and that of a positive depends on its negative."""
    nes = NES(0.1)
    for search in (nes, Averaged(nes, 2), Transfer(small_model(), nes), Transfer(small_model(), Averaged(nes, 2))):
        with pytest.raises(TypeError, match="AntiCollapseTriplets with a NES: expected a search by gradients"):
            AntiCollapseTriplets(search)


def test_any_search_by_gradients_will_do_as_inner_attack():
    (_, *others), (_, *moved) = triplets_and_shown(search=AutoPGD(0.1, steps=5, restarts=2))
    model = small_model()
    before, after = ((embed(model, p) - embed(model, n)).norm(dim=1) for p, n in (others, moved))
    assert (after < before).all()


@pytest.mark.parametrize("device", DEVICES)
def test_it_trains(device):
    """Whether the network then resists is a question for tests/test_strength.py."""
    history = train(
        small_model().to(device),
        some_split(200, seed=20),
        AntiCollapseTriplets(PGD(0.05, 0.02, 3)),
        Schedule(40, 8, lr=1e-2),
        validate_every=10,
    )
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_a_training_that_was_stopped_ends_bit_for_bit_as_if_undisturbed(tmp_path):
    class Stopped(Exception):
        pass

    def stop(_):
        raise Stopped

    def objective():
        return AntiCollapseTriplets(PGD(0.1, 0.05, 3, random_start=True))  # it draws, too

    split, schedule = some_split(80, seed=10), Schedule(12, 8)
    whole = small_model()
    train(whole, split, objective(), schedule)
    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        train(small_model(), split, objective(), schedule, file, checkpoint_every=5, validate=stop, validate_every=7)
    assert torch.load(file, weights_only=True)["step"] == 5
    resumed = small_model()
    train(resumed, split, objective(), schedule, file)
    for name, expected in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected)
