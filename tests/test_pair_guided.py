"""Min-max on pairs: its loss by the formula, which is that of DPH."""

import torch

from robret_lib.hashing import DPH, Batch
from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    a_defense,
    assert_the_loss_is,
    in_modes_with_dropout,
    seeded,
    slow_pair_price,
    some_split,
)


def slow_price(mode):
    def price(labels, known):
        unseen = int((~known.seen).sum()) if mode == "reference" else 0
        return [lambda code, label=label: slow_pair_price(code, label, known, unseen) for label in labels]

    return price


@in_modes_with_dropout
def test_the_loss_is_the_slow_one(mode, dropout):
    assert_the_loss_is("pairs", mode, dropout, slow_price(mode))


def test_the_price_is_the_loss_of_dph():
    defense, labels = a_defense("pairs"), some_split().labels[BATCHES[0]]
    outputs = torch.randn(5, BITS, generator=seeded())
    price = defense.price(labels)(torch.tanh(outputs))
    assert price.shape == (5,)
    torch.testing.assert_close(price.mean(), DPH()(Batch(outputs, labels, defense.known)))
