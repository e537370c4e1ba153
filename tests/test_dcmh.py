"""DCMH: its loss pair by pair in both modes, with the gradient through the batch alone, and what it learns."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from robret_lib.cross_modal import DCMH
from robret_lib.training import Schedule
from tests.test_pairs_objective import (
    BITS,
    SIZE,
    assert_learns,
    batch_of,
    outputs_of,
    seeded,
    small_model,
    some_pairs,
)

MODES = ["fixed", "reference"]
in_modes = pytest.mark.parametrize("mode", MODES)
BATCHES = torch.tensor([0, 7, 12, 5, 31]), torch.tensor([7, 8, 0, 11, 20])
"""Rows of two batches, some of them in both; of 7 and 11 there are no labels."""


def product(one: Tensor, other: Tensor) -> Tensor:
    return sum(a * b for a, b in zip(one, other, strict=True))


def slow_way(own: Tensor, others: dict[int, Tensor], before: dict[int, Tensor], binary: Tensor, mode, rows, labels):
    """The loss of codes of one kind: with all known of the other kind, and with what is known of their own."""
    prices = {True: [], False: []}
    for code, row in zip(own, rows, strict=True):
        for other, theirs in others.items():
            similar = bool((labels[row] * labels[other]).sum() > 0)
            theta = product(code, theirs) / 2
            prices[similar].append(torch.log(1 + torch.exp(theta)) - similar * theta)
    if mode == "fixed":
        return sum(sum(each) / len(each) for each in prices.values() if each) / 2
    far = sum((b - u) ** 2 for code, goal in zip(own, binary, strict=True) for u, b in zip(code, goal, strict=True))
    moving = dict(zip(rows, own, strict=True))
    uneven = sum(sum(moving.get(row, code)[k] for row, code in before.items()) ** 2 for k in range(own.shape[1]))
    return (sum(prices[True]) + sum(prices[False]) + far + uneven) / (len(own) * len(others))


def slow_loss(images: Tensor, texts: Tensor, labels: Tensor, rows: Tensor, known: tuple[dict, dict], mode: str):
    """Of outputs of a batch; ``known`` are the codes of images and of texts by row, which are those of the batch then.

    In mode fixed, similar and dissimilar pairs have a half each: all pairs over those of a kind is what they weigh.
    """
    both, rows = ([torch.tanh(each) for each in (images, texts)] if mode == "fixed" else [images, texts]), rows.tolist()
    for codes, kept in zip(both, known, strict=True):
        kept |= {row: code.detach().clone() for row, code in zip(rows, codes, strict=True)}
    binary = torch.sign(both[0] + both[1]).detach()
    given = binary, mode, rows, labels
    return slow_way(both[0], known[1], known[0], *given) + slow_way(both[1], known[0], known[1], *given)


@in_modes
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_is_the_slow_one(mode, dropout):
    """Of two batches one after the other, with the gradients of all weights and the codes that are known then."""
    (split, _), model = some_pairs(), small_model(dropout=dropout).double()
    loss, known = DCMH(split.labels, BITS, mode).double(), ({}, {})
    for rows in BATCHES:
        found, expected = (batch_of(model, rows) for _ in range(2))
        torch.manual_seed(7)
        expected = slow_loss(*expected.outputs, split.labels, rows, known, mode)
        torch.manual_seed(7)
        found = loss(found, seeded())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        slopes = (torch.autograd.grad(each, list(model.parameters())) for each in (found, expected))
        torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-12)
        for memory, codes in zip((loss.known_images, loss.known_texts), known, strict=True):
            assert memory.seen.nonzero().flatten().tolist() == sorted(codes)
            torch.testing.assert_close(memory.codes[sorted(codes)], torch.stack([codes[row] for row in sorted(codes)]))


# By hand


def one_pair(image: float, text: float, labels: list[int], mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of an image and its text, of one bit each, and its slopes."""
    outputs = [torch.tensor([[each]], dtype=torch.float64, requires_grad=True) for each in (image, text)]
    labels = torch.tensor([labels])
    loss = DCMH(labels, 1, mode).double()(outputs_of(*outputs, labels, torch.tensor([0])), seeded())
    return loss, *torch.autograd.grad(loss, outputs)


def test_the_published_loss_of_one_pair():
    """F = 2 and G = 1: Theta = 1 both ways, B = 1, and a bit that all have in common costs its square."""
    loss, image, text = one_pair(2.0, 1.0, [1, 0], "reference")
    assert loss.item() == pytest.approx(2 * (log(1 + exp(1)) - 1) + (1 - 2) ** 2 + (1 - 1) ** 2 + 2**2 + 1**2)
    pull = 1 / (1 + exp(-1)) - 1
    assert image.item() == pytest.approx(pull * 1 / 2 + 2 * (2 - 1) + 2 * 2)
    assert text.item() == pytest.approx(pull * 2 / 2 + 2 * (1 - 1) + 2 * 1)


def test_the_published_loss_of_a_pair_without_labels():
    """It is not even similar to itself; where the signs are opposed, B is that of the larger one."""
    loss, _, _ = one_pair(-3.0, 1.0, [0, 0], "reference")
    assert loss.item() == pytest.approx(2 * log(1 + exp(-1.5)) + (-1 + 3) ** 2 + (-1 - 1) ** 2 + 3**2 + 1**2)


