"""The codes a network has for labels: losses by hand and by loops, toy codes it must find, and what an attack gains."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import exp, log, log1p

import pytest
import torch
from torch import Tensor, nn

from robret_lib import attacks
from robret_lib.attacks import PGD
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.attacks.targeted_codes import Prototype
from robret_lib.data import DataError
from robret_lib.hamming import codes_of
from robret_lib.hashing import PrototypeNet, circle_loss, likelihood_loss, train_prototypes
from robret_lib.hashing.batch import Known
from robret_lib.hashing.center_code import center_code
from robret_lib.hashing.prototype import multi_hot
from tests.small_codes import BITS, seeded, small_world

LOSSES = {"circle": circle_loss, "softened": partial(circle_loss, softened=True), "likelihood": likelihood_loss}
CLASS_CODES = torch.tensor([[1, 1, 1, 1, -1, -1, -1, -1], [1, -1, 1, -1, 1, -1, 1, -1], [-1, -1, -1, 1, 1, 1, -1, 1]])


class Told(nn.Module):
    """Stands for a network with given codes, and given probabilities of the labels."""

    def __init__(self, codes: Tensor, shares: Tensor | None = None) -> None:
        super().__init__()
        self.codes, self.shares = codes, shares

    def forward(self, labels: Tensor) -> Tensor:
        return self.codes

    def probabilities(self, labels: Tensor) -> Tensor:
        return self.shares


def small_net(classes: int = 3, bits: int = 8, seed: int = 0) -> PrototypeNet:
    torch.manual_seed(seed)
    return PrototypeNet(classes, bits, (32, 16))


def some_pairs() -> tuple[Tensor, Tensor, Known]:
    """Relaxed codes of five label vectors, these, and twenty known codes with theirs."""
    codes = torch.tanh(torch.randn(5, 6, generator=seeded(1), dtype=torch.float64))
    labels = torch.randint(2, (5, 4), generator=seeded(2)).float()
    known = codes_of(torch.randn(20, 6, generator=seeded(3)))
    return codes, labels, Known(known, torch.randint(2, (20, 4), generator=seeded(4)).float())


def trained(
    labels: Tensor, codes: Tensor, code_labels: Tensor, steps: int = 200, **more: object
) -> tuple[PrototypeNet, Tensor]:
    network = small_net(4 if labels.ndim == 2 else 3, codes.shape[1])
    return network, train_prototypes(network, labels, codes, code_labels, steps, lr=5e-3, generator=seeded(), **more)


# --- the network ----------------------------------------------------------------------------------


def test_the_published_network():
    network = PrototypeNet(38, 32)
    sizes = [tuple(weight.shape) for name, weight in network.named_parameters() if name.endswith("weight")]
    assert sizes == [(4096, 38), (512, 4096), (32, 512), (38, 512)]


def test_codes_are_relaxed_and_shares_are_shares():
    network, labels = small_net(), torch.tensor([[1, 0, 1], [0, 1, 0]])
    codes, shares = network(labels), network.probabilities(labels)
    assert codes.shape == (2, 8) and codes.abs().max() < 1
    assert shares.shape == (2, 3) and shares.min() > 0 and shares.max() < 1
    assert network.feature(labels).shape == (2, 16)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.float32])
def test_single_labels_are_the_multi_hot_ones(kind):
    network, classes = small_net(), torch.tensor([2, 0, 1])
    assert torch.equal(network(classes.to(kind)), network(torch.eye(3)[classes].to(kind)))


def test_labels_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="labels 0 to 3: expected 3 classes"):
        multi_hot(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="expected 3 classes"):
        multi_hot(torch.eye(4), 3)
    with pytest.raises(DataError):
        multi_hot(torch.tensor([[0.5, 0.5, 1]]), 3)
    with pytest.raises(ValueError, match="hidden=0"):
        PrototypeNet(3, 8, (4, 0))


# --- losses ---------------------------------------------------------------------------------------


def test_the_circle_loss_of_one_code_by_hand():
    code = torch.tensor([[0.5, -0.5]], dtype=torch.float64, requires_grad=True)
    known = Known(torch.tensor([[1, 1], [1, -1]]), torch.eye(2))
    loss = circle_loss(Told(code), torch.tensor([[1.0, 0.0]]), known)
    assert loss.item() == pytest.approx((0.5 + 2) * 0.5 + 0 + 1e-4 * 0.5)
    (slope,) = torch.autograd.grad(loss, code)
    assert slope[0].tolist() == pytest.approx([2.5 / 2 - 2 / 2 - 1e-4, -2.5 / 2 - 2 / 2 + 1e-4])
    softened = circle_loss(Told(code), torch.tensor([[1.0, 0.0]]), known, softened=True)
    assert softened.item() == pytest.approx(log1p(exp(1.25)) + 1e-4 * 0.5)


def test_the_circle_loss_by_loops():
    codes, labels, known = some_pairs()
    sums = {True: 0.0, False: 0.0}
    for code, label in zip(codes, labels, strict=True):
        for other, theirs in zip(known.codes, known.labels, strict=True):
            s = (code @ other.double()).item() / 6
            shared = bool((label @ theirs) > 0)
            sums[shared] += exp(-(2 - s) * s if shared else (s + 2) * s)
    rest = 1e-4 * (codes - codes.sign()).square().sum().item() / 5
    assert circle_loss(Told(codes), labels, known).item() == pytest.approx(
        (log(sums[True]) + log(sums[False])) / 5 + rest
    )


def test_the_likelihood_loss_by_loops():
    codes, labels, known = some_pairs()
    shares = torch.rand(5, 4, generator=seeded(5), dtype=torch.float64)
    total = 0.0
    for code, label in zip(codes, labels, strict=True):
        for other, theirs in zip(known.codes, known.labels, strict=True):
            t = (code @ other.double()).item() / 2
            total += log1p(exp(t)) - t * float(label @ theirs > 0)
    rest = (shares - labels).square().mean().item() + (codes - codes.sign()).square().sum().item() / (1e4 * 5)
    assert likelihood_loss(Told(codes, shares), labels, known).item() == pytest.approx(total / 100 + rest)


@pytest.mark.parametrize("theirs", [[1.0, 0.0], [0.0, 1.0]])
@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_of_one_kind_alone_will_do(loss, theirs):
    codes = torch.zeros(1, 2, requires_grad=True)
    known = Known(torch.ones(1, 2), torch.tensor([theirs]))
    found = LOSSES[loss](Told(codes, torch.ones(1, 2)), torch.tensor([[1.0, 0.0]]), known)
    (slope,) = torch.autograd.grad(found, codes)
    assert found.isfinite() and slope.isfinite().all()
    assert (slope.sum() < 0) == (theirs[0] == 1), "towards codes that share a label, away from the others"


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_the_codes_of_apart_classes_are_found(loss):
    labels = torch.arange(30) % 3
    network, losses = trained(labels, CLASS_CODES[labels], labels, loss=LOSSES[loss])
    assert torch.equal(codes_of(network(torch.arange(3))), CLASS_CODES)
    assert losses.shape == (200,) and losses[-20:].mean() < losses[:20].mean()


@pytest.mark.parametrize("loss", LOSSES)
def test_where_all_classes_agree_in_a_bit_the_majority_of_the_others_decides(loss):
    """As in the closed form: the sum over codes that share a label, less that over the others."""
    labels, codes = torch.arange(3), torch.cat([CLASS_CODES, torch.ones(3, 1), -torch.ones(3, 1)], dim=1)
    network, _ = trained(labels, codes, labels, loss=LOSSES[loss])
    assert torch.equal(codes_of(network(labels)).float(), center_code(labels, codes, labels, balanced=False))


def test_a_label_vector_lies_between_its_labels():
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]])
    network, _ = trained(labels, CLASS_CODES, labels[:3])
    code = codes_of(network(labels[3:]))[0]
    agreed = CLASS_CODES[0] == CLASS_CODES[1]
    assert torch.equal(code[agreed], CLASS_CODES[0][agreed].to(code.dtype))


def test_the_second_head_learns_the_labels_by_the_likelihood_loss_alone():
    labels = torch.eye(4)[torch.arange(30) % 3]
    codes, before = CLASS_CODES[torch.arange(30) % 3], small_net(4).head[0].weight
    network, _ = trained(labels, codes, labels, loss=likelihood_loss)
    assert (network.probabilities(labels) - labels).abs().max() < 0.2
    assert torch.equal(trained(labels, codes, labels, steps=5)[0].head[0].weight, before)


def test_training_follows_its_generator_and_the_kinds_of_labels():
    labels = torch.eye(4)[torch.arange(30) % 3]
    codes = CLASS_CODES[torch.arange(30) % 3]
    more = torch.cat([labels, labels[:7], torch.zeros(5, 4)])  # neither copies nor rows without labels are more kinds
    first, second, third = (trained(given, codes, labels, steps=20)[1] for given in (labels, labels, more))
    assert torch.equal(first, second) and torch.equal(first, third)


def test_the_rate_falls_to_a_tenth_twice():
    network, labels, seen = small_net(), torch.arange(3), []

    def loss(network, chosen, known):
        bias = network.code[0].bias
        seen.append(bias.mean().item())
        return bias.sum()  # of constant slope, so that a step of Adam is as long as the rate

    train_prototypes(network, labels, CLASS_CODES, labels, 8, lr=0.1, loss=loss)
    seen.append(network.code[0].bias.mean().item())
    steps = [round(before - after, 4) for before, after in pairwise(seen)]
    assert steps == [0.1] * 4 + [0.01] * 2 + [0.001] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"codes": CLASS_CODES[:, :4]}, "expected codes of 8 bits"),
        ({"codes": CLASS_CODES.float() / 2}, "other values than -1"),
        ({"code_labels": torch.arange(2)}, "and 2 labels"),
        ({"labels": torch.zeros(2, 3)}, "without any label"),
        ({"labels": torch.tensor([3])}, "expected 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"labels": torch.arange(3), "codes": CLASS_CODES, "code_labels": torch.arange(3), "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        train_prototypes(small_net(), **given)


def test_a_loss_that_is_nan_is_no_training():
    def loss(network, labels, known):
        return network(labels).sum() * torch.nan

    with pytest.raises(FloatingPointError, match="NaN"):
        train_prototypes(small_net(), torch.arange(3), CLASS_CODES, torch.arange(3), 2, loss=loss)


# --- the attack -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_towards_a_learned_code_the_ranking_becomes_that_of_the_target(loss):
    model, images, labels, gallery = small_world()
    network, _ = trained(gallery.labels, gallery.codes, gallery.labels, loss=LOSSES[loss])
    assert network.code[0].out_features == BITS
    attack = Prototype(wanted=draw_labels(labels, gallery.labels, seeded()), network=network)
    found = attacks.run(attack, model, images, gallery, PGD(0.2, 0.02, 30), labels=labels)
    gain = found.measured["average_precision"].mean() - found.benign["average_precision"].mean()
    assert gain > 10


def test_it_attacks_by_single_labels_too():
    model, images, _, gallery = small_world()
    classes, known = torch.arange(12) % 3, replace(gallery, labels=gallery.labels[:, :3].argmax(1))
    network, _ = trained(known.labels, known.codes, known.labels)
    attack = Prototype(wanted=(classes + 1) % 3, network=network)
    found = attacks.run(attack, model, images, known, PGD(0.2, 0.02, 30), labels=classes)
    assert found.measured["average_precision"].mean() > found.benign["average_precision"].mean() + 10
