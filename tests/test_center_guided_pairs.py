"""Adversarial training of both branches: prices against centers by hand, attacks from the center, and what is known."""

import pytest
import torch
from torch import Tensor, nn

from robret_lib.attacks import PGD
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.cross_modal import DCMH, CenterGuidedPairs, Pairs
from robret_lib.hashing import KnownCodes
from tests.test_dcmh import BATCHES
from tests.test_pairs_objective import BITS, batch_of, outputs_of, seeded, small_model, some_pairs

INNER = PGD(0.1, 0.04, 3, random_start=True), WordFlips(3, tried=1)


class Nothing(nn.Module):
    """A loss of clean pairs that is 0."""

    def forward(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        return sum(each.sum() for each in pairs.outputs) * 0.0


class Noted:
    """A search whose calls are kept: what it was given, what it made of it, and the losses of both."""

    def __init__(self, search) -> None:
        self.search, self.calls = search, []

    def __call__(self, model, images, loss_fn, generator=None):
        moved = self.search(model, images, loss_fn, generator)
        was = model.training
        model.eval()
        with torch.no_grad():
            self.calls.append((images, moved, loss_fn(model(images)), loss_fn(model(moved))))
        model.train(was)
        return moved


def shifted(by: float):
    """A search that looks at nothing."""
    return lambda model, images, loss_fn, generator=None: images + by


def first_codes(size: int, seed: int) -> Tensor:
    return 2.0 * torch.randint(0, 2, (size, BITS), generator=seeded(seed)) - 1


def known_of(labels: Tensor, codes: Tensor) -> KnownCodes:
    known = KnownCodes(labels, codes.shape[1])
    known.fill(codes)
    return known


def guided(clean: nn.Module, searches=INNER, weight: float = 1.0, seeds=(6, 7)) -> CenterGuidedPairs:
    labels = some_pairs()[0].labels
    known = [known_of(labels, first_codes(len(labels), seed)) for seed in seeds]
    return CenterGuidedPairs(clean, *searches, *known, weight)


def slow_center(label: Tensor, codes: Tensor, labels: Tensor) -> Tensor:
    """The sign of the mean code of those who share a label, less the mean of the others; a draw is +1."""
    own = [code for code, theirs in zip(codes, labels, strict=True) if (label * theirs).sum() > 0]
    others = [code for code, theirs in zip(codes, labels, strict=True) if not (label * theirs).sum() > 0]
    votes = (sum(own) / len(own) if own else 0) - (sum(others) / len(others) if others else 0)
    return torch.tensor([-1.0 if vote < -1e-9 else 1.0 for vote in votes])


def slow_price(outputs: Tensor, centers: list[Tensor]) -> Tensor:
    """``-mean_k tanh(f_k) c_k``, the mean of a batch."""
    prices = [
        -sum(torch.tanh(f) * c for f, c in zip(output, center, strict=True)) / len(center)
        for output, center in zip(outputs, centers, strict=True)
    ]
    return sum(prices) / len(prices)


# The loss


def test_the_price_of_two_items_by_hand():
    """Of two classes and two bits; an image is led to the center of texts, and a text to that of images."""
    labels, rows = torch.eye(2, dtype=torch.uint8), torch.arange(2)
    of_images, of_texts = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[-1.0, -1.0], [-1.0, 1.0]])
    searches = shifted(1.0), shifted(2.0)
    loss = CenterGuidedPairs(Nothing(), *searches, known_of(labels, of_images), known_of(labels, of_texts))
    outputs = torch.tensor([[0.5, -1.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [-3.0, 0.5]])
    found = loss(outputs_of(*outputs, labels, rows), seeded())
    images, texts = (torch.tanh(each + by) for each, by in zip(outputs, (1.0, 2.0), strict=True))
    # among texts the first bit is a draw, which is +1; among images the second is
    of_image_items = -(images[0, 0] - images[0, 1] + images[1, 0] + images[1, 1]) / 4
    of_text_items = -(texts[0, 0] + texts[0, 1] - texts[1, 0] + texts[1, 1]) / 4
    torch.testing.assert_close(found, of_image_items + of_text_items)


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_is_the_slow_one(weight, dropout):
    """Of two batches one after the other, with the gradients of all weights and the codes that are known then.

    Centers are those of codes as they were before the batch, some of which an earlier batch has made anew.
    """
    (split, _), model = some_pairs(), small_model(dropout=dropout).double()
    searches = [Noted(search) for search in INNER]
    loss = guided(DCMH(split.labels, BITS).double(), searches, weight)
    clean, known = DCMH(split.labels, BITS).double(), [first_codes(len(split), seed) for seed in (6, 7)]
    for rows in BATCHES:
        torch.manual_seed(7)
        found = loss(batch_of(model, rows), seeded())
        torch.manual_seed(7)
        pairs = batch_of(model, rows)
        outputs, of_other = pairs.outputs, [torch.where(codes < 0, -1.0, 1.0) for codes in reversed(known)]
        centers = [[slow_center(label, codes, split.labels) for label in pairs.labels] for codes in of_other]
        moved = [search.calls[-1][1] for search in searches]
        cost = slow_price(model.images(moved[0]), centers[0]) + slow_price(model.texts(moved[1]), centers[1])
        expected = clean(pairs, seeded()) + weight * cost
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        slopes = (torch.autograd.grad(each, list(model.parameters())) for each in (found, expected))
        torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-12)
        for codes, output, memory in zip(known, outputs, (loss.known_images, loss.known_texts), strict=True):
            codes[rows] = torch.tanh(output.detach()).float()
            torch.testing.assert_close(memory.codes, codes)


