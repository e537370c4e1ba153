"""Noise of the size of an attack, and bits that are right by chance."""

import pytest
import torch

from robret_lib.cross_modal import commonest_bits, equal_bits, random_signs, random_words
from tests.small_cross_modal import WORDS, seeded, some_pairs

PAIRS = some_pairs(20, seed=1)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_every_pixel_moves_by_the_radius_and_stays_a_pixel(kind):
    images = PAIRS.images if kind == "float" else (255 * PAIRS.images).to(torch.uint8)
    given = images.float() / (1 if kind == "float" else 255)
    moved = random_signs(images, 0.1, seeded()) - given
    inside = (given > 0.1) & (given < 0.9)
    torch.testing.assert_close(moved[inside].abs(), torch.full_like(moved[inside], 0.1))
    assert moved.abs().max() <= 0.1 + 1e-6 and (given + moved).min() >= 0 and (given + moved).max() <= 1
    assert 0.45 < (moved[inside] > 0).float().mean() < 0.55


@pytest.mark.parametrize("words", [0, 1, 5, WORDS])
def test_so_many_words_of_each_text_are_flipped(words):
    moved = random_words(PAIRS.texts, words, seeded())
    assert ((moved == 0) | (moved == 1)).all()
    assert ((moved != PAIRS.texts).flatten(1).sum(1) == words).all()
    assert moved.shape == PAIRS.texts.shape and moved.dtype == PAIRS.texts.dtype


def test_texts_are_not_all_flipped_at_the_same_words():
    flipped = (random_words(PAIRS.texts, 3, seeded()) != PAIRS.texts).flatten(1)
    assert len(flipped.unique(dim=0)) > len(flipped) / 2


def test_noise_repeats_by_its_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for draw in (
        lambda s: random_signs(PAIRS.images, 0.1, seeded(s)),
        lambda s: random_words(PAIRS.texts, 3, seeded(s)),
    ):
        assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_worked_bits_by_hand():
    codes = torch.tensor([[1, 1, -1, -1], [1, -1, -1, -1], [-1, 1, -1, -1], [1, 1, 1, -1]])
    assert equal_bits(codes, codes.roll(1, 0)).tolist() == [75, 75, 50, 50]
    assert commonest_bits(codes).tolist() == [100, 75, 75, 75]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_signs(PAIRS.images, 1.5, seeded()), "eps=1.5"),
        (lambda: random_words(PAIRS.texts, -1, seeded()), "words=-1"),
        (lambda: random_words(PAIRS.texts, WORDS + 1, seeded()), f"words={WORDS + 1} of bags with {WORDS} entries"),
    ],
)
def test_impossible_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
