"""An engine of images and texts: what is found by what, how good it is, both ways, and what it refuses."""

import pytest
import torch
from torch import nn

from robret_lib.attacks import Gallery
from robret_lib.cross_modal import Asked, Engine, ImageTextModel
from robret_lib.data import DataError, Split
from robret_lib.data.bag_of_words import Vocabulary
from robret_lib.hamming import average_precisions, codes_of, hamming_distance
from robret_lib.models import HashModel
from tests.small_cross_modal import random_codes, small_engine, some_pairs

KINDS = ["images", "texts"]
SHAPES = {"images": (2, 2), "texts": (1, 4)}  # of four bits


class Pixels(nn.Module):
    """An output for each pixel or word, above 0 where it is above a half: any code is that of a query."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs):
        return inputs.flatten(1) - self.shift


def by_hand():
    """Of four bits, so that a query is its own code: three images and four texts are indexed."""
    model = ImageTextModel(HashModel(Pixels()), HashModel(Pixels()))
    images = torch.tensor([[1, 1, 1, 1], [1, 1, 1, -1], [-1, -1, -1, -1]])
    texts = torch.tensor([[1, 1, 1, 1], [-1, 1, 1, 1], [1, 1, -1, -1], [-1, -1, -1, -1]])
    image_labels, text_labels = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 0, 1])
    return Engine(model, Gallery(images.float(), "H", image_labels), Gallery(texts.float(), "H", text_labels))


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def test_worked_precisions_by_hand():
    """Image 1111 finds texts at 0, 1, 2 and 4 bits, of which the second and third are right: (1/2 + 2/3) / 2."""
    engine, query = by_hand(), torch.ones(1, 1, 2, 2)
    found = [engine.precisions(kind, query.view(1, 1, *shape), torch.tensor([0])) for kind, shape in SHAPES.items()]
    assert found[0].item() == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert found[1].item() == pytest.approx(100 * (1 + 2 / 3) / 2)  # images at 0, 1 and 4 bits, the first and third
    assert [part.dtype for part in found] == [torch.float64] * 2


@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_precisions_are_those_of_the_codes_of_the_other_kind(kind, top_k):
    """With codes of queries and of both indexes drawn by chance, so that a mistaken side would be seen."""
    model, labels = ImageTextModel(HashModel(Pixels()), HashModel(Pixels())), torch.arange(40) % 3
    indexed = {each: random_codes(count, 4, seed) for each, count, seed in (("images", 30, 1), ("texts", 40, 2))}
    engine = Engine(model, *(Gallery(codes.float(), "H", labels[: len(codes)]) for codes in indexed.values()))
    codes = random_codes(9, 4, seed=3)
    queries = ((1 + codes.float()) / 2).view(9, 1, *SHAPES[kind])
    other = {"images": "texts", "texts": "images"}[kind]
    expected = average_precisions(codes, indexed[other], labels[:9], labels[: len(indexed[other])], top_k)
    assert torch.equal(engine.precisions(kind, queries, labels[:9], top_k), 100 * expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_engine_finds_the_other_kind(engine, kind):
    """Far above what an order by chance would give."""
    asked = some_pairs(60, seed=9)
    found = engine.precisions(kind, getattr(asked, kind), asked.labels)
    share = (asked.labels @ engine.searched_by(kind).labels.T > 0).double().mean()
    assert found.mean() > 100 * share + 20 and found.min() >= 0 and found.max() <= 100


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_nearest_of_the_other_kind_in_the_order_of_the_index(engine, kind):
    queries = getattr(some_pairs(12, seed=9), kind)
    codes = codes_of(engine.branch(kind)(queries.double()))
    distances = hamming_distance(codes, engine.searched_by(kind).codes)
    assert torch.equal(engine.answers(kind, queries, 7), distances.long().sort(dim=1, stable=True).indices[:, :7])
    assert engine.answers(kind, queries).shape == (12, 5)


def test_each_kind_has_its_branch_and_is_searched_in_the_other(engine):
    assert engine.branch("images") is engine.model.images and engine.branch("texts") is engine.model.texts
    assert engine.searched_by("images") is engine.texts and engine.searched_by("texts") is engine.images


def test_an_index_holds_the_codes_of_images_and_of_texts(engine):
    indexed = some_pairs(200, seed=2)
    for gallery, branch, items in (
        (engine.images, engine.model.images, indexed.images),
        (engine.texts, engine.model.texts, indexed.texts),
    ):
        assert torch.equal(gallery.codes, codes_of(branch(items.double())))
        assert torch.equal(gallery.labels, indexed.labels) and not gallery.embeddings.requires_grad


def test_the_oracle_is_of_the_same_networks_and_has_the_budget(engine):
    asked, oracle = some_pairs(6, seed=4), engine.oracle(budget=6)
    answers = oracle(asked.images, asked.texts)
    for codes, branch, given in zip(answers[2:], KINDS, asked[:2], strict=True):
        assert torch.equal(codes, codes_of(engine.branch(branch)(given.double())))
    assert oracle.budget == 6 and engine.oracle().budget is None


@pytest.mark.parametrize("kind", ["image", "", None])
def test_another_kind_is_refused(engine, kind):
    asked = some_pairs(4, seed=4)
    for ask in (
        lambda: engine.branch(kind),
        lambda: engine.searched_by(kind),
        lambda: engine.precisions(kind, asked.images, asked.labels),
        lambda: engine.answers(kind, asked.images),
    ):
        with pytest.raises(ValueError, match=f"kind={kind!r}: expected one of"):
            ask()


def test_more_answers_than_there_are_items_are_refused(engine):
    with pytest.raises(ValueError, match="201 neighbors wanted .* in a gallery of 200"):
        engine.answers("images", some_pairs(1, seed=4).images, 201)


TEXTS = ("a red fish", "a blue bird", "red bird, red bird", "something else")


def test_what_is_asked_are_images_bags_and_labels_of_a_split():
    split = Split(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 1, 0]), TEXTS)
    vocabulary = Vocabulary(("bird", "blue", "red"))
    asked = Asked.of(split, vocabulary)
    assert torch.equal(asked.images, split.images) and torch.equal(asked.labels, split.labels)
    assert asked.texts.shape == (4, 1, 1, 3)
    assert asked.texts.flatten(1).tolist() == [[0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 0, 0]]
    first = Asked.of(split, vocabulary, 2)
    assert all(torch.equal(part, whole[:2]) for part, whole in zip(first, asked, strict=True))


def test_a_split_without_texts_is_refused():
    split = Split(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(DataError, match="a split without texts: expected one of a packed file with a 'text' member"):
        Asked.of(split, Vocabulary(("bird",)))