def test_without_weight_it_is_the_loss_of_clean_pairs():
    (split, _), model, rows = some_pairs(), small_model(dropout=0.0).double(), BATCHES[0]
    slopes = []
    for loss in (guided(DCMH(split.labels, BITS).double(), weight=0.0), DCMH(split.labels, BITS).double()):
        found = loss(batch_of(model, rows), seeded())
        slopes.append((found.detach(), *torch.autograd.grad(found, list(model.parameters()))))
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=0)


def test_in_evaluation_mode_nothing_is_kept():
    loss = guided(Nothing()).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    assert loss(batch_of(small_model(), BATCHES[0]), seeded()).isfinite()
    assert len(before) == 6 and all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


# The attacks inside


def test_attacked_images_and_texts_agree_less_with_the_center():
    """Within their budgets; and no text is less than a bag of words."""
    searches, model = [Noted(search) for search in INNER], small_model()
    loss = guided(Nothing(), searches)
    for rows in BATCHES:
        loss(batch_of(model, rows), seeded())
    (images, texts) = (search.calls for search in searches)
    assert len(images) == len(texts) == 2
    for given, moved, before, after in texts:
        assert ((moved == 0) | (moved == 1)).all() and ((moved != given).flatten(1).sum(1) <= 3).all()
        assert (after <= before + 1e-6).all() and after.mean() < before.mean() - 0.05
    for given, moved, before, after in images:
        assert ((moved - given).abs() <= 0.1 + 1e-6).all() and moved.aminmax().min >= 0 and moved.aminmax().max <= 1
        assert after.mean() < before.mean() - 0.01 and (after < before).float().mean() > 0.5


def test_what_an_attack_makes_small_is_the_agreement_with_codes_of_the_other_kind():
    """Where all known texts are one code, images are drawn from it, whatever their labels."""
    split, model = some_pairs()[0], small_model()
    searches = [Noted(shifted(0.0)) for _ in range(2)]
    codes = [first_codes(1, seed).expand(len(split), BITS) for seed in (1, 2)]
    everyone = torch.ones_like(split.labels)
    loss = CenterGuidedPairs(Nothing(), *searches, *(known_of(everyone, each) for each in codes))
    pairs = batch_of(model, torch.arange(5))
    loss(Pairs(pairs.model, pairs.images, pairs.bags, everyone[:5], pairs.rows), seeded())
    model.eval()
    for branch, search, center in zip((model.images, model.texts), searches, reversed(codes), strict=True):
        given, _, before, _ = search.calls[0]
        torch.testing.assert_close(before, (torch.tanh(branch(given)) * center[:1]).mean(1))


def test_the_same_generator_draws_the_same_attacks():
    first, again, other = (
        guided(Nothing())(batch_of(small_model(dropout=0.0), BATCHES[0]), seeded(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_networks_are_left_in_the_mode_and_with_the_gradients_they_had():
    model = small_model()
    guided(Nothing())(batch_of(model, BATCHES[0]), seeded())
    assert all(part.training for part in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


# What is refused


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("other", "said"), [(PGD, "the class PGD"), (0.1, "0.1"), (None, "None")])
def test_anything_but_a_search_is_refused(place, other, said):
    searches = [*INNER]
    searches[place] = other
    with pytest.raises(TypeError, match=f"CenterGuidedPairs with {said}: expected a search, such as PGD"):
        guided(Nothing(), searches)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), None])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight={weight}: expected a finite number of at least 0"):
        guided(Nothing(), weight=weight)


def test_centers_want_codes_that_are_known():
    labels = some_pairs()[0].labels
    loss = CenterGuidedPairs(Nothing(), *INNER, *(KnownCodes(labels, BITS) for _ in range(2)))
    with pytest.raises(ValueError, match=r"train codes of shape \(0, 8\): expected \[N, bits\]"):
        loss(batch_of(small_model(), BATCHES[0]), seeded())


def test_texts_that_are_no_bags_of_words_are_refused():
    pairs = batch_of(small_model(), BATCHES[0])
    halved = Pairs(pairs.model, pairs.images, pairs.bags / 2, pairs.labels, pairs.rows)
    with pytest.raises(ValueError, match="entries other than 0 and 1: expected bags of words"):
        guided(Nothing())(halved, seeded())
