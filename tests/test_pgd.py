"""The published search: budgets kept, models left alone, one forward and one backward a step, closed forms reached."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robret_lib.attacks import PGD, AutoPGD, pgd
from tests.small_retrieval import DEVICES

NORMS = ["linf", "l2"]


def small_network(channels=1, dtype=torch.float32, device="cpu"):
    """Ten-dimensional embeddings of 8x8 images, with all that behaves differently in training mode."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 16, 10),
    )
    return network.to(device, dtype)


def some_images(count=6, channels=1, dtype=torch.float32, device="cpu", seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, 8, 8, generator=generator, dtype=dtype).to(device)


def first_coordinate(embeddings: Tensor) -> Tensor:
    return embeddings[:, 0]


def no_slope(embeddings: Tensor) -> Tensor:
    """A loss whose gradient is zero: PGD returns its own start."""
    return 0 * embeddings.sum(1)


def distance_from(images: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    shift = (adversarial.double() - images.double()).flatten(1)
    return shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)


def assert_in_budget(images: Tensor, adversarial: Tensor, budget: PGD) -> None:
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype
    assert not adversarial.requires_grad
    assert adversarial.amin() >= 0 and adversarial.amax() <= 1
    assert distance_from(images, adversarial, budget.norm).max() <= budget.eps + 1e-6


class Counted(torch.autograd.Function):
    """The identity, counting in ``calls`` how often data and gradients pass through it."""

    @staticmethod
    def forward(ctx, x, calls):
        ctx.calls = calls
        calls["forward"] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.calls["backward"] += 1
        return gradient, None


class WatchedProduct(torch.autograd.Function):
    """A linear layer that writes down whether anybody asked for the gradient of its weights."""

    @staticmethod
    def forward(ctx, x, weights, asked):
        ctx.save_for_backward(weights)
        ctx.asked = asked
        return x @ weights

    @staticmethod
    def backward(ctx, gradient):
        ctx.asked.append(ctx.needs_input_grad[1])
        (weights,) = ctx.saved_tensors
        return gradient @ weights.T, None, None


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(64, 5, generator=torch.Generator().manual_seed(0)))
        self.calls, self.asked = {"forward": 0, "backward": 0}, []

    def forward(self, images):
        return Counted.apply(WatchedProduct.apply(images.flatten(1), self.weights, self.asked), self.calls)


