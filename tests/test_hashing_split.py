"""The split of papers on hashing, labels as zeros and ones, and the middle of images that are searched."""

from dataclasses import replace

import pytest
import torch

from robret_lib import data
from robret_lib.data import DataError, Protocol, RetrievalData, Split

CLASSES = 3
ITSELF = Protocol("itself", "Test images search themselves.", self_excluded=True, class_disjoint=False)


def numbered(each: int, start: int) -> Split:
    """So many images of each class, in turn; the pixel of an image is its number, from ``start`` on."""
    numbers = start + torch.arange(CLASSES * each)
    return Split(numbers.to(torch.uint8).view(-1, 1, 1, 1), torch.arange(len(numbers)) % CLASSES)


@pytest.fixture
def dataset() -> RetrievalData:
    """Twenty images of each class to train on, numbers from 0; ten to search, from 100."""
    test = numbered(10, 100)
    return RetrievalData("toy", numbered(20, 0), test, test, tuple("abc"), ITSELF)


def numbers(split: Split) -> list[int]:
    return split.images.flatten().tolist()


def counts(split: Split) -> list[int]:
    return split.labels.bincount().tolist()


def test_each_class_gives_so_many_of_the_first(dataset):
    found = data.hashing_split(dataset, trained=5, queries=4, searched=7)
    assert (counts(found.train), counts(found.query), counts(found.gallery)) == ([5] * 3, [4] * 3, [7] * 3)
    assert numbers(found.train) == list(range(15))
    assert sorted(numbers(found.gallery)) == list(range(21))
    assert sorted(numbers(found.query)) == list(range(100, 112))
    for split in (found.train, found.query, found.gallery):
        assert torch.equal((split.images.flatten().long() - 100 * (split is found.query)) % 3, split.labels)


def test_what_is_trained_on_is_searched_and_queries_come_from_outside(dataset):
    for searched in (5, 7, None):
        found = data.hashing_split(dataset, trained=5, queries=4, searched=searched)
        assert set(numbers(found.train)) <= set(numbers(found.gallery))
        assert not set(numbers(found.query)) & set(numbers(found.gallery))
    assert sorted(numbers(found.gallery)) == list(range(60))


def test_as_published_500_train_and_100_ask():
    train, test = (Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.arange(n) % 2) for n in (1_200, 300))
    found = data.hashing_split(RetrievalData("toy", train, test, test, tuple("ab"), ITSELF))
    assert (len(found.train), len(found.query), len(found.gallery)) == (1_000, 200, 1_200)


def test_the_protocol_says_who_searches_what(dataset):
    found = data.hashing_split(dataset, trained=5, queries=4, searched=7)
    assert found.protocol == Protocol(
        "hashing split",
        "12 queries search 21 other images, among them the 15 that were trained on.",
        self_excluded=False,
        class_disjoint=False,
    )
    assert (found.name, found.class_names) == ("toy", tuple("abc"))
    large = replace(dataset, query=dataset.train, gallery=dataset.train)
    assert "60 other images, among them the 60" in data.hashing_split(large, 20, 20).protocol.description


def test_what_is_searched_is_mixed_and_always_in_the_same_order(dataset):
    found, again = (data.hashing_split(dataset, 5, 4, 7) for _ in range(2))
    for role in ("train", "query", "gallery"):
        assert numbers(getattr(found, role)) == numbers(getattr(again, role))
    for split in (found.query, found.gallery):
        assert numbers(split) != sorted(numbers(split))
    plain = replace(found, query=_sorted(found.query), gallery=_sorted(found.gallery))
    assert numbers(data.mixed(plain).query) == numbers(found.query)


def _sorted(split: Split) -> Split:
    order = split.images.flatten().argsort()
    return Split(split.images[order], split.labels[order])


def test_the_data_set_that_was_given_stays_as_it_was(dataset):
    before = [numbers(split) for split in (dataset.train, dataset.query)]
    data.hashing_split(dataset, 5, 4, 7).train.images.zero_()
    assert [numbers(split) for split in (dataset.train, dataset.query)] == before


