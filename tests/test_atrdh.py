"""ATRDH: its loss by the formula, and an attack towards the prototypes of drawn labels."""

import pytest
import torch

from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    MODES,
    a_defense,
    assert_the_loss_is,
    given,
    in_modes_with_dropout,
    seeded,
    small_network,
)
from tests.test_pair_guided import slow_price
from tests.test_prototype_guided import slow_codes, slow_kinds, slow_own


def slow_wish(defense):
    """``-mean_k h_k g_k`` with the prototypes of labels that are drawn."""

    def wish(labels, known, generator):
        kinds = slow_kinds(defense.clean.known.labels)
        drawn = kinds[torch.randint(len(kinds), (len(labels),), generator=generator)]
        targets = slow_codes(defense.prototypes.network, drawn)
        return [lambda code, g=g: -(code * g).sum() / BITS for g in targets]

    return wish


@in_modes_with_dropout
def test_the_loss_is_the_slow_one(mode, dropout):
    assert_the_loss_is("atrdh", mode, dropout, slow_price(mode), slow_wish, slow_own)


@pytest.mark.parametrize("mode", MODES)
def test_the_attack_goes_towards_the_prototypes_of_drawn_labels(mode, searches):
    defense, model = a_defense("atrdh", mode), small_network()
    targets = defense.prototypes.codes(defense.prototypes.drawn(5, seeded(7)))
    given(defense, model, BATCHES[0])
    ((clean, moved),) = searches
    before, after = ((torch.tanh(model(images)) * targets).mean(1) for images in (clean, moved))
    assert (after > before + 0.01).all()


def test_as_published_it_begins_with_no_codes_that_are_known():
    """What is not known yet costs the same whatever the code, and so teaches nothing."""
    defense = a_defense("atrdh", "reference")
    assert not defense.clean.known.seen.any()
    assert given(defense, small_network(), BATCHES[0]).isfinite()
    assert defense.clean.known.seen.nonzero().flatten().tolist() == sorted(BATCHES[0].tolist())
