"""Splits of our own, for sets whose published lists are not at hand.

Images are taken in the order of the SHA-256 of their names, so the split is the same on every machine and with every
version of every library, whatever the order of the files.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from official_files import SourceError
from split_lists import Sizes

SEED = 0


def anywhere(names: Sequence[str], labels: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Queries, then train, from all images alike."""
    split, order = everything_in_the_database(names), shuffled(names)
    split[order[: sizes.query]] = "query"
    split[order[sizes.query : sizes.query + sizes.train]] = "train"
    return split


def of_each_class(names: Sequence[str], labels: np.ndarray, sizes: Sizes) -> np.ndarray:
    """As many queries of each class as of any other, and as many of train, each image for one of its classes.

    The rarest class chooses first. An image has its other labels too, so classes are not equally frequent after all.

    Raises:
        SourceError: if a class has too few images.
    """
    split, order, classes = everything_in_the_database(names), shuffled(names), labels.shape[1]
    for column in np.argsort(labels.sum(axis=0, dtype=np.int64), kind="stable"):
        for role, number in (("query", sizes.query // classes), ("train", sizes.train // classes)):
            free = order[(labels[order, column] == 1) & (split[order] == "database")]
            if len(free) < number:
                raise SourceError(f"class {column} has {len(free):,} images left for {role}; expected {number:,}")
            split[free[:number]] = role
    return split


def everything_in_the_database(names: Sequence[str]) -> np.ndarray:
    """The split that others begin from."""
    return np.full(len(names), "database")


def shuffled(names: Sequence[str]) -> np.ndarray:
    """The positions of the names, in an order that has nothing to do with what they say."""
    return np.array(sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{SEED} {names[i]}".encode()).digest()))
