"""Descent along the gradient itself: the slow loop, the published rates, and what they do where gradients are tiny."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robret_lib.attacks.search import Descent


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())


def loss(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings.square().sum(1) - embeddings[:, 0]


IMAGES = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def slope(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(loss(network(x)).sum(), x)[0]


def test_it_is_gradient_descent_with_momentum_and_a_projection():
    network, x, velocity = model(), IMAGES.clone(), 0.0
    for _ in range(6):
        velocity = 0.9 * velocity + slope(network, x)
        x = (x - 0.05 * velocity).clamp(IMAGES - 0.03, IMAGES + 0.03).clamp(0, 1)
    assert torch.allclose(Descent(0.03, 0.05, 6, momentum=0.9)(network, IMAGES, loss), x, atol=1e-6)


def test_unit_steps_have_the_length_of_the_rate():
    found = Descent(1.0, 0.01, 1, rule="unit", norm="l2")(model(), IMAGES.clamp(0.1, 0.9), loss)
    lengths = (found - IMAGES.clamp(0.1, 0.9)).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((4,), 0.01), atol=1e-6)


def test_adam_is_torch_s():
    network = model()
    x = IMAGES.clone()
    optimizer = torch.optim.Adam([x], 0.01)
    for _ in range(5):
        change = (x - IMAGES).detach()
        x.grad = slope(network, x) + 3.0 * 2 * change / 12
        optimizer.step()
        x.data.clamp_(IMAGES - 0.03, IMAGES + 0.03).clamp_(0, 1)
    found = Descent(0.03, 0.01, 5, rule="adam", fidelity=3.0)(network, IMAGES, loss)
    assert torch.allclose(found, x, atol=1e-6)


def test_fidelity_keeps_images_nearer():
    near, far = (
        (Descent(0.5, 0.05, 40, fidelity=weight)(model(), IMAGES, loss) - IMAGES).square().mean() for weight in (50, 0)
    )
    assert near < far


@pytest.mark.parametrize("rule", ["sgd", "unit", "adam"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_stay_in_the_ball_and_batches_do_not_matter(rule, norm):
    search = Descent(0.1, 0.5, 5, rule=rule, norm=norm)
    found = search(model(), IMAGES, loss)
    change = (found - IMAGES).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1
    parts = torch.cat([search(model(), part, loss) for part in IMAGES.split(1)])
    assert torch.allclose(found, parts, atol=1e-6)
    assert not found.requires_grad and found.grad is None


def test_where_the_gradient_is_tiny_its_steps_are_and_those_of_the_unit_are_not():
    def flat(embeddings):
        return 1e-6 * loss(embeddings)

    moved = {
        rule: (Descent(0.1, 0.05, 10, rule=rule)(model(), IMAGES, flat) - IMAGES).abs().max().item()
        for rule in ("sgd", "unit")
    }
    assert moved["sgd"] < 1e-5 < 1e-2 < moved["unit"]


def test_the_port_of_hag_goes_five_hundred_times_as_far_as_the_original():
    assert Descent.hag_ported().rate / Descent.hag().rate == pytest.approx(508, abs=0.5)
    assert (Descent.hag().eps, Descent.hag().steps, Descent.hag().momentum) == (10 / 255, 2000, 0)
    assert (Descent.sdha().rule, Descent.sdha().steps, Descent.sdha().fidelity) == ("adam", 1500, 1)


def test_a_budget_of_nothing_changes_nothing():
    assert torch.equal(Descent(0.0, 1.0, 3)(model(), IMAGES, loss), IMAGES)


def test_a_loss_that_is_nan_is_an_error():
    with pytest.raises(FloatingPointError):
        Descent(0.1, 0.1, 2)(model(), IMAGES, lambda embeddings: embeddings.sum(1) * torch.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0}, "rate=0"),
        ({"steps": 0}, "steps=0"),
        ({"momentum": 2}, "momentum=2"),
        ({"momentum": 1.0}, "momentum=1.0: expected a share below 1"),
        ({"rule": "newton"}, "rule='newton'"),
        ({"rule": "adam", "momentum": 0.9}, "momentum=0.9 with rule='adam'"),
        ({"fidelity": -1}, "fidelity=-1"),
    ],
)
def test_impossible_fields_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Descent(**({"eps": 0.1, "rate": 0.1, "steps": 2} | changes))


class Enough:
    """A loss that has enough once the first number of an embedding is below a level."""

    def __init__(self, level):
        self.level = level

    def __call__(self, embeddings):
        return embeddings[:, 0]

    def reached(self, embeddings):
        return embeddings[:, 0] < self.level


def test_who_stops_leaves_alone_what_has_enough_and_goes_on_with_the_others():
    model, images = nn.Flatten(), torch.full((3, 1, 2, 2), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.3, 0.5, 0.9])
    search = Descent(0.4, 0.1, 4, stops=True)
    found = search(model, images, Enough(0.35))
    assert torch.allclose(found[:, 0, 0, 0], torch.tensor([0.3, 0.3, 0.5]), atol=1e-6)
    on = replace(search, stops=False)(model, images, Enough(0.35))
    assert torch.allclose(on[:, 0, 0, 0], torch.tensor([0.0, 0.1, 0.5]), atol=1e-6)


def test_when_all_have_enough_it_makes_no_further_pass():
    passes, images = [], torch.full((2, 1, 2, 2), 0.5)

    class Counting(Enough):
        def __call__(self, embeddings):
            passes.append(len(embeddings))
            return super().__call__(embeddings)

    found = Descent(0.4, 0.1, 50, stops=True)(nn.Flatten(), images, Counting(0.35))
    assert len(passes) == 3 and torch.allclose(found[:, 0, 0, 0], torch.tensor(0.3), atol=1e-6)


def test_a_loss_that_never_has_enough_is_followed_to_the_end():
    search = Descent(0.4, 0.01, 5, stops=True)
    found = search(nn.Flatten(), torch.full((2, 1, 2, 2), 0.5), lambda embeddings: embeddings[:, 0])
    assert torch.allclose(found[:, 0, 0, 0], torch.tensor(0.45), atol=1e-6)
