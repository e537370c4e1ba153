"""What the scripts of the deep hashing sets share: several labels an image; query, train and database.

A script describes its set as a `HashingSet` and calls `official.main`. The packed file holds of each photograph the
middle: its shorter side becomes 256 pixels (bilinear), and of the longer one 256 stay. The middle 224 of that are the
pixels that the published code shows the network. The split is that of published lists, where a person has put them
into the folder named as the set (`split_lists`), else one of our own of the same size (`split_drawing`), which is said
when it is made.

In the packed file ``database`` is what neither asks nor trains. `robret_lib.data.load` searches in everything but the
queries, so train is in the gallery, as in the published protocols.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import official
from official_files import SHOWN, MissingFilesError, Read, SourceError
from robret_lib.data.packed import PackedFile
from robret_lib.data.packed_writing import write_jpeg_files
from split_drawing import SEED
from split_lists import Sizes, found_lists


class Annotations(NamedTuple):
    """What the official files say of the images that belong to the set.

    Attributes:
        names: of the images.
        files: where each is, in the pieces of the form.
        labels: uint8 ``[N, C]`` of zeros and ones.
        class_names: one a column.
        texts: what is said of each image, where the set has texts.
    """

    names: list[str]
    files: list[str]
    labels: np.ndarray
    class_names: Sequence[str]
    texts: list[str] | None = None

    def only(self, kept: np.ndarray) -> "Annotations":
        """Those of the images that a mask keeps."""
        chosen = np.flatnonzero(kept)
        names, files = ([values[i] for i in chosen] for values in (self.names, self.files))
        texts = None if self.texts is None else [self.texts[i] for i in chosen]
        return Annotations(names, files, self.labels[chosen], self.class_names, texts)

    def complete(self) -> "Annotations":
        """Those of the images that have a label and, where the set has texts, one that is not empty."""
        kept = self.labels.any(axis=1)
        if self.texts is not None:
            kept &= np.array([text != "" for text in self.texts])
        return self.only(kept)


@dataclass(frozen=True)
class HashingForm(official.Form):
    """One form in which a set is around.

    Attributes:
        annotations: what its files say; raises SourceError where it makes no sense.
    """

    annotations: Callable[[Read], Annotations]


Draw = Callable[[Sequence[str], np.ndarray, Sizes], np.ndarray]
"""Divides images, given their names and labels: one of ``query``, ``train`` and ``database`` an image."""


@dataclass(frozen=True, kw_only=True)
class HashingSet(official.PublishedSet):
    """A data set of deep hashing.

    Attributes:
        classes: how many labels there are.
        sizes: of the published split.
        draw: our own split, where there are no lists.
        marks: how many labels all images have together, where known.
        reduced: how many images a copy has that is said to be in circulation and to lack some; None if there is none.
        with_texts: whether its annotations have texts.
    """

    classes: int
    sizes: Sizes
    draw: Draw
    marks: int | None = None
    reduced: int | None = None
    with_texts: bool = False

    def pack(self, layout: HashingForm, read: Read, output: Path) -> None:
        whole = layout.annotations(read)
        check_annotations(whole, self)
        there = self._there(whole, read)
        split = self._split(whole, there, output.parent / self.name)
        annotations = whole.only(there)
        check_sizes(split, self)
        write_jpeg_files(
            output,
            photographs(annotations, read, self.name),
            annotations.labels,
            annotations.class_names,
            annotations.names,
            split.tolist(),
            annotations.texts,
        )

    def check(self, packed: PackedFile) -> None:
        if packed.labels.shape[1:] != (self.classes,):
            raise SourceError(f"its labels are of shape {tuple(packed.labels.shape)}; expected {self.classes} columns")
        if self.with_texts and packed.texts is None:
            raise SourceError("it has no texts")
        check_sizes(np.array([]) if packed.split is None else packed.split, self)

    def summary(self, path: Path) -> str:
        with np.load(path) as members:
            labels, split = members["label"], members["split"].astype(str)
        without = labels.sum(axis=1) == 0
        return (
            f"query {(split == 'query').sum():,}, train {(split == 'train').sum():,}, gallery "
            f"{(split != 'query').sum():,} with train in it; {self.classes} labels; {without.sum():,} images have "
            f"none, of these {(without & (split == 'query')).sum():,} queries, which nothing can answer"
        )

    def _there(self, whole: Annotations, read: Read) -> np.ndarray:
        """Which images can be read: all, but those that the reduced copy lacks."""
        there = np.ones(len(whole.files), dtype=bool)
        if self.reduced is not None:
            missing = missing_files(read, whole.files)
            if len(whole.files) - len(missing) == self.reduced:
                there = ~np.isin(whole.files, list(missing))
                print(f"  {reduced_message(len(missing), missing[0], self)}")
        return there

    def _split(self, whole: Annotations, there: np.ndarray, folder: Path) -> np.ndarray:
        """The split of the images that are there; the folder may hold lists."""
        if (lists := found_lists(folder, self.classes)) is not None:
            split = lists.split(whole.names, self.sizes)
            print(f"  split: {lists.description(whole.names, whole.labels)}")
            return split[there]
        print(f"  split: drawn by this script (seed {SEED}). It has the sizes of the published one and is another one")
        annotations = whole.only(there)
        return self.draw(annotations.names, annotations.labels, self.sizes)


def check_annotations(annotations: Annotations, hashing_set: HashingSet) -> None:
    """Checks that the annotations are those of the set.

    Raises:
        SourceError: if not.
    """
    images, classes = annotations.labels.shape
    if (images, classes) != (hashing_set.sizes.images, hashing_set.classes):
        expected = f"{hashing_set.sizes.images:,} images with {hashing_set.classes} labels"
        raise SourceError(f"the annotations have {images:,} images with {classes} labels; expected {expected}")
    if len(set(annotations.files)) != images:
        raise SourceError("the annotations name an image twice, or two images of one file")
    marks = int(annotations.labels.sum())
    if hashing_set.marks not in (None, marks):
        raise SourceError(f"the annotations give {marks:,} labels in all; expected {hashing_set.marks:,}")


def check_sizes(split: np.ndarray, hashing_set: HashingSet) -> None:
    """Checks how many images of a packed file, or of one to be written, have which role.

    Raises:
        SourceError: if they are too few or too many. Of a reduced copy the roles of published lists may lack some.
    """
    sizes = hashing_set.sizes
    query, train = ((split == role).sum() for role in ("query", "train"))
    if len(split) == sizes.images:
        right = query == sizes.query and train in (sizes.train, sizes.distinct_train)
    else:
        right = len(split) == hashing_set.reduced and 0 < query <= sizes.query and 0 < train <= sizes.train
    if not right:
        found = f"{len(split):,} images, {query:,} of query and {train:,} of train"
        raise SourceError(f"there are {found}; expected {sizes}")


def missing_files(read: Read, files: Sequence[str]) -> Sequence[str]:
    """Those of the files that are not there, if that is known before the first is read."""
    try:
        next(read(files))
    except MissingFilesError as error:
        return error.names
    return ()


def reduced_message(missing: int, first: str, hashing_set: HashingSet) -> str:
    """How the reduced copy differs from the set."""
    return (
        f"difference: this is a copy that lacks {missing:,} of {hashing_set.sizes.images:,} images "
        f"(the first is {first}). The split is smaller than the published one, so numbers are not comparable"
    )


def photographs(annotations: Annotations, read: Read, name: str) -> Iterator[bytes]:
    """The photographs in the order of their names, as files of the packed set.

    Raises:
        SourceError: after the last, if some cannot be read; it says how many.
    """
    damaged: list[SourceError] = []

    def square(content: bytes, file: str) -> bytes:
        try:
            return official.central(content, file)
        except SourceError as error:
            damaged.append(error)
            return b""

    files = annotations.files
    arriving = tqdm(read(files), f"packing {name}", len(files), unit=" images", disable=None)
    yield from official.in_order(files, ((file, square(content, file)) for file, content in arriving))
    if damaged:
        shown = "; ".join(str(error) for error in damaged[:SHOWN])
        raise SourceError(f"{len(damaged):,} of {len(files):,} images cannot be read: {shown}. Get these files again")
