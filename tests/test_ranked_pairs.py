"""EQB2A's loss against a slow loop, by which surrogates learn an order."""

import pytest
import torch

from robret_lib.cross_modal import Answers, RankedPairs, encoder, learned
from robret_lib.cross_modal.ranked_pairs import RANKED
from robret_lib.hamming import hamming_distance
from robret_lib.training import Schedule
from tests.small_cross_modal import (
    BITS,
    answers_of,
    random_codes,
    seeded,
    small_networks,
    some_pairs,
    trained_networks,
)

COUNT, BATCH = 24, 7


@pytest.fixture(scope="module")
def answers():
    asked = some_pairs(COUNT, seed=3)
    return Answers(asked.images, asked.texts, random_codes(COUNT, seed=1), random_codes(COUNT, seed=2))


def relaxed(count, seed):
    return torch.tanh(torch.randn(count, BITS, generator=seeded(seed), dtype=torch.float64))


def slow_loss(codes, answered, others, others_answered, items, margin, balance, quantization):
    """Pair after pair, of the lists of items that were drawn."""

    def distance(one, other):
        return (1 - sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True)) / BITS) / 2

    ranked = 0.0
    for code, told, drawn in zip(codes, answered, items.tolist(), strict=True):
        for j in drawn:
            for k in drawn:
                if distance(told, others_answered[j]) < distance(told, others_answered[k]):
                    ranked += max(0.0, margin - (distance(code, others[k]) - distance(code, others[j])))
    columns = codes.T.tolist()
    balanced = sum((sum(bit) / len(bit)) ** 2 for bit in columns)
    far = sum((bit - (1 if bit > 0 else -1)) ** 2 for code in codes.tolist() for bit in code)
    return (ranked + quantization * far) / len(codes) + balance * balanced


@pytest.mark.parametrize("weights", [(0.1, 0.01, 0.001), (0.5, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_is_the_slow_one(answers, weights):
    loss, codes, others = RankedPairs(answers, *weights), relaxed(BATCH, seed=5), relaxed(COUNT, seed=6)
    given = answers.text_codes[:BATCH], others, answers.image_codes
    items = torch.randint(COUNT, (BATCH, RANKED), generator=seeded(9))
    expected = slow_loss(codes, *given, items, *weights)
    assert expected > 0
    assert loss.of_kind(codes, *given, seeded(9)).item() == pytest.approx(expected, abs=1e-12)


def test_the_loss_has_the_right_slope(answers):
    loss, codes = RankedPairs(answers), relaxed(BATCH, seed=5).requires_grad_()
    given = answers.text_codes[:BATCH], relaxed(COUNT, seed=6), answers.image_codes
    assert torch.autograd.gradcheck(lambda moved: loss.of_kind(moved, *given, seeded(9)), codes)


def test_an_order_that_is_kept_costs_nothing_and_ties_cost_nothing(answers):
    """One bit more is 1/16 farther, and the margin smaller than that; of equal items there is no order to keep."""
    order, equal = RankedPairs(answers, 1 / 17, 0.0, 0.0), RankedPairs(answers, 1.0, 0.0, 0.0)
    codes, texts = answers.image_codes, answers.text_codes
    assert order.of_kind(codes.double(), codes, texts.double(), texts, seeded()) == 0
    assert order.of_kind(-codes.double(), codes, texts.double(), texts, seeded()) > 0
    same = texts[:1].expand(COUNT, -1)
    assert equal.of_kind(relaxed(COUNT, seed=5), codes, relaxed(COUNT, seed=6), same, seeded()) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_surrogates_learn_the_order_of_the_engine(seed):
    """Of pairs that it was never asked for: which texts are near an image, and which are far."""
    engine, strangers = trained_networks(), some_pairs(100, seed=5)
    told = hamming_distance(*encoder(engine)(*strangers[:2]))
    answers, surrogates = answers_of(engine, 60), small_networks(seed)

    def correlation():
        found = hamming_distance(*encoder(surrogates)(*strangers[:2]))
        return torch.corrcoef(torch.stack([found.double().flatten(), told.double().flatten()]))[0, 1]

    before = correlation()
    learned(surrogates, RankedPairs(answers), answers, Schedule(200, batch=20, lr=5e-3))
    assert correlation() > max(0.4, before + 0.3)
