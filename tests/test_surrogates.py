"""Surrogates: their loss against a slow loop, what they begin with, a trunk that is seen once, and codes learned."""

import copy

import pytest
import torch
from torch import nn

from robret_lib import training
from robret_lib.cross_modal import (
    Answers,
    ImagesAndTexts,
    ImageTextModel,
    SurrogateTriplets,
    cross_modal_triplets,
    encoder,
    learned,
    text_model,
)
from robret_lib.cross_modal.networks import SmallHead
from robret_lib.cross_modal.objective import Pairs
from robret_lib.cross_modal.surrogates import OfAnswers
from robret_lib.data import Split
from robret_lib.models import HashModel
from robret_lib.training import Schedule
from tests.small_cross_modal import (
    BITS,
    PIXELS,
    WORDS,
    answers_of,
    random_codes,
    seeded,
    small_networks,
    some_pairs,
    trained_networks,
)

COUNT = 24


@pytest.fixture(scope="module")
def answers():
    """Of no network: codes by chance."""
    asked = some_pairs(COUNT, seed=3)
    return Answers(asked.images, asked.texts, random_codes(COUNT, seed=1), random_codes(COUNT, seed=2))


@pytest.fixture(scope="module")
def engine():
    return trained_networks()


def relaxed(count, seed):
    return torch.tanh(torch.randn(count, BITS, generator=seeded(seed), dtype=torch.float64))


def slow_loss(codes, answered, others, triplets, beta, weight, regress):
    """``sum max(0, D(a, p) - D(a, n) + beta) + lambda sum ||h - b||^2`` over the size of the batch, bit by bit."""
    total = 0.0
    for anchor, positive, negative in zip(*(part.tolist() for part in triplets), strict=True):
        to = [
            (BITS - sum(codes[anchor, bit].item() * others[item, bit].item() for bit in range(BITS))) / 2
            for item in (positive, negative)
        ]
        total += max(0.0, to[0] - to[1] + beta)
    for code, told in zip(codes.tolist(), answered.tolist(), strict=True):
        for bit, bit_told in zip(code, told, strict=True):
            target = bit_told if regress == "answers" else (1 if bit > 0 else -1)
            total += weight * (bit - target) ** 2
    return total / len(codes)


@pytest.mark.parametrize("choice", ["ordered", "extreme"])
@pytest.mark.parametrize("regress", ["answers", "signs"])
@pytest.mark.parametrize(("margin", "weight"), [(1 / 8, 0.1), (0.5, 1.0), (0.0, 0.0)])
def test_the_loss_is_the_slow_one(answers, margin, weight, regress, choice):
    loss = SurrogateTriplets(answers, margin, weight, regress, choice)
    codes, others = relaxed(7, seed=5), relaxed(COUNT, seed=6)
    given = answers.image_codes[:7], others, answers.text_codes
    triplets = cross_modal_triplets(answers.image_codes[:7], answers.text_codes, choice, seeded(9))
    expected = slow_loss(codes, answers.image_codes[:7], others, triplets, margin * BITS, weight, regress)
    assert loss.of_kind(codes, *given, seeded(9)).item() == pytest.approx(expected, abs=1e-12)
    assert len(triplets.anchors) == 7 and expected > 0


@pytest.mark.parametrize("regress", ["answers", "signs"])
def test_the_loss_has_the_right_slope(answers, regress):
    loss, codes = SurrogateTriplets(answers, regress=regress), relaxed(5, seed=5).requires_grad_()
    given = answers.image_codes[:5], relaxed(COUNT, seed=6), answers.text_codes
    assert torch.autograd.gradcheck(lambda moved: loss.of_kind(moved, *given, seeded(9)), codes)


