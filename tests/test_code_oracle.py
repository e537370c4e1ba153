"""A search engine of images and texts: what it answers, what it charges, what it refuses, and what it does not show."""

import inspect

import pytest
import torch
from torch import nn

from robret_lib.attacks import QueryBudgetSpent
from robret_lib.cross_modal import CodeOracle, ImageTextModel, encoder, text_model
from robret_lib.cross_modal.oracle import Answers, check_answers
from robret_lib.hamming import codes_of
from robret_lib.models import HashModel
from tests.small_cross_modal import BITS, PIXELS, WORDS, answers_of, random_codes, small_networks, some_pairs


class Noted:
    """An encoder of random codes that writes down what it was asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, images, bags):
        self.seen.append((images, bags))
        return random_codes(len(images), seed=1), random_codes(len(bags), seed=2)


@pytest.fixture
def pairs():
    asked = some_pairs(12, seed=4)
    return asked.images, asked.texts


@pytest.fixture
def model():
    return small_networks()


def test_the_answers_are_the_signs_of_what_the_networks_say(model, pairs):
    answers = CodeOracle(encoder(model))(*pairs)
    assert torch.equal(answers.images, pairs[0]) and torch.equal(answers.bags, pairs[1])
    for codes, outputs in zip(answers[2:], model(*pairs), strict=True):
        assert codes.dtype == torch.int8 and torch.equal(codes, codes_of(outputs))
        assert not codes.requires_grad


def test_stored_images_get_the_codes_of_the_images_they_show(model, pairs):
    stored = (255 * pairs[0]).round().to(torch.uint8)
    oracle = CodeOracle(encoder(model))
    assert torch.equal(oracle(stored, pairs[1]).image_codes, oracle(stored.float() / 255, pairs[1]).image_codes)


def test_each_pair_counts_as_two_calls_of_an_encoder(pairs):
    oracle = CodeOracle(Noted())
    for count, asked in ((1, 1), (5, 6), (5, 11)):
        assert oracle(*(part[:count] for part in pairs)).pairs == count
        assert oracle.asked == asked and oracle.encoder_calls == 2 * asked


def test_when_the_budget_is_spent_it_answers_none():
    """Not even as many as would be left."""
    asked, noted = some_pairs(8, seed=4), Noted()
    oracle = CodeOracle(noted, budget=7)
    oracle(asked.images[:5], asked.texts[:5])
    with pytest.raises(QueryBudgetSpent, match="8 pairs asked for: the budget is 7 pairs"):
        oracle(asked.images[:3], asked.texts[:3])
    assert oracle.asked == 5 and len(noted.seen) == 1
    oracle(asked.images[:2], asked.texts[:2])
    with pytest.raises(QueryBudgetSpent):
        oracle(asked.images[:1], asked.texts[:1])
    assert oracle.asked == 7 and len(noted.seen) == 2


@pytest.mark.parametrize(("images", "bags"), [(3, 2), (0, 2), (0, 0), (12, 1)])
def test_what_is_no_pair_is_refused_and_not_charged(images, bags, pairs):
    noted = Noted()
    oracle = CodeOracle(noted, budget=1)
    with pytest.raises(ValueError, match=f"{images} images and {bags} bags of words: expected pairs, at least one"):
        oracle(pairs[0][:images], pairs[1][:bags])
    assert oracle.asked == 0 and not noted.seen


@pytest.mark.parametrize("odd", [torch.rand(12, 3, 5, 5), torch.rand(12, 7), torch.ones(12, 3, 4, 4).long()])
def test_what_cannot_be_encoded_is_not_charged(odd, model, pairs):
    oracle = CodeOracle(encoder(model), budget=12)
    with pytest.raises((ValueError, RuntimeError)):
        oracle(odd, pairs[1])
    assert oracle.asked == 0
    oracle(*pairs)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True])
def test_an_engine_that_answers_nothing_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget={budget}: expected a whole number of at least 1"):
        CodeOracle(Noted(), budget)


def test_nothing_but_codes_leaves_it(model, pairs):
    """No output, no label, no network; two values for each bit, whoever asks."""
    oracle = CodeOracle(encoder(model), budget=100)
    answers = oracle(*(part.clone().requires_grad_() for part in pairs))
    assert all(codes.unique().tolist() == [-1, 1] and codes.shape == (12, BITS) for codes in answers[2:])
    assert not any(part.requires_grad or part.grad_fn for part in answers)
    assert {name for name in vars(oracle) if not name.startswith("_")} == {"budget", "asked"}
    public = [name for name, _ in inspect.getmembers(oracle) if not name.startswith("_")]
    assert public == ["asked", "budget", "encoder_calls"]


def test_the_encoder_sees_copies_without_gradients(pairs):
    """What it does with them reaches nobody."""
    given, noted = [part.clone().requires_grad_() for part in pairs], Noted()
    answers = CodeOracle(noted)(*given)
    for seen, sent, answered in zip(noted.seen[0], given, answers[:2], strict=True):
        assert torch.equal(seen, sent) and not seen.requires_grad
        seen.fill_(9.0)
        assert not (sent == 9).any() and not (answered == 9).any()


def test_asking_leaves_the_networks_as_they_were_and_gives_no_gradient(pairs):
    """Also those that are in training, whose dropout is not seen."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(PIXELS, BITS))
    model = ImageTextModel(HashModel(backbone), text_model(WORDS, BITS, (8,))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    oracle = CodeOracle(encoder(model))
    first, second = oracle(*pairs), oracle(*pairs)
    assert all(torch.equal(*each) for each in zip(first, second, strict=True))
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_network_that_says_nan_is_not_charged(pairs):
    model = small_networks()
    model.images.backbone[-1].bias.data.fill_(torch.nan)
    oracle = CodeOracle(encoder(model))
    with pytest.raises(ValueError, match="NaN"):
        oracle(*pairs)
    assert oracle.asked == 0


# --- what surrogates learn from --------------------------------------------------------------------


def test_answers_count_their_pairs(model):
    for count in (2, 7):
        answers = answers_of(model, count)
        assert answers.pairs == count
        check_answers(answers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(5, 3, 4, 4)}, "expected at least two pairs, and a code of each half"),
        ({"text_codes": random_codes(6, BITS + 1)}, "expected at least two pairs, and a code of each half"),
        ({"image_codes": random_codes(6) > 0}, "expected binary codes"),
        ({"text_codes": random_codes(6) * 2}, "expected binary codes"),
        ({"text_codes": random_codes(6).float() / 2}, "expected binary codes"),
    ],
)
def test_answers_that_are_no_codes_of_pairs_are_refused(change, message, model):
    given = answers_of(model, 6)
    with pytest.raises(ValueError, match=message):
        check_answers(Answers(**{**given._asdict(), **change}))


def test_one_answer_is_refused_since_there_is_nothing_to_compare(model):
    with pytest.raises(ValueError, match="expected at least two pairs"):
        check_answers(answers_of(model, 1))
