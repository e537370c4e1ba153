"""AACH in one place: questions, surrogates that share nothing with the engine, and several of them as one."""

import pytest
import torch

from robret_lib import models
from robret_lib.attacks import QueryBudgetSpent
from robret_lib.attacks.cross_modal import TripletReversal
from robret_lib.attacks.search import AutoPGD, WordFlips
from robret_lib.cross_modal import (
    Answers,
    BlackBox,
    CodeOracle,
    RankedPairs,
    SurrogateTriplets,
    encoder,
    random_signs,
    random_words,
)
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
    box = BlackBox.of(oracle, asked.images, asked.texts, small_surrogates(), SCHEDULE)
    assert oracle.asked == 24 and box.answers.pairs == 24
    with pytest.raises(QueryBudgetSpent):
        BlackBox.of(oracle, asked.images, asked.texts, small_surrogates(), SCHEDULE)


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


def test_anchors_by_the_engine_say_nothing_to_who_has_bits_of_their_own(answers):
    box = BlackBox.of_answers(answers, small_surrogates(), SCHEDULE, RankedPairs)
    for each in (box, BlackBox.together([box, box])):
        with pytest.raises(ValueError, match="anchors by the engine .* expected anchors=None"):
            by_engine = TripletReversal(anchors=answers.image_codes[:6])
            each.attacked("images", answers.images[:6], AutoPGD(0.1, 1), by_engine)


def test_a_kind_that_there_is_not_is_refused(answers):
    box = box_of(answers)
    for asked_for in (lambda: box.gallery("image"), lambda: box.attacked("image", answers.images, AutoPGD(0.1, 1))):
        with pytest.raises(ValueError, match="kind='image': expected one of"):
            asked_for()


SEARCHED = {"images": AutoPGD(32 / 255, 20), "texts": WordFlips(3)}


@pytest.fixture(scope="module")
def left_of():
    """By an engine, a MAP in percent of queries of a kind, what noise of the same size leaves, and its answers."""
    engine, queries = small_engine(), some_pairs(60, seed=4)

    def left(kind, found):
        return engine.precisions(kind, found, queries.labels).mean().item()

    noise = {
        "images": [random_signs(queries.images, 32 / 255, seeded(seed)) for seed in range(4)],
        "texts": [random_words(queries.texts, 3, seeded(seed)) for seed in range(4)],
    }
    by_noise = {kind: sum(left(kind, each) for each in drawn) / len(drawn) for kind, drawn in noise.items()}
    return queries, left, by_noise, answers_of(engine.model, 60)


@pytest.mark.parametrize("kind", list(SEARCHED))
@pytest.mark.parametrize("loss", [SurrogateTriplets, RankedPairs])
@pytest.mark.parametrize("seed", range(3))
def test_what_was_learned_of_answers_does_more_harm_than_noise(left_of, loss, seed, kind):
    """Of the same size, whatever surrogates begin with."""
    queries, left, by_noise, told = left_of
    box = BlackBox.of_answers(told, small_surrogates(seed), Schedule(100, batch=20, lr=5e-3, seed=seed), loss)
    found = box.attacked(kind, getattr(queries, kind), SEARCHED[kind]).images
    assert left(kind, found) < by_noise[kind] - 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", [SurrogateTriplets, RankedPairs])
def test_a_black_box_on_a_gpu(loss):
    """Of an engine there: surrogates learn and queries move where the surrogates are, alone and two together."""
    engine, asked = small_engine(), some_pairs(24, seed=3)
    engine.model.cuda()
    oracle = engine.oracle(24)
    box = BlackBox.of(oracle, asked.images, asked.texts, small_surrogates().cuda(), SCHEDULE, loss)
    assert oracle.asked == 24 and all(part.is_cuda for part in box.answers)
    for each in (box, BlackBox.together([box, box])):
        for kind, search in {"images": AutoPGD(0.1, 2), "texts": WordFlips(1)}.items():
            queries = {"images": asked.images, "texts": asked.texts}[kind].cuda()
            assert each.attacked(kind, queries, search).images.shape == queries.shape


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