class Linear(nn.Module):
    """One coordinate, linear in the pixels."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images):
        return (images * self.weights).sum((1, 2, 3))[:, None]


@st.composite
def image_contents(draw):
    """Images of every kind that clipping could get wrong: noise, flat black and white, and pixels at the borders."""
    kind = draw(st.sampled_from(["noise", "black", "white", "black or white", "near the borders"]))
    noise = some_images(3, seed=draw(st.integers(0, 2**16)))
    if kind == "black":
        return torch.zeros_like(noise)
    if kind == "white":
        return torch.ones_like(noise)
    if kind == "black or white":
        return noise.round()
    if kind == "near the borders":
        return (noise.round() + (noise - 0.5) * 1e-6).clamp(0, 1)
    return noise


@settings(max_examples=150)
@given(
    images=image_contents(),
    eps=st.one_of(st.sampled_from([0.0, 1e-7, 8 / 255, 77 / 255, 1.0]), st.floats(0, 30)),
    step=st.floats(1e-6, 30),
    steps=st.integers(1, 4),
    norm=st.sampled_from(NORMS),
    random_start=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_budget_is_respected(images, eps, step, steps, norm, random_start, seed):
    if norm == "linf":
        eps, step = min(eps, 1), min(step, 1)
    budget = PGD(eps, step, steps, norm, random_start)
    adversarial = pgd(small_network(), images, first_coordinate, budget, torch.Generator().manual_seed(seed))
    assert_in_budget(images, adversarial, budget)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_the_budget_is_respected_on_a_gpu(norm, random_start):
    images, network = some_images(64, device="cuda"), small_network(device="cuda")
    budget = PGD(0.1, 0.03, 5, norm, random_start)
    adversarial = pgd(network, images, first_coordinate, budget, torch.Generator().manual_seed(0))
    assert adversarial.device == images.device
    assert_in_budget(images, adversarial, budget)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_without_a_radius_the_images_come_back_bit_for_bit(device, norm, random_start):
    images = some_images(device=device)
    budget = PGD(0.0, 0.1, 3, norm, random_start)
    adversarial = pgd(small_network(device=device), images, first_coordinate, budget)
    assert torch.equal(adversarial, images) and adversarial.data_ptr() != images.data_ptr()
    watched = Watched().to(device)
    pgd(watched, images, first_coordinate, budget)
    assert watched.calls["forward"] == 0


def test_a_batch_without_images_is_allowed():
    for norm in NORMS:
        empty = pgd(small_network(), some_images(0), first_coordinate, PGD(0.1, 0.1, 2, norm, random_start=True))
        assert empty.shape == (0, 1, 8, 8)


def test_the_given_images_are_not_touched():
    images = some_images().requires_grad_(True)
    before = images.detach().clone()
    adversarial = pgd(small_network(), images, first_coordinate, PGD(0.1, 0.1, 2))
    assert torch.equal(images, before) and images.grad is None and images.requires_grad
    assert not torch.equal(adversarial, before)


def mixed_network(device="cpu"):
    """Partly frozen, partly in evaluation mode, with a gradient on one weight and none on the others."""
    network = small_network(device=device)
    network.train()
    network[1].eval()
    network[5].eval()
    network[0].weight.requires_grad_(False)
    network[6].weight.grad = torch.full_like(network[6].weight, 0.25)
    return network


def snapshot(network):
    return {
        "state": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": {
            name: None if weight.grad is None else (weight.grad.data_ptr(), weight.grad.clone())
            for name, weight in network.named_parameters()
        },
        "wanted": {name: weight.requires_grad for name, weight in network.named_parameters()},
        "modes": {name: module.training for name, module in network.named_modules()},
    }


def assert_unchanged(network, before):
    after = snapshot(network)
    assert after["wanted"] == before["wanted"] and after["modes"] == before["modes"]
    for name, tensor in before["state"].items():
        assert torch.equal(after["state"][name], tensor), name
    for name, gradient in before["gradients"].items():
        if gradient is None:
            assert after["gradients"][name] is None, name
        else:
            assert after["gradients"][name][0] == gradient[0]
            assert torch.equal(after["gradients"][name][1], gradient[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_model_is_left_as_it_was_found(device, norm):
    network = mixed_network(device)
    before = snapshot(network)
    pgd(network, some_images(device=device), first_coordinate, PGD(0.3, 0.1, 3, norm))
    assert_unchanged(network, before)


def test_the_model_is_left_as_it_was_found_when_the_loss_fails():
    network = mixed_network()
    before = snapshot(network)

    def failing(embeddings):
        raise KeyError("a bug in the loss")

    with pytest.raises(KeyError, match="a bug in the loss"):
        pgd(network, some_images(), failing, PGD(0.3, 0.1, 3))
    assert_unchanged(network, before)


def test_the_model_runs_in_evaluation_mode():
    """Dropout and batch statistics would make two attacks with one seed differ."""
    network = small_network().train()
    trained = pgd(network, some_images(), first_coordinate, PGD(0.3, 0.1, 3))
    evaluated = pgd(network.eval(), some_images(), first_coordinate, PGD(0.3, 0.1, 3))
    assert torch.equal(trained, evaluated)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 7])
def test_a_step_is_one_forward_and_one_backward_to_the_input(norm, steps):
    network = Watched()
    pgd(network, some_images(), first_coordinate, PGD(0.3, 0.1, steps, norm))
    assert network.calls == {"forward": steps, "backward": steps}
    assert network.asked == [False] * steps
    assert network.weights.requires_grad and network.weights.grad is None


def test_attacks_work_where_gradients_are_switched_off():
    with torch.no_grad():
        inside = pgd(small_network(), some_images(), first_coordinate, PGD(0.3, 0.1, 3))
    assert torch.equal(inside, pgd(small_network(), some_images(), first_coordinate, PGD(0.3, 0.1, 3)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_is_kept_and_gives_the_same_images(device, norm):
    """In float64, where the other order of summation does not flip the sign of any gradient."""
    network = small_network(3, torch.float64, device)
    images = some_images(6, 3, torch.float64, device)
    budget = PGD(0.3, 0.05, 8, norm, random_start=True)

    def attacked(images, network):
        return pgd(network, images, first_coordinate, budget, torch.Generator().manual_seed(3))

    expected = attacked(images, network)
    network = network.to(memory_format=torch.channels_last)
    actual = attacked(images.to(memory_format=torch.channels_last), network)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
def test_autocast_lowers_the_precision_of_the_model_only(device, norm):
    network, images = small_network(device=device), some_images(32, device=device)
    seen = set()

    def loss(embeddings):
        products = embeddings @ embeddings.T.detach()  # a product is what autocast would lower
        seen.update([embeddings.dtype, products.dtype])
        return embeddings[:, 0] + 0 * products[:, 0]

    budget = PGD(0.1, 0.02, 10, norm)
    precise = pgd(network, images, first_coordinate, budget)
    with torch.autocast(device, torch.bfloat16):
        adversarial = pgd(network, images, loss, budget)
    assert seen == {torch.float32}
    assert_in_budget(images, adversarial, budget)
    with torch.no_grad():
        benign, low, full = (network.eval()(x)[:, 0].mean() for x in (images, adversarial, precise))
    assert low < benign - 0.9 * (benign - full)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("random_start", [False, True])
def test_the_batch_size_does_not_matter(device, norm, random_start):
    """In float64: rounding, the only thing that depends on the batch size, does not reach the ninth decimal."""
    network = small_network(dtype=torch.float64, device=device)
    images = some_images(13, dtype=torch.float64, device=device)
    budget = PGD(0.3, 0.05, 10, norm, random_start)

    def attacked(batch_size):
        generator = torch.Generator().manual_seed(4)
        parts = [pgd(network, part, first_coordinate, budget, generator) for part in images.split(batch_size)]
        return torch.cat(parts)

    for batch_size in (1, 5):
        torch.testing.assert_close(attacked(batch_size), attacked(13), rtol=0, atol=1e-9)


def test_in_float32_the_batch_size_moves_few_pixels():
    """A gradient that is zero but for rounding may change its sign with the batch size; such pixels are rare."""
    network, images = small_network(), some_images(128)
    budget = PGD(0.3, 0.05, 10)
    whole = pgd(network, images, first_coordinate, budget)
    parts = torch.cat([pgd(network, part, first_coordinate, budget) for part in images.split(24)])
    assert (whole != parts).double().mean() < 1e-3
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(whole), network.eval()(parts), rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, 3, 8])
def test_the_random_start_is_drawn_image_after_image(norm, dtype, side):
    """Bit for bit, for images whose pixels are no multiple of any block the generator works in."""
    images = torch.full((7, 3, side, side), 0.5, dtype=dtype)
    network = nn.Flatten()
    budget = PGD(0.3, 0.1, 1, norm, random_start=True)

    def starts(batch_size):
        generator = torch.Generator().manual_seed(5)
        return torch.cat([pgd(network, part, no_slope, budget, generator) for part in images.split(batch_size)])

    assert not torch.equal(starts(7), images)
    assert torch.equal(starts(1), starts(7)) and torch.equal(starts(3), starts(7))


def test_the_random_start_fills_the_ball_evenly():
    images = torch.full((4000, 1, 2, 2), 0.5)
    for norm in NORMS:
        generator = torch.Generator().manual_seed(6)
        starts = pgd(nn.Flatten(), images, no_slope, PGD(0.25, 0.1, 1, norm, random_start=True), generator)
        assert (starts - images).mean((0, 1)).abs().max() < 0.01
        share = distance_from(images, starts, norm) / 0.25
        # The share of the ball's volume that is nearer is uniform: as radius^4 in four dimensions.
        quantiles = (share**4).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
        torch.testing.assert_close(quantiles, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), rtol=0, atol=0.03)


def test_the_sign_step_is_the_published_one_bit_for_bit():
    network, images, eps, step = small_network().eval(), some_images(), 0.07, 0.02
    x = images.clone()
    for _ in range(6):
        (gradient,) = torch.autograd.grad(network(x.requires_grad_(True))[:, 0].sum(), x)
        x = (x - step * gradient.sign()).detach()
        x = torch.max(torch.min(x, images + eps), images - eps).clamp(0, 1)
    assert torch.equal(pgd(network, images, first_coordinate, PGD(eps, step, 6)), x)


def test_fgsm_is_one_step_of_full_length():
    assert PGD.fgsm(0.1) == PGD(0.1, step=0.1, steps=1)
    images = some_images()
    assert torch.equal(pgd(small_network(), images, first_coordinate, PGD.fgsm(0)), images)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_closed_form_of_a_linear_model_linf(steps):
    """min w.x in the box: every pixel goes straight against its weight, as far as steps, radius and [0, 1] allow."""
    weights = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    weights[0, 0, :3] = 0
    images = some_images(dtype=torch.float64)
    adversarial = pgd(Linear(weights), images, first_coordinate, PGD(0.25, 0.03, steps))
    expected = (images - min(0.25, steps * 0.03) * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_closed_form_of_a_linear_model_l2(steps):
    """min w.x in the ball, away from 0 and 1: along -w, as far as steps and radius allow."""
    weights = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    images = 0.3 + 0.4 * some_images(dtype=torch.float64)
    adversarial = pgd(Linear(weights), images, first_coordinate, PGD(0.25, 0.03, steps, "l2"))
    expected = images - min(0.25, steps * 0.03) * weights / weights.norm()
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-12)


def test_a_zero_gradient_moves_nothing():
    images = some_images()
    for norm in NORMS:
        assert torch.equal(pgd(small_network(), images, no_slope, PGD(0.3, 0.1, 3, norm)), images)


@pytest.mark.parametrize("norm, eps", [("linf", 0.1), ("l2", 0.8)])
def test_more_steps_are_not_weaker_and_all_beat_noise(norm, eps):
    network, images = small_network().eval(), some_images(40)

    @torch.no_grad()
    def mean_loss(images):
        return network(images)[:, 0].mean().item()

    losses = [
        mean_loss(pgd(network, images, first_coordinate, PGD(eps, eps / 4, steps, norm))) for steps in (1, 2, 4, 8, 32)
    ]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert more <= fewer + 0.01 * (losses[0] - losses[-1])
    noise = [
        mean_loss(pgd(network, images, no_slope, PGD(eps, eps, 1, norm, True), torch.Generator().manual_seed(seed)))
        for seed in range(20)
    ]
    assert losses[2] < min(noise)
    assert losses[-1] < losses[0] < mean_loss(images)


def test_a_loss_is_minimized_not_maximized():
    network, images = small_network().eval(), some_images(20)
    up = pgd(network, images, lambda e: -e[:, 0], PGD(0.1, 0.02, 5))
    down = pgd(network, images, first_coordinate, PGD(0.1, 0.02, 5))
    with torch.no_grad():
        assert (network(down)[:, 0] < network(images)[:, 0]).all()
        assert (network(up)[:, 0] > network(images)[:, 0]).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"eps": -0.1}, "eps=-0.1: expected a finite length of at least 0"),
        ({"eps": float("nan")}, "eps=nan: expected a finite length"),
        ({"eps": float("inf")}, "eps=inf: expected a finite length"),
        ({"eps": "8/255"}, "eps='8/255': expected a finite length of at least 0, a number"),
        ({"step": 0}, "step=0: expected a length above 0"),
        ({"step": -1}, "step=-1: expected a finite length"),
        ({"step": float("nan")}, "step=nan: expected a finite length"),
        ({"step": float("inf")}, "step=inf: expected a finite length"),
        ({"step": "3/255"}, "step='3/255': expected a finite length of at least 0, a number"),
        ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5: expected a whole number"),
        ({"steps": True}, "steps=True: expected a whole number"),
    ],
)
def test_impossible_budgets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGD(**({"eps": 0.1, "step": 0.1, "steps": 3} | arguments))


def test_numbers_of_any_kind_are_numbers():
    expected = pgd(small_network(), some_images(), first_coordinate, PGD(8 / 255, 2 / 255, 2))
    budget = PGD(Fraction(8, 255), np.float64(2 / 255), np.int64(2))
    assert torch.equal(pgd(small_network(), some_images(), first_coordinate, budget), expected)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match='norm=\'l1\': expected "linf" or "l2"'):
        PGD(0.1, 0.1, 1, "l1")


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.rand(2, 1, 8, 8) * 255, "expected \\[0, 1\\]; pixel normalization belongs inside the model"),
        (torch.rand(2, 1, 8, 8) - 0.5, "images hold -0"),
        (torch.full((2, 1, 8, 8), float("nan")), "images hold nan to nan"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"torch.uint8 \(2, 1, 8, 8\): expected float"),
        (torch.zeros(1, 8, 8), r"\(1, 8, 8\): expected float \[B, C, H, W\]"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        pgd(small_network(), images, first_coordinate, PGD(0.1, 0.1, 1))


def test_a_loss_that_is_not_one_per_image_is_refused():
    for loss in (lambda e: e.sum(), lambda e: e, lambda e: e[:, :1]):
        with pytest.raises(ValueError, match=r"loss_fn returned shape .*: expected one loss per image, \[6\]"):
            pgd(small_network(), some_images(), loss, PGD(0.1, 0.1, 1))


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_not_a_number_is_an_error(norm):
    """The distance of a vector to itself, written as a square root, has no slope at its start."""
    network, images = small_network().eval(), some_images()
    with torch.no_grad():
        benign = network(images)

    def distance(embeddings):
        return -(embeddings - benign).square().sum(1).sqrt()

    with pytest.raises(FloatingPointError, match="the loss or its gradient became NaN"):
        pgd(network, images, distance, PGD(0.1, 0.1, 2, norm))


@pytest.mark.parametrize("search", [PGD(0.1, 0.1, 2), AutoPGD(0.1, 2)])
def test_a_model_whose_embedding_is_not_a_number_is_named(search):
    class DividesByZero(nn.Module):
        def forward(self, images):
            flat = images.flatten(1)
            return flat / flat.sum(1, keepdim=True)

    images = some_images()
    images[:3] = 0
    with pytest.raises(FloatingPointError, match="the model's embedding of 3 attacked images is NaN: does it divide"):
        search(DividesByZero(), images, lambda embeddings: embeddings[:, 0])


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_others_hold_is_not_overwritten(norm):
    """A model whose backward hands out its own memory, and one whose gradient is one number seen many times."""
    memory = torch.ones(1, 1, 8, 8)

    class HandsOutItsMemory(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum((1, 2, 3))[:, None]

        @staticmethod
        def backward(ctx, gradient):
            return memory

    network = nn.Module()
    network.forward = HandsOutItsMemory.apply
    pgd(network, some_images(1), first_coordinate, PGD(1.0, 0.1, 2, norm))
    assert torch.equal(memory, torch.ones(1, 1, 8, 8))
    means = pgd(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), some_images(2), first_coordinate, PGD(0.1, 0.1, 1, norm))
    assert (means < some_images(2)).any()