def test_the_loss_of_one_pair_as_it_is_mended():
    """Relaxed codes of 1/2 and -1/2, and half of the pairs' weight, since there are no dissimilar ones."""
    outputs = torch.atanh(torch.tensor([0.5, -0.5], dtype=torch.float64)).tolist()
    loss, image, _ = one_pair(*outputs, [0, 1], "fixed")
    assert loss.item() == pytest.approx(log(1 + exp(-1 / 8)) + 1 / 8)
    pull = 1 / (1 + exp(1 / 8)) - 1
    assert image.item() == pytest.approx(pull / 2 * (-0.5) / 2 * (1 - 0.25))


def some_outputs(size: int = 6, seed: int = 0) -> list[Tensor]:
    return [torch.randn(size, BITS, generator=seeded(seed + k), dtype=torch.float64) for k in range(2)]


def loss_of(outputs: list[Tensor], labels: Tensor, mode: str) -> Tensor:
    """Of a batch that is the whole training set."""
    return DCMH(labels, BITS, mode).double()(outputs_of(*outputs, labels, torch.arange(len(labels))), seeded())


def test_similar_and_dissimilar_pairs_have_the_same_say_however_many_there_are():
    """Alike items that come five times more often change nothing, where each of them was in the same number of pairs.

    In mode reference they do.
    """
    outputs, labels = [each[:3] for each in some_outputs()], torch.eye(3, dtype=torch.uint8)
    crowd = torch.arange(3).repeat_interleave(2)
    found = {
        mode: [loss_of([each[rows] for each in outputs], labels[rows], mode) for rows in (torch.arange(3), crowd)]
        for mode in MODES
    }
    torch.testing.assert_close(*found["fixed"])
    pairs = sum(softplus_of(a, b) for a in outputs[0] for b in outputs[1])
    similar = sum(softplus_of(a, b) for a, b in zip(*outputs, strict=True))
    pulls = sum(product(torch.tanh(a), torch.tanh(b)) / 2 for a, b in zip(*outputs, strict=True))
    torch.testing.assert_close(found["fixed"][0], (similar - pulls) / 3 + (pairs - similar) / 6)
    assert (found["reference"][0] - found["reference"][1]).abs() > 1e-3


def softplus_of(one: Tensor, other: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(product(torch.tanh(one), torch.tanh(other)) / 2))


@in_modes
@pytest.mark.parametrize("labels", [torch.zeros(6, 3), torch.ones(6, 3)])
def test_where_all_pairs_are_alike_the_loss_is_finite(mode, labels):
    assert loss_of(some_outputs(), labels.to(torch.uint8), mode).isfinite()


@in_modes
def test_outputs_of_any_size_are_safe(mode):
    labels = torch.eye(6, dtype=torch.uint8)
    assert loss_of([1e3 * each for each in some_outputs()], labels, mode).isfinite()


@in_modes
def test_a_batch_learns_from_what_is_known_and_not_the_other_way_round(mode):
    """What an earlier batch said of other items matters, and none of its gradient is left."""
    labels, first, second = (
        torch.eye(4, dtype=torch.uint8),
        *([each.requires_grad_() for each in some_outputs(2, seed)] for seed in (1, 5)),
    )
    loss = DCMH(labels, BITS, mode).double()
    loss(outputs_of(*first, labels[:2], torch.tensor([0, 1])), seeded())
    found = loss(outputs_of(*second, labels[2:], torch.tensor([2, 3])), seeded())
    assert torch.autograd.grad(found, first, allow_unused=True) == (None, None)
    alone = DCMH(labels, BITS, mode).double()(outputs_of(*second, labels[2:], torch.tensor([2, 3])), seeded())
    assert (found - alone).abs() > 1e-6


@in_modes
def test_in_evaluation_mode_nothing_is_kept(mode):
    (split, _), model = some_pairs(), small_model().eval()
    loss = DCMH(split.labels, BITS, mode)
    trained = loss(batch_of(model, torch.arange(6)), seeded())
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    looked = loss.eval()(batch_of(model, torch.arange(6, 12)), seeded())
    assert looked.isfinite() and looked != trained
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="mode='old': expected 'fixed' or 'reference'"):
        DCMH(torch.ones(SIZE, 4), BITS, "old")


@in_modes
def test_codes_that_are_free_to_move_agree_where_labels_do(mode):
    """Of two classes, with a few steps along the gradient of the loss, which falls."""
    labels, outputs = torch.eye(2, dtype=torch.uint8)[torch.arange(8) % 2], some_outputs(8)
    similar, found = (labels.double() @ labels.double().T > 0), []
    for _ in range(151):
        outputs = [each.detach().requires_grad_() for each in outputs]
        loss = loss_of(outputs, labels, mode)
        products = outputs[0] @ outputs[1].T
        found.append((loss.item(), (products[similar].mean() - products[~similar].mean()).item()))
        slopes = torch.autograd.grad(loss, outputs)
        outputs = [each - 0.3 * slope for each, slope in zip(outputs, slopes, strict=True)]
    assert found[-1][0] < found[0][0] - 0.1 and found[-1][1] > found[0][1] + 1


def test_images_and_texts_find_each_other(bits=16):
    """In mode fixed; of mode reference see the class."""
    assert_learns(lambda labels: DCMH(labels, bits), small_model(bits), Schedule(150, batch=20, lr=5e-3))
