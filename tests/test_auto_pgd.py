"""The strong search: budgets kept, the best iterate returned, closed forms reached, no weaker than a constant step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, embedding, ranking
from robret_lib.attacks.search.auto_pgd import SCHEDULES
from robret_lib.attacks.search.ball import Ball
from robret_lib.attacks.search.schedules import APGD, Best, Falling, _checkpoints
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, gallery_on, seeded
from tests.test_pgd import (
    Linear,
    Watched,
    assert_in_budget,
    assert_unchanged,
    first_coordinate,
    image_contents,
    mixed_network,
    no_slope,
    small_network,
    snapshot,
    some_images,
)

NORMS = ["linf", "l2"]


def losses_of(network, images):
    with torch.no_grad():
        return network.eval()(images)[:, 0]


@settings(max_examples=100)
@given(
    images=image_contents(),
    eps=st.one_of(st.sampled_from([0.0, 1e-7, 8 / 255, 77 / 255, 1.0]), st.floats(0, 30)),
    steps=st.integers(1, 4),
    norm=st.sampled_from(NORMS),
    restarts=st.integers(1, 3),
    random_start=st.booleans(),
    schedule=st.sampled_from(list(SCHEDULES)),
    seed=st.integers(0, 2**16),
)
def test_the_budget_is_respected(images, eps, steps, norm, restarts, random_start, schedule, seed):
    search = AutoPGD(min(eps, 1) if norm == "linf" else eps, steps, norm, restarts, random_start, schedule)
    assert_in_budget(images, search(small_network(), images, first_coordinate, seeded(seed)), search)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_model_is_left_as_it_was_found(device, norm, schedule):
    network, images = mixed_network(device), some_images(device=device)
    before = snapshot(network)
    adversarial = AutoPGD(0.3, 3, norm, restarts=2, schedule=schedule)(network, images, first_coordinate, seeded())
    assert adversarial.device == images.device
    assert_unchanged(network, before)


def test_without_a_radius_the_images_come_back():
    images = some_images()
    adversarial = AutoPGD(0.0, 3, restarts=2)(small_network(), images, first_coordinate)
    assert torch.equal(adversarial, images) and adversarial.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("restarts", [1, 2])
def test_the_result_does_not_share_memory_with_the_images(restarts):
    """Also where nothing was better than the image itself."""
    images = some_images()
    before = images.clone()
    adversarial = AutoPGD(0.2, 3, restarts=restarts)(small_network(), images, no_slope, seeded())
    adversarial.add_(1)
    assert torch.equal(images, before)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("restarts, random_start", [(1, False), (3, False), (2, True)])
def test_a_step_is_one_forward_and_one_backward_and_the_last_look_a_forward(schedule, restarts, random_start):
    network = Watched()
    search = AutoPGD(0.3, 5, "linf", restarts, random_start, schedule)
    search(network, some_images(), first_coordinate, seeded())
    assert network.calls == {"forward": restarts * 6, "backward": restarts * 5}
    assert network.asked == [False] * 5 * restarts


# The best iterate


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_best_iterate_of_each_image_is_returned(schedule, norm):
    """Written down from outside: all images the network saw, and their losses."""
    network, images, seen = small_network().eval(), some_images(), []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    adversarial = AutoPGD(0.3, 6, norm, schedule=schedule)(network, images, first_coordinate)
    handle.remove()
    assert len(seen) == 7
    losses = torch.stack([losses_of(network, x) for x in seen])
    best = torch.stack(seen)[losses.argmin(0), torch.arange(len(images))]
    assert torch.equal(adversarial, best)


def test_a_start_that_cannot_be_improved_is_returned():
    network, images = small_network().eval(), some_images()

    def distance_from_start(embeddings):
        return (embeddings - start).square().sum(1)

    with torch.no_grad():
        start = network(images)
    assert torch.equal(AutoPGD(0.3, 5)(network, images, distance_from_start), images)


def test_restarts_keep_the_best_of_each_image():
    network, images = small_network().eval(), some_images(40)
    losses = [
        losses_of(network, AutoPGD(0.3, 3, restarts=n)(network, images, first_coordinate, seeded(1))) for n in (1, 3, 9)
    ]
    assert (losses[1] <= losses[0]).all() and (losses[2] <= losses[0]).all()
    assert (losses[2] < losses[0]).any()


def test_a_random_start_begins_elsewhere():
    network, images, seen = small_network().eval(), some_images(), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    AutoPGD(0.2, 1, restarts=2)(network, images, first_coordinate, seeded())
    AutoPGD(0.2, 1, restarts=2, random_start=True)(network, images, first_coordinate, seeded())
    starts = [seen[i] for i in (0, 2, 4, 6)]
    assert [torch.equal(start, images) for start in starts] == [True, False, False, False]
    assert not torch.equal(starts[2], starts[3])
    for start in starts:
        assert_in_budget(images, start, AutoPGD(0.2, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_batch_size_does_not_matter(device, norm, schedule):
    """In float64: rounding, the only thing that depends on the batch size, does not reach the ninth decimal."""
    network = small_network(dtype=torch.float64, device=device)
    images = some_images(13, dtype=torch.float64, device=device)
    search = AutoPGD(0.3, 10, norm, restarts=3, schedule=schedule)

    def attacked(batch_size):
        generator = seeded(4)
        return torch.cat([search(network, part, first_coordinate, generator) for part in images.split(batch_size)])

    for batch_size in (1, 5):
        torch.testing.assert_close(attacked(batch_size), attacked(13), rtol=0, atol=1e-9)


# The schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_closed_form_of_a_linear_model_linf(schedule, steps):
    """min w.x in the box, which the first step reaches: it is as long as the radius, or longer."""
    weights = torch.randn(1, 8, 8, generator=seeded(7), dtype=torch.float64)
    images = some_images(dtype=torch.float64)
    adversarial = AutoPGD(0.25, steps, schedule=schedule)(Linear(weights), images, first_coordinate)
    torch.testing.assert_close(adversarial, (images - 0.25 * weights.sign()).clamp(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_closed_form_of_a_linear_model_l2(schedule):
    """Where [0, 1] does not bind, the minimum lies straight against the weights."""
    weights = torch.randn(1, 8, 8, generator=seeded(8), dtype=torch.float64)
    images = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    adversarial = AutoPGD(0.3, 4, "l2", schedule=schedule)(Linear(weights), images, first_coordinate)
    torch.testing.assert_close(adversarial, images - 0.3 * weights / weights.norm(), rtol=0, atol=1e-12)


def test_the_steps_of_a_falling_schedule():
    """Along the sign of v <- m v + g / mean|g|, by s (1 - i / steps), as the definition says."""
    images = torch.full((2, 1, 2, 2), 0.5)
    gradients = torch.randn(3, 2, 1, 2, 2, generator=seeded(9))
    falling, best = Falling(Ball(images, 0.4, "linf"), steps=3, momentum=0.75, first=0.5), Best(images)
    x, v = images, torch.zeros_like(images)
    for i, gradient in enumerate(gradients):
        v = 0.75 * v + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        expected = (x - 0.2 * (1 - i / 3) * v.sign()).clamp(0.1, 0.9)
        x = falling.next(x, torch.zeros(2), gradient, best)
        torch.testing.assert_close(x, expected)


def test_the_checkpoints_are_the_published_ones():
    """p = 0, 0.22, then p + max(p - p' - 0.03, 0.06), times the steps, rounded up (Croce and Hein 2020, sec. 3.1)."""
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(8)) == [2, 4, 5, 6, 7, 8]


