"""Texts as a hash network of images and texts takes them: bags of words, which say what words there are and no more.

A bag is a vector of zeros and ones, one for each word of a vocabulary. It is kept as a picture of one row,
``[1, 1, V]``, so that whatever takes pictures in [0, 1], as attacks and galleries do, takes bags as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.fields import check_count

Tokens = Literal["words", "tags"]
"""What a text consists of: words, of which frequent English ones say nothing and are left out; or tags, between blanks,
of which every one counts."""

SETTINGS: dict[Tokens, dict[str, object]] = {
    "words": {"stop_words": "english"},
    "tags": {"token_pattern": r"\S+"},
}


@dataclass(frozen=True)
class Vocabulary:
    """The words that bags count, in the order of their entries; all in lower case.

    Raises:
        DataError: No words, one twice or with capital letters, or no such tokens.
    """

    words: tuple[str, ...]
    tokens: Tokens = "words"

    def __post_init__(self) -> None:
        different = len(set(self.words))
        if not different or different != len(self.words):
            raise DataError(f"{len(self.words)} words, {different} of them different: expected some, each once")
        if capital := [word for word in self.words if word != word.lower()]:
            raise DataError(f"the word {capital[0]!r}: expected lower case, in which texts are counted")
        _check_tokens(self.tokens)

    @classmethod
    def of(cls, texts: Sequence[str], size: int, tokens: Tokens = "words") -> "Vocabulary":
        """The ``size`` words that are in most of these texts, of equals the first by the alphabet, or all.

        In the order of the alphabet, whatever the machine. (scikit-learn's own ``max_features`` leaves open which of
        equally frequent words it keeps.)

        Raises:
            DataError: There are no words in them, or no such tokens.
        """
        check_count("size", size)
        _check_tokens(tokens)
        counter = CountVectorizer(binary=True, **SETTINGS[tokens])
        try:
            texts_with = np.asarray(counter.fit_transform(texts).sum(0)).ravel()
        except ValueError as error:
            raise DataError(f"{len(texts)} texts make no vocabulary: {error}") from error
        words = counter.get_feature_names_out().tolist()
        kept = sorted(range(len(words)), key=lambda entry: (-texts_with[entry], words[entry]))[:size]
        return cls(tuple(sorted(words[entry] for entry in kept)), tokens)

    def __len__(self) -> int:
        return len(self.words)

    def bags(self, texts: Sequence[str]) -> Tensor:
        """Zeros and ones, float ``[N, 1, 1, V]``; words that are not in the vocabulary are lost."""
        counter = CountVectorizer(binary=True, vocabulary=self.words, **SETTINGS[self.tokens])
        return torch.from_numpy(counter.transform(texts).toarray()).float()[:, None, None]

    def words_of(self, bag: Tensor) -> tuple[str, ...]:
        """The words of one bag ``[..., V]``: of its entries above a half."""
        return tuple(self.words[entry] for entry in (bag.flatten() > 0.5).nonzero().flatten().tolist())


@dataclass(frozen=True, eq=False)
class Rewording:
    """How bags ``[B, ..., V]`` differ from what they were: four measures of each, ``[B]``.

    A bag of zeros and ones that changes by less than a half in every entry has the same words as before: no text has
    such a bag, so that no user of a search engine could ask with it.

    Args:
        entries: How many entries changed at all.
        length: By how much all entries together, L1.
        added, removed: How many words there are now that were not, and the other way round.
    """

    entries: Tensor
    length: Tensor
    added: Tensor
    removed: Tensor

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> "Rewording":
        """From bags to bags of the same shape.

        Raises:
            DataError: They are of different shapes.
        """
        if before.shape != after.shape:
            raise DataError(f"bags of shapes {tuple(before.shape)} and {tuple(after.shape)}: expected the same")
        before, after = before.flatten(1), after.flatten(1)
        had, has = before > 0.5, after > 0.5
        change = (after - before).abs()
        return cls((change > 1e-6).sum(1), change.sum(1), (has & ~had).sum(1), (had & ~has).sum(1))


def _check_tokens(tokens: str) -> None:
    if tokens not in get_args(Tokens):
        raise DataError(f"tokens={tokens!r}: expected one of {get_args(Tokens)}")