def without(split: Split, label: int) -> Split:
    return Split(split.images[split.labels != label], split.labels[split.labels != label])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"trained": 21}, "class 0 has 20 images of train: expected at least 21"),
        ({"queries": 11}, "class 0 has 10 images of query: expected at least 11"),
        ({"searched": 21}, "class 0 has 20 images of train: expected at least 21"),
        ({"searched": 4}, "searched=4, trained=5 of a class: expected at least as many searched"),
        ({"trained": 0}, "trained=0: expected a whole number of at least 1"),
        ({"queries": -1}, "queries=-1: expected a whole number of at least 1"),
        ({"queries": 2.5}, "queries=2.5: expected a whole number of at least 1"),
    ],
)
def test_more_than_there_are_or_none_is_refused(dataset, asked, message):
    with pytest.raises(ValueError, match=message):
        data.hashing_split(dataset, **({"trained": 5, "queries": 4} | asked))


@pytest.mark.parametrize("role", ["train", "query"])
def test_a_class_without_images_is_refused(dataset, role):
    """It would be searched for in vain, or never asked for, and no table would tell."""
    test = without(dataset.query, 1) if role == "query" else dataset.query
    train = without(dataset.train, 1) if role == "train" else dataset.train
    with pytest.raises(DataError, match=f"class 1 has 0 images of {role}: expected at least"):
        data.hashing_split(replace(dataset, train=train, query=test, gallery=test), 5, 4)


def test_images_with_several_labels_have_no_such_split(dataset):
    several = [Split(split.images, data.multi_hot(split.labels, 3)) for split in (dataset.train, dataset.query)]
    hot = replace(dataset, train=several[0], query=several[1], gallery=several[1])
    with pytest.raises(DataError, match=r"toy: labels of shape \(60, 3\): expected one class an image"):
        data.hashing_split(hot, 5, 4)


# Zeros and ones


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.uint8, torch.float32])
def test_class_numbers_become_zeros_and_ones(kind):
    found = data.multi_hot(torch.tensor([2, 0], dtype=kind), 4)
    assert found.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]] and found.dtype == torch.uint8


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.uint8, torch.float32])
def test_zeros_and_ones_stay_what_they_are(kind):
    hot = torch.tensor([[0, 1], [0, 0], [1, 1]])
    found = data.multi_hot(hot.to(kind), 2)
    assert torch.equal(found, hot.to(torch.uint8)) and found.dtype == torch.uint8


def test_both_kinds_of_labels_answer_the_same_queries():
    labels = torch.arange(12) % 5
    hot = data.multi_hot(labels, 5)
    assert torch.equal(data.relevance(hot, hot), data.relevance(labels, labels))


def test_no_labels_are_none_of_any_class():
    assert data.multi_hot(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), "labels 0 to 4: expected 4 classes, from 0"),
        (torch.tensor([-1, 2]), "labels -1 to 2: expected 4 classes, from 0"),
        (torch.eye(3), r"labels of shape \(3, 3\): expected 4 classes"),
        (torch.zeros(3, 1), r"labels of shape \(3, 1\): expected whole numbers"),
        (2 * torch.eye(4), "other values than 0 and 1"),
        (torch.tensor([0.5, 1]), "2 labels with fractions"),
    ],
)
def test_other_labels_become_nothing(labels, message):
    with pytest.raises(DataError, match=message):
        data.multi_hot(labels, 4)


# The middle


@pytest.mark.parametrize(("shape", "size", "top", "left"), [((8, 8), 4, 2, 2), ((9, 8), 4, 2, 2), ((11, 9), 4, 4, 2)])
def test_the_middle_of_images_is_a_view_of_them(shape, size, top, left):
    """Halves of a pixel are rounded to even numbers: 2.5 to 2, 3.5 to 4."""
    images = torch.arange(2 * shape[0] * shape[1]).view(2, 1, *shape).to(torch.uint8)
    split = Split(images, torch.arange(2), texts=("a", "b"))
    found = data.center_crop(split, size)
    assert torch.equal(found.images, images[:, :, top : top + size, left : left + size])
    assert found.images.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    assert torch.equal(found.labels, split.labels) and found.texts == ("a", "b")


def test_whole_images_are_their_own_middle():
    split = numbered(2, 0)
    assert torch.equal(data.center_crop(split, 1).images, split.images)
    with pytest.raises(DataError, match="size=2 of images of 1 x 1 pixels: expected 1 to 1"):
        data.center_crop(split, 2)
