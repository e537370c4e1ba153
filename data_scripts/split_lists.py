"""Published splits of the hashing sets, as lists that a person has put into the folder of a set.

Two forms are around, both with a row of zeros and ones for each image:

* ``train_img.txt`` and ``train_label.txt``, line by line of the same image; so ``test_...`` and ``database_...``
  (ProS-GAN, CgAT, SAAT);
* ``train.txt`` with lines of ``<path> 0 1 0 ...``; so ``test.txt`` and ``database.txt`` (HashNet, DeepHash-pytorch).

Only the file name of a path counts, since folders are those of the machine where the list was made. The lists of the
database may be left out, for it is everything but the queries.

The labels of a packed file are those of the official annotations, whose columns have names; the columns of the lists
are in an order of their own. So they are compared as a whole, up to that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from official_files import SHOWN, SourceError

STEMS = {"query": "test", "train": "train", "database": "database"}
"""What the files of a role are called."""


class Sizes(NamedTuple):
    """How large a published split is.

    Attributes:
        images: of the whole set.
        query: images that ask.
        train: rows of the list to train with.
        distinct_train: images in these rows, where some are in several.
    """

    images: int
    query: int
    train: int
    distinct_train: int

    @property
    def database(self) -> int:
        return self.images - self.query

    def __str__(self) -> str:
        distinct = "" if self.distinct_train == self.train else f" (or {self.distinct_train:,}, without repeats)"
        return f"{self.images:,} images, {self.query:,} of query and {self.train:,}{distinct} of train"


class Rows(NamedTuple):
    """A list: the file names of the images, and uint8 ``[rows, C]``."""

    names: list[str]
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class SplitLists:
    """The lists of a split by role; that of the database may be missing.

    Attributes:
        folder: where they are.
    """

    folder: Path
    rows: dict[str, Rows]

    def split(self, names: Sequence[str], sizes: Sizes) -> np.ndarray:
        """The role of each image.

        Raises:
            SourceError: if the lists are not a split of these images of these sizes.
        """
        places = places_of(names)
        self._check_sizes(sizes)
        self._check_names(places)
        split = np.full(len(names), "database")
        for role in ("train", "query"):
            split[[places[name] for name in self.rows[role].names]] = role
        return split

    def description(self, names: Sequence[str], labels: np.ndarray) -> str:
        """What a person should know about the lists, given the images and their official labels."""
        train = self.rows["train"].names
        said = f"that of the lists in {self.folder}, whose {len(train):,} rows of train name {len(set(train)):,} images"
        places = places_of(names)
        official = labels[[places[name] for rows in self.rows.values() for name in rows.names]]
        listed = np.concatenate([rows.labels for rows in self.rows.values()])
        if differing := rows_that_differ(listed, official):
            said += (
                f". Difference: {differing:,} of {len(listed):,} rows have other labels than the official annotations, "
                "which are what is packed"
            )
        return said

    def _check_sizes(self, sizes: Sizes) -> None:
        for role, rows in self.rows.items():
            if len(rows.names) != (expected := getattr(sizes, role)):
                raise SourceError(f"{self._file(role)} has {len(rows.names):,} rows; expected {expected:,}")
        distinct = {role: len(set(rows.names)) for role, rows in self.rows.items()}
        for role in self.rows.keys() - {"train"}:
            if distinct[role] != len(self.rows[role].names):
                raise SourceError(f"{self._file(role)} names {distinct[role]:,} images, some of them twice")
        if distinct["train"] not in (sizes.train, sizes.distinct_train):
            what = f"{self._file('train')} names {distinct['train']:,} images"
            raise SourceError(f"{what}; expected {sizes.distinct_train:,}, or {sizes.train:,} without repeats")

    def _check_names(self, places: dict[str, int]) -> None:
        for role, rows in self.rows.items():
            if strangers := [name for name in rows.names if name not in places]:
                what = f"{self._file(role)} names {len(strangers):,} images that are not in the set"
                raise SourceError(f"{what}, the first is {', then '.join(strangers[:SHOWN])}")
        queries = set(self.rows["query"].names)
        for role in self.rows.keys() - {"query"}:
            if shared := queries.intersection(self.rows[role].names):
                raise SourceError(f"{min(shared)} is both in {self._file('query')} and in {self._file(role)}")

    def _file(self, role: str) -> str:
        return f"the list {STEMS[role]!r} in {self.folder}"


def found_lists(folder: Path, classes: int) -> SplitLists | None:
    """The lists in a folder, if it has some.

    Raises:
        SourceError: if those of query or train are missing there, or one makes no sense.
    """
    for read in (read_pair, read_lines):
        rows = {role: found for role, stem in STEMS.items() if (found := read(folder, stem, classes))}
        if rows and not {"query", "train"} <= rows.keys():
            missing = sorted(STEMS[role] for role in {"query", "train"} - rows.keys())
            raise SourceError(f"{folder} has a list of {', '.join(rows)}, but none named {', '.join(missing)}")
        if rows:
            return SplitLists(folder, rows)
    return None


def read_pair(folder: Path, stem: str, classes: int) -> Rows | None:
    """A list in two files, if it is there."""
    images, labels = folder / f"{stem}_img.txt", folder / f"{stem}_label.txt"
    if not images.is_file():
        return None
    if not labels.is_file():
        raise SourceError(f"{images} is there, but {labels} is not; they belong together")
    names, rows = lines_of(images), lines_of(labels)
    if len(names) != len(rows):
        raise SourceError(f"{images} has {len(names):,} rows, but {labels} has {len(rows):,}")
    return Rows([file_name(name) for name in names], label_rows([row.split() for row in rows], classes, labels))


def read_lines(folder: Path, stem: str, classes: int) -> Rows | None:
    """A list in one file, if it is there."""
    path = folder / f"{stem}.txt"
    if not path.is_file():
        return None
    rows = [line.split() for line in lines_of(path)]
    return Rows([file_name(row[0]) for row in rows], label_rows([row[1:] for row in rows], classes, path))


def lines_of(path: Path) -> list[str]:
    """The lines of a file, but empty ones."""
    return [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def label_rows(rows: Sequence[Sequence[str]], classes: int, path: Path) -> np.ndarray:
    """Rows of zeros and ones as uint8 ``[rows, classes]``.

    Raises:
        SourceError: if a row is of another length, or has something else in it.
    """
    for number, row in enumerate(rows, 1):
        if len(row) != classes or not set(row) <= {"0", "1"}:
            raise SourceError(f"row {number:,} of {path} has {len(row)} labels; expected {classes}, each 0 or 1")
    return np.array(rows, dtype="S1").reshape(len(rows), classes).view(np.uint8) - ord("0")


def places_of(names: Sequence[str]) -> dict[str, int]:
    """The position of each image by its file name.

    Raises:
        SourceError: if two have the same.
    """
    places = {file_name(name): position for position, name in enumerate(names)}
    if len(places) != len(names):
        raise SourceError(f"{len(names):,} images have {len(places):,} file names, so lists cannot tell them apart")
    return places


def rows_that_differ(listed: np.ndarray, official: np.ndarray) -> int:
    """In how many rows the labels are not the same, in that order of the columns that agrees best.

    Args:
        listed: uint8 ``[rows, C]``.
        official: the same.
    """
    ours, theirs = official.astype(np.float32), listed.astype(np.float32)
    agreeing = ours.T @ theirs + (1 - ours).T @ (1 - theirs)
    columns = linear_sum_assignment(agreeing, maximize=True)[1]
    return int((official != listed[:, columns]).any(axis=1).sum())
