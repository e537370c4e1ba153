"""SSAH: its loss pair by pair, what each network learns from it, and discriminators that are deceived."""

from collections import Counter
from math import exp, log

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from robret_lib.cross_modal import SSAH, ImageTextModel, NeighboringWords, Semantic, ssah
from robret_lib.models import HashModel
from robret_lib.training import Schedule
from tests.test_dcmh import BATCHES, product
from tests.test_pairs_objective import (
    BITS,
    CLASSES,
    FEATURE,
    WORDS,
    assert_learns,
    batch_of,
    seeded,
    semantic_model,
    small_model,
    some_pairs,
)

FORMS = ["likelihood", "squared"]
MODES = ["fixed", "reference"]
in_both_forms = pytest.mark.parametrize("pairwise", FORMS)


def an_ssah(pairwise: str = "likelihood", hidden: int = 16, mode: str = "fixed") -> SSAH:
    torch.manual_seed(2)
    return SSAH(some_pairs()[0].labels, BITS, pairwise, FEATURE, hidden, mode).double()


def given(loss: SSAH, model: ImageTextModel, rows: Tensor, seed: int = 7) -> Tensor:
    """The loss of a batch."""
    torch.manual_seed(seed)  # of dropout
    return loss(batch_of(model, rows), seeded())


# The loss


def slow_price(theta: Tensor, similar: bool, pairwise: str) -> Tensor:
    if pairwise == "likelihood":
        return torch.log(1 + torch.exp(theta)) - similar * theta
    return (torch.log(1 + torch.exp(theta)) - 0.999 * similar * theta) ** 2 / 2


def slow_loss(loss: SSAH, model: ImageTextModel, rows: Tensor, known: tuple[dict, dict], seed: int = 7):
    """What the networks do well, and what the discriminators get wrong, each over the number of pairs.

    ``known`` are features and codes of the network of labels by row, which are those of the batch then.
    """
    torch.manual_seed(seed)
    pairs, hot = batch_of(model, rows), some_pairs()[0].labels.double()
    found = [
        loss.of_labels.everything(hot[rows]),
        model.images.backbone.everything(pairs.images),
        model.texts.backbone.everything(pairs.bags),
    ]
    features, codes = [each[0] for each in found], [torch.tanh(each[1]) for each in found]
    told = [torch.sigmoid(each[2]) for each in found]
    rows = rows.tolist()
    for kept, mine in zip(known, (features[0], codes[0]), strict=True):
        kept |= {row: part.detach().clone() for row, part in zip(rows, mine, strict=True)}

    def alike(row, other):
        return bool((hot[row] * hot[other]).sum() > 0)

    count_of = Counter(alike(row, other) for row in rows for other in known[0])
    good = 0
    for kind in range(3):
        for i, row in enumerate(rows):
            for kept, mine in zip(known, (features[kind][i], codes[kind][i]), strict=True):
                for other, theirs in kept.items():
                    similar = alike(row, other)
                    weight = len(rows) * len(kept) / (2 * count_of[similar]) if loss.mode == "fixed" else 1
                    good = good + weight * slow_price(product(mine, theirs) / 2, similar, loss.pairwise)
            for k in range(BITS):
                goal = torch.sign(codes[0][i, k] + codes[1][i, k] + codes[2][i, k]).item()
                good = good + (goal - codes[kind][i, k]) ** 2
            for c in range(CLASSES):
                good = good + (hot[row, c] - told[kind][i, c]) ** 2
    wrong = 0
    for discriminator, kind in zip(loss.discriminators, (1, 2), strict=True):
        says = discriminator(torch.cat([features[kind], features[0].detach()]))[:, 0]
        for place, logit in enumerate(says):
            wrong = wrong - logsigmoid(logit if place >= len(rows) else -logit)
    count = len(rows) * len(known[0])
    return good / count, wrong / count


@in_both_forms
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_is_the_slow_one(pairwise, mode, dropout):
    """Of two batches one after the other, with what every network learns from it.

    The discriminators are to be wrong less often, the networks of images and texts want them to be wrong more often,
    and the network of labels does not care.
    """
    loss, model, known = an_ssah(pairwise, mode=mode), semantic_model(dropout=dropout).double(), ({}, {})
    labels, discriminators = list(loss.of_labels.parameters()), list(loss.discriminators.parameters())
    networks = list(model.parameters())
    for rows in BATCHES:
        good, wrong = slow_loss(loss, model, rows, known)
        expected = (
            *torch.autograd.grad(good, labels, retain_graph=True),
            *torch.autograd.grad(wrong, discriminators, retain_graph=True),
            *torch.autograd.grad(good - wrong, networks),
        )
        found = given(loss, model, rows)
        torch.testing.assert_close(found, good + wrong, rtol=1e-9, atol=1e-12)
        slopes = torch.autograd.grad(found, labels + discriminators + networks)
        torch.testing.assert_close(slopes, expected, rtol=1e-7, atol=1e-12)
        assert all(slope.abs().sum() > 0 for slope in slopes[len(labels) :][: len(discriminators)])
        for memory, codes in zip((loss.known_features, loss.known_codes), known, strict=True):
            assert memory.seen.nonzero().flatten().tolist() == sorted(codes)
            torch.testing.assert_close(memory.codes[sorted(codes)], torch.stack([codes[row] for row in sorted(codes)]))


def test_half_a_square_by_hand():
    """With S of 0.999, as in the authors' code."""
    logits, similar = torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 1.0]).double()
    expected = [(log(1 + exp(2)) - 1.998) ** 2 / 2, log(1 + exp(2)) ** 2 / 2, (log(1 + exp(-1)) + 0.999) ** 2 / 2]
    assert ssah.squared(logits, similar).tolist() == pytest.approx(expected)


