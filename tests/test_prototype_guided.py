"""Prototypes beside a hash network: what they learn and from what; and training that is guided by them."""

import pytest
import torch

from robret_lib.defenses.prototypes import Prototypes
from robret_lib.hashing import KnownCodes
from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    MODES,
    SIZE,
    a_defense,
    assert_the_loss_is,
    first_codes,
    given,
    in_modes_with_dropout,
    seeded,
    share,
    small_network,
    some_split,
)


def slow_codes(network, labels):
    """Of the prototypes, one by one."""
    with torch.no_grad():
        return [network(label[None])[0].sign() for label in labels]


def slow_kinds(labels):
    """Those that occur, each once, but for the one without a label, in the order of their digits."""
    return torch.tensor(sorted({tuple(label) for label in labels.tolist()} - {(0,) * labels.shape[1]}))


def slow_own(defense):
    """``log sum_p exp((s - 2) s) + log sum_n exp((s + 2) s)`` over n, factors constant; and the blur of the codes."""

    def own(size, known, generator):
        kinds = slow_kinds(defense.clean.known.labels)
        drawn = kinds[torch.randint(len(kinds), (size,), generator=generator)]
        codes, sums = [defense.prototypes.network(label[None])[0] for label in drawn], {True: 0.0, False: 0.0}
        for code, label in zip(codes, drawn, strict=True):
            for other, theirs in known:
                s, shared = (code * other.sign()).sum() / BITS, share(label, theirs)
                sums[shared] = sums[shared] + torch.exp((s.item() + (-2 if shared else 2)) * s)
        blur = sum(((code - code.detach().sign()) ** 2).sum() for code in codes) / size
        return (sums[True].log() + sums[False].log()) / size + 1e-4 * blur

    return own


@in_modes_with_dropout
def test_the_loss_is_the_slow_one(mode, dropout):
    network = a_defense("prototypes", mode).double().prototypes.network

    def price(labels, known):
        return [lambda code, g=g: -(code * g).sum() / BITS for g in slow_codes(network, labels)]

    assert_the_loss_is("prototypes", mode, dropout, price, own=slow_own)


# Prototypes


def some_prototypes(known):
    torch.manual_seed(3)
    return Prototypes(known)


def filled(rows=None):
    known = KnownCodes(some_split().labels, BITS, "zeros")
    if rows is None:
        known.fill(first_codes())
    else:
        known.with_batch(rows, 0.3 * first_codes()[rows])
    return known


def test_drawn_labels_are_those_of_the_training_set_each_kind_alike():
    prototypes, kinds = some_prototypes(filled()), slow_kinds(some_split().labels)
    drawn = prototypes.drawn(7_000, seeded())
    assert drawn.shape == (7_000, 4) and torch.equal(prototypes.kinds.long(), kinds)
    found, counts = drawn.unique(dim=0, return_counts=True)
    assert torch.equal(found.long(), kinds)
    expected = 7_000 / len(kinds)
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert torch.equal(drawn, prototypes.drawn(7_000, seeded()))


def test_codes_are_binary_and_nothing_flows_through_them():
    codes = some_prototypes(filled()).codes(some_split().labels)
    assert codes.shape == (SIZE, BITS) and set(codes.unique().tolist()) == {-1, 1} and not codes.requires_grad


def test_what_no_batch_has_held_teaches_nothing():
    """Also where other losses take its code for zeros, and its labels for none."""
    rows, prototypes = torch.tensor([3, 4, 9, 10]), some_prototypes(filled())
    few = KnownCodes(some_split().labels[rows], BITS)
    few.fill(first_codes()[rows])
    losses = [prototypes.loss(known, 6, seeded()) for known in (filled(rows), few, filled())]
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_only_the_classifier_that_nobody_asks_learns_nothing():
    prototypes = some_prototypes(filled())
    prototypes.loss(filled(), 6, seeded()).backward()
    learning = {name for name, weight in prototypes.named_parameters() if weight.grad is not None and weight.grad.any()}
    names = {name for name, _ in prototypes.named_parameters()}
    assert names - learning == {"network.head.0.weight", "network.head.0.bias"}
    assert {name for name, weight in prototypes.named_parameters() if weight.requires_grad} == learning


def test_prototypes_become_the_codes_of_their_labels():
    code = first_codes()[:1]
    labels = torch.eye(2, dtype=torch.int64).repeat(5, 1)
    known = KnownCodes(labels, BITS)
    known.fill(0.1 * torch.cat([code, -code]).repeat(5, 1))
    prototypes, generator = some_prototypes(known), seeded()
    optimizer = torch.optim.Adam(prototypes.parameters(), 1e-4)
    assert not torch.equal(prototypes.codes(labels[:2]), torch.cat([code, -code]))
    for _ in range(30):
        optimizer.zero_grad()
        prototypes.loss(known, 8, generator).backward()
        optimizer.step()
    assert torch.equal(prototypes.codes(labels[:2]), torch.cat([code, -code]))


@pytest.mark.parametrize("name", ["atrdh", "prototypes"])
@pytest.mark.parametrize("mode", MODES)
def test_the_hash_network_learns_nothing_from_the_loss_of_the_prototypes(name, mode):
    """Nor the prototypes from the price of a code."""
    model = small_network()
    defense = a_defense(name, mode, adversarial_weight=0, hashing_weight=0)
    given(defense, model, BATCHES[0]).backward()
    assert not any(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    weights = list(defense.prototypes.network.body.parameters())
    alone = [weight.grad.clone() for weight in weights]
    assert all(slope.any() for slope in alone)
    defense.zero_grad()
    another = a_defense(name, mode)
    given(another, model, BATCHES[0]).backward()
    assert all(map(torch.equal, alone, (weight.grad for weight in another.prototypes.network.body.parameters())))
    assert all(weight.grad.any() for weight in model.parameters())