@pytest.mark.parametrize("regress", ["answers", "signs"])
def test_images_are_compared_with_texts_and_texts_with_images(answers, regress):
    """Of the other kind is known what the batch says now, and what was said before of the others."""
    model, rows = small_networks(), torch.tensor([3, 20, 0, 11, 7])
    loss = SurrogateTriplets(answers, regress=regress)
    pairs = Pairs(model, answers.images[rows], answers.bags[rows], torch.zeros(5, 2), rows)
    images, texts = (torch.tanh(outputs).detach() for outputs in pairs.outputs)
    known_images, known_texts = answers.image_codes.float(), answers.text_codes.float()
    known_images[rows], known_texts[rows] = images, texts

    generator, expected = seeded(4), 0.0
    ways = (
        (images, answers.image_codes, known_texts, answers.text_codes),
        (texts, answers.text_codes, known_images, answers.image_codes),
    )
    for codes, answered, others, others_answered in ways:
        triplets = cross_modal_triplets(answered[rows], others_answered, "ordered", generator)
        expected += slow_loss(codes, answered[rows], others, triplets, BITS / 8, 0.1, regress)
    assert loss(pairs, seeded(4)).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(loss.images.codes, known_images) and torch.equal(loss.texts.codes, known_texts)


def test_nothing_flows_back_through_what_is_remembered(answers):
    """Of a batch, the codes of the other kind are constants: with images frozen, texts learn by their own half."""
    gradients = []
    for halves in (1, 2):
        loss, model = SurrogateTriplets(answers), small_networks()
        pairs = Pairs(model, answers.images, answers.bags, torch.zeros(COUNT, 2), torch.arange(COUNT))
        if halves == 1:
            model.images.requires_grad_(False)
        loss(pairs, seeded(4)).backward()
        gradients.append([weight.grad for weight in model.texts.parameters()])
    assert all(torch.equal(*each) for each in zip(*gradients, strict=True))


def test_before_anything_is_learned_known_are_the_answered_codes(answers):
    loss = SurrogateTriplets(answers)
    for memory, codes in ((loss.images, answers.image_codes), (loss.texts, answers.text_codes)):
        assert torch.equal(memory.codes, codes.float()) and memory.seen.all()


def test_surrogates_that_say_what_was_answered_pay_nothing_but_for_the_margin(answers):
    """Near their positives; one eighth of the bits is the least that a clear negative is farther."""
    loss, codes = SurrogateTriplets(answers), answers.image_codes.double()
    given = answers.image_codes, answers.text_codes.double(), answers.text_codes
    triplets = cross_modal_triplets(answers.image_codes, answers.text_codes, "ordered", seeded(9))
    farther = ((codes[triplets.anchors] * given[1][triplets.positives]).sum(1) / 2) - (
        (codes[triplets.anchors] * given[1][triplets.negatives]).sum(1) / 2
    )
    assert (farther >= BITS / 8).all()
    assert loss.of_kind(codes, *given, seeded(9)) == 0
    assert loss.of_kind(-codes, *given, seeded(9)) > BITS / 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"margin": -0.1}, "margin=-0.1: expected a finite number of at least 0"),
        ({"quantization": float("nan")}, "quantization=nan"),
        ({"regress": "codes"}, "regress='codes': expected one of"),
    ],
)
def test_impossible_fields_are_refused(answers, fields, message):
    with pytest.raises(ValueError, match=message):
        SurrogateTriplets(answers, **fields)


def test_it_takes_codes_of_at_least_two_pairs(answers):
    with pytest.raises(ValueError, match="expected binary codes"):
        SurrogateTriplets(Answers(*answers[:3], answers.text_codes.float() / 2))
    with pytest.raises(ValueError, match="expected at least two pairs"):
        SurrogateTriplets(Answers(*(part[:1] for part in answers)))


def test_a_loss_of_answers_says_what_it_is_of_one_kind(answers):
    model = small_networks()
    pairs = Pairs(model, answers.images, answers.bags, torch.zeros(COUNT, 2), torch.arange(COUNT))
    with pytest.raises(NotImplementedError):
        OfAnswers(answers)(pairs, seeded())


# --- learning --------------------------------------------------------------------------------------


