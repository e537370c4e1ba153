"""Semantic-aware training: its loss by the formula, and what the mainstay code is where the center code is none."""

import pytest
import torch

from robret_lib.defenses import CenterGuided, MainstayGuided
from robret_lib.hashing import DPH, HashObjective, KnownCodes
from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    INNER,
    MODES,
    a_defense,
    assert_the_loss_is,
    first_codes,
    given,
    in_modes_with_dropout,
    small_network,
)
from tests.test_cgat import EXAMPLE, as_kept, centers_of, of_four_codes, price_by, slow_sign


def slow_mainstay(label, known, mode):
    """``sign(w1 B - w2 B)``: weights by the cosine, and 1 where it is 0, each divided by their sum."""
    cosines = [(label * other).sum() / ((label.sum() * other.sum()).sqrt() + 1e-8) for _, other in known]
    codes = [as_kept(code, mode) for code, _ in known]
    votes = torch.zeros(known.codes.shape[1], dtype=torch.float64)
    for sign, weights in ((1, cosines), (-1, [1 - cosine.sign() for cosine in cosines])):
        total = sum(float(weight) for weight in weights)
        votes += sum(sign * float(w) / (total or 1) * code for w, code in zip(weights, codes, strict=True))
    return slow_sign(votes, mode)


@in_modes_with_dropout
def test_the_loss_is_the_slow_one(mode, dropout):
    assert_the_loss_is("saat", mode, dropout, price_by(slow_mainstay, mode))


def test_attacked_codes_shall_be_binary_with_the_published_weight():
    assert_the_loss_is("saat", "fixed", 0.0, price_by(slow_mainstay, "fixed"), quantization=1e-4)
    assert a_defense("saat").quantization == 1e-4 and a_defense("cgat").quantization == 0
    losses = [given(a_defense("saat", **more), small_network(), BATCHES[0]) for more in ({}, {"quantization": 1e-4})]
    assert torch.equal(*losses)


def test_the_mainstay_codes_of_the_worked_example():
    """As published, but that a draw is 0 there and +1 here."""
    expected = [[1, -1, 1, -1], [1, 1, 1, -1], [-1, -1, -1, 1]]
    assert centers_of(of_four_codes("reference", made=MainstayGuided), EXAMPLE) == [*expected, [0, 0, 0, -1]]
    assert centers_of(of_four_codes("fixed", made=MainstayGuided), EXAMPLE) == [*expected, [1, 1, 1, -1]]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_without_a_label_has_the_negative_of_the_mean_code(mode):
    (center,) = centers_of(a_defense("saat", mode), [[0, 0, 0, 0]])
    mean = first_codes().mean(0)
    assert mean.abs().min() > 0 and center == (-mean.sign()).tolist()
    assert centers_of(a_defense("cgat", "reference"), [[0, 0, 0, 0]]) == [[0] * BITS]


def test_of_single_labels_it_is_the_center_code():
    labels = torch.nn.functional.one_hot(torch.arange(37) % 3, 3)
    losses = []
    for made in (MainstayGuided, CenterGuided):
        clean = HashObjective(DPH(), KnownCodes(labels, BITS))
        clean.known.fill(first_codes())
        defense = made(INNER, clean, quantization=0.1).train()
        centers = defense.centers(defense.label_information(labels))
        assert set(centers.unique().tolist()) == {-1, 1}
        losses.append(centers)
    assert torch.equal(*losses)
