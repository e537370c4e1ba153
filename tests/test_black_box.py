"""AACH in one place: questions, surrogates that share nothing with the engine, and several of them as one."""

import pytest
import torch

from robret_lib import models
from robret_lib.attacks import QueryBudgetSpent
from robret_lib.attacks.cross_modal import TripletReversal
from robret_lib.attacks.search import AutoPGD
from robret_lib.cross_modal import Answers, BlackBox, CodeOracle, RankedPairs, encoder
from robret_lib.cross_modal.black_box import HEAD, surrogate_networks
from robret_lib.training import Schedule
from tests.small_cross_modal import answers_of, seeded, small_engine, small_networks, some_pairs

SCHEDULE = Schedule(4, batch=8, lr=1e-3)


def small_surrogates(seed=0):
    return small_networks(seed, hidden=16)


@pytest.fixture(scope="module")
def answers():
    engine = small_engine()
    return answers_of(engine.model, 24)


def box_of(answers, seed=0):
    return BlackBox.of_answers(answers, small_surrogates(seed), SCHEDULE)


def test_an_attacker_does_not_begin_with_the_first_weights_of_the_engine():
    """The same backbone, by the same seed, as `recipes.trained` draws it."""
    torch.manual_seed(0)
    engine = models.build("c2f2_half", 8, False, "H")
    own = surrogate_networks("c2f2_half", 30, 8, seed=0).images
    pairs = zip(engine.parameters(), own.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs if one.std() > 0)


def test_networks_of_an_attacker_repeat_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (surrogate_networks("c2f2_half", 30, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    same = [torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same) and not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_head_learns_and_its_trunk_stays():
    networks = surrogate_networks(HEAD, 30, 8)
    assert not any(weight.requires_grad for weight in networks.images.backbone.trunk.parameters())
    assert all(weight.requires_grad for weight in networks.images.backbone.head.parameters())


def test_it_asks_once_for_each_pair_and_no_more_than_the_oracle_answers(answers):
    engine = small_engine()
    oracle = CodeOracle(encoder(engine.model), budget=24)
    asked = some_pairs(24, seed=3)
    box = BlackBox.of(oracle, asked, small_surrogates(), SCHEDULE)
    assert oracle.asked == 24 and box.answers.pairs == 24
    with pytest.raises(QueryBudgetSpent):
        BlackBox.of(oracle, asked, small_surrogates(), SCHEDULE)


@pytest.mark.parametrize(("kind", "codes"), [("images", "text_codes"), ("texts", "image_codes")])
def test_queries_are_compared_with_the_answered_codes_of_the_other_kind(answers, kind, codes):
    gallery = box_of(answers).gallery(kind)
    assert gallery.distance == "H" and torch.equal(gallery.codes, getattr(answers, codes))
    assert gallery.labels is None


def test_of_several_surrogates_the_loss_is_that_of_their_codes_together(answers):
    """Distances in joined codes are sums of distances, and a single one joined with itself attacks as it does alone."""
    boxes = [box_of(answers, seed) for seed in (0, 1)]
    both = BlackBox.together(boxes)
    images = answers.images[:6]
    outputs = torch.cat([models.embed(box.surrogates.images, images) for box in boxes], dim=1)
    assert torch.allclose(models.embed(both.surrogates.images, images), outputs, atol=1e-6)
    distances = sum(
        box.gallery("images").distances_from(part) for box, part in zip(boxes, outputs.chunk(2, 1), strict=True)
    )
    assert torch.allclose(both.gallery("images").distances_from(outputs), distances, atol=1e-4)
    assert both.answers.pairs == answers.pairs
    search, wish = AutoPGD(0.1, 3), TripletReversal(sharpness="own", quantization=0.0)
    alone = boxes[0].attacked("images", images, search, wish, seeded()).images
    twice = BlackBox.together(boxes[:1] * 2).attacked("images", images, search, wish, seeded()).images
    assert (alone - twice).abs().max() < 1e-4


def test_bits_that_nobody_asked_for_are_those_of_the_surrogates(answers):
    box = BlackBox.of_answers(answers, small_surrogates(), SCHEDULE, RankedPairs)
    codes = encoder(box.surrogates)(answers.images, answers.bags)
    assert torch.equal(box.answers.image_codes, codes[0]) and torch.equal(box.answers.text_codes, codes[1])
    assert not torch.equal(codes[0], answers.image_codes)


def test_surrogates_of_other_answers_are_not_one_attacker(answers):
    with pytest.raises(ValueError, match="0 surrogates: expected at least one, all of the same answers"):
        BlackBox.together([])
    others = Answers(*answers[:3], answers.text_codes.flip(0))
    with pytest.raises(ValueError, match="2 surrogates: expected at least one, all of the same answers"):
        BlackBox.together([box_of(answers), box_of(others)])


def test_answers_are_moved_to_where_the_surrogates_are(answers):
    stored = Answers(*(part.clone() for part in answers))
    box = BlackBox.of_answers(stored, small_surrogates(), SCHEDULE)
    assert {part.device for part in box.answers} == {next(box.surrogates.parameters()).device}