def slow_apgd(network, images, eps, steps):
    """Algorithm 1 of Croce and Hein 2020 for one image at a time, minimizing, from the image itself."""
    checkpoints, results = _checkpoints(steps), []
    for center in images.split(1):

        def project(x, center=center):
            return torch.max(torch.min(x, center + eps), center - eps).clamp(0, 1)

        def loss_and_gradient(x):
            x = x.clone().requires_grad_(True)
            loss = network(x)[0, 0]
            return loss.item(), torch.autograd.grad(loss, x)[0]

        x, previous, eta = center, None, 2 * eps
        best = {"loss": float("inf")}
        last_loss, successes, last_checkpoint, halved, best_there = -float("inf"), 0, 0, True, float("inf")
        for k in range(steps + 1):
            loss, gradient = loss_and_gradient(x)
            successes += loss < last_loss
            last_loss = loss
            if loss < best["loss"]:
                best = {"loss": loss, "x": x, "gradient": gradient}
            if k == steps:
                break
            if k in checkpoints:
                slow = successes < 0.75 * (k - last_checkpoint)
                stuck = not halved and best["loss"] >= best_there
                halved, best_there, successes, last_checkpoint = slow or stuck, best["loss"], 0, k
                if halved:
                    eta, x, gradient = eta / 2, best["x"], best["gradient"]
            z = project(x - eta * gradient.sign())
            if previous is not None:
                z = project(x + 0.75 * (z - x) + 0.25 * (x - previous))
            x, previous = z, x
        results.append(best["x"])
    return torch.cat(results)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_apgd_is_the_published_algorithm(steps):
    network, images = small_network(dtype=torch.float64).eval(), some_images(8, dtype=torch.float64)
    actual = AutoPGD(0.2, steps, schedule="apgd")(network, images, first_coordinate)
    torch.testing.assert_close(actual, slow_apgd(network, images, 0.2, steps), rtol=0, atol=1e-9)


