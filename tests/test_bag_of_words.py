"""Texts as bags of words: which words there are, what a bag says of a text, and how two bags differ."""

import pytest
import torch

from robret_lib.attacks import Gallery
from robret_lib.cross_modal import text_model
from robret_lib.data import DataError
from robret_lib.data.bag_of_words import Rewording, Vocabulary

TEXTS = ("A Dog and a cat.", "the dog runs; the dog sleeps", "cat, dog & bird", "two birds")


def slow_counts(texts: tuple[str, ...]) -> dict[str, int]:
    """In how many texts of tags each is."""
    tags = {tag for text in texts for tag in text.lower().split()}
    return {tag: sum(tag in text.lower().split() for text in texts) for tag in tags}


# A vocabulary


def test_words_are_in_lower_case_and_in_order_and_frequent_english_ones_say_nothing():
    vocabulary = Vocabulary.of(TEXTS, 100)
    assert vocabulary.words == ("bird", "birds", "cat", "dog", "runs", "sleeps")
    assert len(vocabulary) == 6 and vocabulary.tokens == "words"


def test_of_more_words_those_stay_that_most_texts_have():
    """A word that is twice in one text counts once."""
    assert Vocabulary.of(TEXTS, 2).words == ("cat", "dog")
    texts = ("owl owl owl owl", "fox", "fox")
    assert Vocabulary.of(texts, 1).words == ("fox",)


def test_of_tags_every_one_counts():
    """Also what English, or a pattern for words, would leave out."""
    texts = ("the c++ new-york", "The x C++", "c++ !")
    assert set(Vocabulary.of(texts, 100, "tags").words) == {"the", "c++", "new-york", "x", "!"}
    assert set(Vocabulary.of(texts, 2, "tags").words) == {"c++", "the"}
    assert Vocabulary.of(("the", "c"), 5, "tags").words == ("c", "the")


def test_the_commonest_tags_are_those_of_a_slow_count():
    drawn = torch.randint(0, 12, (40, 6), generator=torch.Generator().manual_seed(0))
    texts = tuple(" ".join(f"t{min(tag, 30 - 2 * tag)}" for tag in row) for row in drawn.tolist())
    counts = slow_counts(texts)
    for size in (1, 3, len(counts)):
        chosen = Vocabulary.of(texts, size, "tags").words
        least = min(counts[tag] for tag in chosen)
        assert len(chosen) == size and list(chosen) == sorted(chosen)
        assert all(count <= least for tag, count in counts.items() if tag not in chosen)


@pytest.mark.parametrize("texts", [(), ("",), ("the of and", "a I"), ("?!", "...")])
def test_texts_without_words_make_no_vocabulary(texts):
    with pytest.raises(DataError, match=f"{len(texts)} texts make no vocabulary: "):
        Vocabulary.of(texts, 5)


@pytest.mark.parametrize("size", [0, -3, 2.0, True])
def test_a_vocabulary_has_a_whole_number_of_words(size):
    with pytest.raises(ValueError, match=f"size={size}: expected a whole number of at least 1"):
        Vocabulary.of(TEXTS, size)


@pytest.mark.parametrize(("words", "different"), [((), 0), (("cat", "dog", "cat"), 2)])
def test_a_vocabulary_has_words_and_each_once(words, different):
    given = f"{len(words)} words, {different} of them different: expected some, each once"
    with pytest.raises(DataError, match=given):
        Vocabulary(words)


# Bags


def test_a_bag_says_which_words_there_are_and_not_how_often():
    vocabulary = Vocabulary(("bird", "cat", "dog"))
    bags = vocabulary.bags(("Dog dog DOG and a fish", "no", "a cat, a dog; a bird"))
    assert bags.shape == (3, 1, 1, 3) and bags.dtype == torch.float32
    assert bags.flatten(1).tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 1]]


def test_entries_are_in_the_order_of_the_words_whatever_it_is():
    bags = Vocabulary(("dog", "bird", "cat")).bags(("cat dog",))
    assert bags.flatten().tolist() == [1, 0, 1]


def test_words_by_the_rules_of_their_kind():
    """ "new-york" is one tag and two words, and "the" is a tag."""
    text = ("the new-york",)
    assert Vocabulary(("new", "york", "new-york", "the")).bags(text).flatten().tolist() == [1, 1, 0, 0]
    assert Vocabulary(("new", "york", "new-york", "the"), "tags").bags(text).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "expected"), [("words", ("bird", "cat", "dog")), ("tags", ("&", "bird", "cat,", "dog"))]
)
def test_the_words_of_a_bag_are_those_of_its_text(tokens, expected):
    vocabulary = Vocabulary.of(TEXTS, 100, tokens)
    bag = vocabulary.bags(TEXTS)[2]
    assert vocabulary.words_of(bag) == expected
    assert torch.equal(vocabulary.bags((" ".join(expected),))[0], bag)


def test_an_entry_above_a_half_is_a_word():
    vocabulary = Vocabulary(("a1", "b1", "c1", "d1"))
    assert vocabulary.words_of(torch.tensor([0.5, 0.51, 0.0, 1.0])) == ("b1", "d1")
    assert vocabulary.words_of(torch.zeros(1, 1, 4)) == ()


def test_bags_are_taken_where_images_are():
    bags, labels = Vocabulary.of(TEXTS, 100).bags(TEXTS), torch.tensor([0, 0, 1, 1])
    gallery = Gallery.of(text_model(6, 8, (4,)), bags, labels)
    assert gallery.codes.shape == (4, 8) and gallery.distance == "H"


# Changes


def test_what_has_changed_is_counted_in_four_ways():
    before = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0]])[:, None, None]
    after = torch.tensor([[0.0, 1, 1, 1], [0.4, 0, 0.6, 1], [1, 1, 0, 0]])[:, None, None]
    found = Rewording.of(before, after)
    assert found.entries.tolist() == [3, 2, 0]
    assert found.length.tolist() == pytest.approx([3, 0.8, 0])
    assert found.added.tolist() == [2, 0, 0] and found.removed.tolist() == [1, 0, 0]


def test_a_word_comes_above_a_half_and_goes_at_a_half():
    """By 1e-7, which is rounding, no entry has changed."""
    before = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
    after = torch.tensor([[0.5, 0.51, 0.5, 0.51, 1e-7]])
    found = Rewording.of(before, after)
    assert (found.added.item(), found.removed.item(), found.entries.item()) == (1, 1, 4)


def test_bags_of_other_shapes_are_not_compared():
    with pytest.raises(DataError, match=r"bags of shapes \(2, 1, 1, 3\) and \(2, 1, 1, 4\): expected the same"):
        Rewording.of(torch.zeros(2, 1, 1, 3), torch.zeros(2, 1, 1, 4))


def test_of_words_in_as_many_texts_the_first_by_the_alphabet_stay():
    """Many ties, so that a sort which leaves them as they fall would show."""
    words = [f"w{number:03}" for number in range(300)]
    texts = [f"{word} common" for word in reversed(words)]
    assert Vocabulary.of(texts, 40).words == ("common", *words[:39])


@pytest.mark.parametrize("make", [lambda: Vocabulary(("a",), "letters"), lambda: Vocabulary.of(["a b"], 1, "letters")])
def test_other_tokens_are_refused_by_name(make):
    with pytest.raises(DataError, match="tokens='letters': expected one of"):
        make()


def test_words_with_capital_letters_are_refused():
    with pytest.raises(DataError, match="the word 'Cat': expected lower case"):
        Vocabulary(("cat", "Cat"))