@in_both_forms
def test_features_of_any_size_are_safe(pairwise):
    loss, model = an_ssah(pairwise), semantic_model(dropout=0.0).double()
    with torch.no_grad():
        for network in (loss.of_labels, model.images.backbone, model.texts.backbone):
            network.feature[1].weight.mul_(1e4)
    assert given(loss, model, BATCHES[0]).isfinite()


# Who learns what


def test_the_identity_whose_gradient_has_the_other_sign():
    inputs = torch.tensor([1.0, -2.0], requires_grad=True)
    outputs = ssah.Reversed.apply(inputs)
    assert torch.equal(outputs, inputs)
    (slope,) = torch.autograd.grad((outputs * torch.tensor([3.0, 5.0])).sum(), inputs)
    assert slope.tolist() == [-3, -5]


def wrong_of(loss: SSAH, model: ImageTextModel, rows: Tensor) -> Tensor:
    return slow_loss(loss.eval(), model.eval(), rows, ({}, {}))[1].detach()


@pytest.mark.parametrize("learning", ["discriminators", "networks"])
def test_a_step_of_discriminators_makes_them_better_and_one_of_networks_worse(learning):
    """Here that is all there is to learn, since whatever else a network wants has no say."""
    loss, model, rows = an_ssah().eval(), semantic_model().double().eval(), torch.arange(8)
    before = wrong_of(loss, model, rows)
    features = [model.images.backbone.feature, model.texts.backbone.feature]
    learned = loss.discriminators if learning == "discriminators" else nn.ModuleList(features)
    slopes = torch.autograd.grad(only_told(loss, model, rows), list(learned.parameters()))
    with torch.no_grad():
        for weight, slope in zip(learned.parameters(), slopes, strict=True):
            weight -= 1e-3 * slope
    after = wrong_of(loss, model, rows)
    assert (after < before) if learning == "discriminators" else (after > before)


def only_told(loss: SSAH, model: ImageTextModel, rows: Tensor) -> Tensor:
    """The loss, less what the networks want besides."""
    return given(loss, model, rows) - slow_loss(loss, model, rows, ({}, {}))[0]


def test_a_batch_is_compared_with_what_the_network_of_labels_said_of_earlier_ones():
    model = semantic_model(dropout=0.0).double()
    alone, after_another = an_ssah().eval(), an_ssah()
    given(after_another, model, BATCHES[0])
    found = [given(each.eval(), model, BATCHES[1]) for each in (alone, after_another)]
    assert (found[0] - found[1]).abs() > 1e-6
    assert not after_another.known_codes.codes.requires_grad and not after_another.known_features.codes.requires_grad


def test_in_evaluation_mode_nothing_is_kept():
    loss, model = an_ssah(), semantic_model().double()
    given(loss, model, BATCHES[0])
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert given(loss.eval(), model, BATCHES[1]).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


# Networks


def test_the_networks_of_the_paper():
    loss = SSAH(torch.ones(3, 24), 16)
    sizes = {
        name: [(layer.in_features, layer.out_features) for layer in network.modules() if isinstance(layer, nn.Linear)]
        for name, network in (("labels", loss.of_labels), ("one", loss.discriminators[0]))
    }
    assert sizes == {
        "labels": [(24, 4096), (4096, 512), (512, 16), (512, 24)],
        "one": [(512, 512), (512, 256), (256, 1)],
    }
    assert len(loss.discriminators) == 2
    assert [type(layer).__name__ for layer in loss.discriminators[0]] == ["Linear", "ReLU"] * 2 + ["Linear"]


@pytest.mark.parametrize("plain", ["images", "texts"])
def test_networks_without_a_semantic_feature_are_refused(plain):
    model = semantic_model()
    setattr(model, plain, getattr(small_model(), plain))
    with pytest.raises(TypeError, match=r"a branch with a Sequential: expected networks\.Semantic for SSAH"):
        given(an_ssah().float(), model, BATCHES[0])


def test_images_are_normalized_before_they_are_looked_at():
    """As by the network itself."""
    model, rows = semantic_model(dropout=0.0).double(), torch.arange(4)
    shifted = HashModel(model.images.backbone, mean=(0.2,), std=(0.5,)).double()
    moved = ImageTextModel(HashModel(model.images.backbone), model.texts)
    pairs = batch_of(moved, rows)
    by_hand = type(pairs)(moved, (pairs.images - 0.2) / 0.5, pairs.bags, pairs.labels, rows)
    looked = batch_of(ImageTextModel(shifted, model.texts), rows)
    found = [an_ssah().eval()(each, seeded()) for each in (looked, by_hand)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_another_pairwise_form_is_refused():
    with pytest.raises(ValueError, match=r"pairwise='logistic': expected one of \('likelihood', 'squared'\)"):
        SSAH(torch.ones(3, 4), 8, "logistic")


def wide_model(bits: int) -> ImageTextModel:
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU())
    texts = Semantic(NeighboringWords(WORDS, 32), 32, bits, CLASSES, 32)
    return ImageTextModel(HashModel(Semantic(trunk, 32, bits, CLASSES, 32)), HashModel(texts))


@pytest.mark.parametrize(("pairwise", "by"), [("likelihood", 25), ("squared", 12)])
def test_images_and_texts_find_each_other(pairwise, by, bits=16):
    schedule = Schedule(300, batch=20, lr=3e-3)
    assert_learns(lambda labels: SSAH(labels, bits, pairwise, 32, 32), wide_model(bits), schedule, by)