def test_apgd_halves_its_step_where_it_makes_no_progress():
    apgd = APGD(Ball(torch.full((2, 1, 1, 1), 0.5), 0.1, "linf"), steps=100)
    best = Best(torch.full((2, 1, 1, 1), 0.5))
    x = best.images
    for i in range(23):
        losses = torch.tensor([-float(i), float(i)])  # the first image falls, the second rises
        best.keep(x, losses)
        x = apgd.next(x, losses, torch.ones(2, 1, 1, 1), best)
    assert apgd.step.tolist() == pytest.approx([0.2, 0.1])


# Strength


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.5)])
def test_more_steps_are_never_weaker_and_beat_noise(norm, eps, schedule):
    network, images = small_network().eval(), some_images(100)
    means = [
        losses_of(network, AutoPGD(eps, n, norm, schedule=schedule)(network, images, first_coordinate)).mean()
        for n in (1, 4, 16, 64)
    ]
    assert all(b <= a + 1e-3 for a, b in zip(means, means[1:], strict=False))
    ball = Ball(images, eps, norm)
    noise = min(losses_of(network, x).mean() for x in ball.random_starts(20, seeded()))
    assert means[1] < noise


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("eps", [0.05, 0.2])
@pytest.mark.parametrize(
    "attack",
    [
        ranking.CandidateAttack("raise"),
        ranking.QueryAttack("lower"),
        embedding.EmbeddingShift(),
        embedding.Margin(),
    ],
    ids=["CA+", "QA-", "ES", "margin"],
)
def test_at_the_same_steps_the_mean_loss_is_not_above_that_of_a_constant_step(
    device, attack, eps, model, galleries, searched
):
    model, gallery, own = model.to(device), gallery_on(device, galleries["N"]), torch.arange(0, 500, 5)
    benign = attacks.Benign(gallery, gallery.embeddings[own], own.to(device), gallery.labels[own].to(device))

    def mean_loss(search):
        result = attacks.run(attack, model, searched[own], gallery, search, own, generator=seeded())
        targets = None if result.targets is None else result.targets.to(device)
        return attack.plan(benign, targets).loss(embed(model, result.images)).mean().item()

    nothing = mean_loss(PGD(0, 1, 1))
    for steps in (8, 32):
        constant = min(mean_loss(PGD(eps, step, steps)) for step in (eps / 8, 2.5 * eps / steps))
        assert mean_loss(AutoPGD(eps, steps)) <= constant + 0.01 * (nothing - constant)
    model.cpu()


# What is refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"eps": -0.1}, "eps=-0.1: expected a finite length of at least 0"),
        ({"eps": float("nan")}, "eps=nan: expected a finite"),
        ({"eps": float("inf")}, "eps=inf: expected a finite"),
        ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"eps": "8/255"}, "eps='8/255': expected a finite length of at least 0, a number"),
        ({"restarts": 0}, "restarts=0: expected a whole number"),
        ({"norm": "l1"}, 'norm=\'l1\': expected "linf" or "l2"'),
        ({"schedule": "rising"}, r"schedule='rising': expected one of \('falling', 'momentum', 'apgd'\)"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoPGD(**({"eps": 0.1, "steps": 3} | arguments))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_gradient_that_is_not_a_number_is_an_error(schedule):
    network, images = small_network().eval(), some_images()
    with torch.no_grad():
        benign = network(images)

    def distance(embeddings):
        return -(embeddings - benign).square().sum(1).sqrt()

    with pytest.raises(FloatingPointError, match="the loss or its gradient became NaN"):
        AutoPGD(0.1, 2, schedule=schedule)(network, images, distance)


def test_images_and_losses_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match="expected \\[0, 1\\]; pixel normalization belongs inside the model"):
        AutoPGD(0.1, 2)(small_network(), some_images() * 255, first_coordinate)
    with pytest.raises(ValueError, match=r"loss_fn returned shape \(\): expected one loss per image, \[6\]"):
        AutoPGD(0.1, 2)(small_network(), some_images(), lambda e: e.sum())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_images_without_a_slope_stay_and_do_not_disturb_the_others(schedule):
    network, images = nn.Flatten(), some_images(4)
    flat = torch.tensor([1.0, 0.0, 1.0, 0.0])
    adversarial = AutoPGD(0.1, 4, schedule=schedule)(network, images, lambda e: flat * e[:, 0])
    assert torch.equal(adversarial[1::2], images[1::2])
    assert (adversarial[0::2, 0, 0, 0] < images[0::2, 0, 0, 0]).all()


@pytest.mark.parametrize("search", [PGD(0.1, 0.05, 3), AutoPGD(0.1, 3), AutoPGD(0.1, 3, schedule="apgd")])
def test_a_loss_that_is_not_a_number_is_an_error(search):
    """Though its gradient is one: the image would come back as it was, and look robust."""
    with pytest.raises(FloatingPointError, match="the loss or its gradient became NaN"):
        search(small_network(), some_images(), lambda e: e[:, 0] + float("nan"))