def with_trunk(seed=0):
    """Images through a normalization, a trunk with what differs in training, and a head; in float64."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Tanh())
    head = nn.Sequential(nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, BITS))
    images = HashModel(SmallHead(trunk, head), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return ImageTextModel(images, text_model(WORDS, BITS, (12,))).double()


@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
def test_a_trunk_that_is_seen_once_teaches_the_same(answers, stored):
    """As the training of the whole network, whose trunk sees each batch."""
    images = (255 * answers.images).round().to(torch.uint8) if stored == torch.uint8 else answers.images
    given, schedule = Answers(images, *answers[1:]), Schedule(30, batch=10, lr=1e-2)
    short, whole = with_trunk(), with_trunk()
    before, trunk = copy.deepcopy(short.state_dict()), "images.backbone.trunk"
    seen = []
    short.images.backbone.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    assert learned(short, SurrogateTriplets(given), given, schedule) is short

    labels = torch.zeros(COUNT, 2, dtype=torch.uint8)
    objective = ImagesAndTexts(SurrogateTriplets(given), given.bags, labels)
    training.train(whole, Split(images, labels), objective, schedule)
    assert sum(seen) == COUNT
    for name, weight in short.state_dict().items():
        assert torch.allclose(weight, whole.state_dict()[name], atol=1e-6), name
        assert torch.equal(weight, before[name]) == (trunk in name or "normalization" in name), name
    assert not any(part.training for part in short.modules())


def test_what_is_learned_is_a_function_of_answers_weights_and_schedule(answers):
    found = []
    for seed in (0, 0, 1):
        surrogates = learned(
            small_networks(), SurrogateTriplets(answers), answers, Schedule(10, batch=8, lr=1e-2, seed=seed)
        )
        found.append(torch.cat([weight.flatten() for weight in surrogates.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def agreement(networks, engine, asked):
    """Shares of the bits of images and of texts on which two agree."""
    pairs = zip(encoder(networks)(*asked[:2]), encoder(engine)(*asked[:2]), strict=True)
    return torch.tensor([(found == told).double().mean() for found, told in pairs])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_surrogates_learn_the_codes_of_the_engine(engine, seed):
    """Of pairs that it was never asked for: far more bits than its most frequent value of each bit would get right."""
    answers, strangers = answers_of(engine, 60), some_pairs(100, seed=5)
    surrogates = small_networks(seed)
    before = agreement(surrogates, engine, strangers)
    learned(surrogates, SurrogateTriplets(answers), answers, Schedule(200, batch=20, lr=5e-3))
    usual = [torch.where(codes.float().mean(0) >= 0, 1, -1) for codes in answers[2:]]
    told = encoder(engine)(*strangers[:2])
    chance = torch.tensor([(codes == value).double().mean() for codes, value in zip(told, usual, strict=True)])
    found = agreement(surrogates, engine, strangers)
    assert (found > 0.8).all() and (found > chance + 0.1).all() and (found > before + 0.2).all()


def trained_with(answers, seed, **fields):
    surrogates = small_networks(seed)
    return learned(surrogates, SurrogateTriplets(answers, **fields), answers, Schedule(200, batch=20, lr=5e-3))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_drawn_to_their_own_signs_surrogates_collapse_and_to_answers_they_do_not(engine, seed):
    """Unless they are drawn so little that nothing holds them where they are; then they learn less."""
    answers, strangers = answers_of(engine, 60), some_pairs(100, seed=5)
    drawn_to_signs = trained_with(answers, seed, regress="signs")
    little = trained_with(answers, seed, regress="signs", quantization=1e-3)
    drawn_to_answers = trained_with(answers, seed)
    for collapsed, free, own in zip(
        *(encoder(networks)(*strangers[:2]) for networks in (drawn_to_signs, little, drawn_to_answers)), strict=True
    ):
        assert len(collapsed.unique(dim=0)) <= 2
        assert min(len(codes.unique(dim=0)) for codes in (free, own)) > 15
    assert (agreement(drawn_to_answers, engine, strangers) > agreement(little, engine, strangers) + 0.1).all()
