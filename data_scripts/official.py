"""What the scripts of the official data sets share: one packed file of squares, from whatever form a set is around in.

A script describes its set as an `OfficialSet`, or as an `official_hashing.HashingSet`, and calls `main`. The packed
file of an `OfficialSet` holds each photograph squeezed to a square of 256 pixels (bilinear, the aspect not kept, no
turn by EXIF), as the published training code of deep metric learning does before it crops. It is the same file, byte
for byte with the same version of Pillow, whether it was made from the archive or from an unpacked folder.
"""

import argparse
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library of this checkout, whatever is installed

from official_files import Piece, Read, SourceError, located
from robret_lib import data
from robret_lib.data.jpeg import jpeg_file
from robret_lib.data.packed import PackedFile, read_packed
from robret_lib.data.packed_writing import write_jpeg_files

SIDE, QUALITY = 256, 95


class Photograph(NamedTuple):
    """A line of the official lists: name, class number from 1, and ``"train"`` or ``"test"``."""

    name: str
    number: int
    split: str


class Listing(NamedTuple):
    """What the official lists say. With ``prefix`` before it, a name is that of the file in the archive."""

    photographs: list[Photograph]
    class_names: Sequence[str]
    prefix: str = ""


class Part(NamedTuple):
    """How large a part of a set is."""

    images: int
    classes: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes:,} classes"


@dataclass(frozen=True)
class Form:
    """One form in which a set is around.

    Attributes:
        pieces: the files it was published in; all are needed.
    """

    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return " with ".join(piece.file for piece in self.pieces)


@dataclass(frozen=True)
class Layout(Form):
    """A form of a set whose classes are divided.

    Attributes:
        lists: those files in the pieces that say what there is.
        listing: what they say, given their contents by name; raises SourceError where it makes no sense.
    """

    lists: tuple[str, ...]
    listing: Callable[[dict[str, bytes]], Listing]


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """What there is to say of any official data set; a kind of sets says the rest in its methods.

    Attributes:
        name: of the packed file.
        title: what people call it.
        layouts: tried in this order.
        by_hand: where a person gets it, in a sentence or more.
        folders: below the data root, where its files may lie too.
        side: of the smallest packed image, in pixels; None is that of photographs.
    """

    name: str
    title: str
    layouts: tuple[Form, ...]
    by_hand: str
    folders: tuple[str, ...] = ()
    side: int | None = None

    def fetch(self, root: Path) -> None:
        """Called where there is no packed file yet: gets into the data root what no `Piece` has an address of."""

    def pack(self, layout: Form, read: Read, output: Path) -> None:
        """Writes the packed file, whole or not at all.

        Raises:
            SourceError: if what is read is not the set, or a photograph is missing or damaged.
            OSError: if a file cannot be read or written.
        """
        raise NotImplementedError

    def check(self, packed: PackedFile) -> None:
        """Checks that a packed file is one of this set.

        Raises:
            SourceError: if not.
        """
        raise NotImplementedError

    def summary(self, path: Path) -> str:
        """What is in its packed file, in a line."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfficialSet(PublishedSet):
    """A data set, whose classes are divided into those to train with and those to search.

    Attributes:
        train: how much of it there must be, as test.
    """

    train: Part
    test: Part

    def pack(self, layout: Layout, read: Read, output: Path) -> None:
        pack(self, layout, read, output)

    def check(self, packed: PackedFile) -> None:
        check_parts(_labels(packed, "train"), _labels(packed, "test"), self)

    def summary(self, path: Path) -> str:
        return f"train {self.train}, test {self.test}"


def main(official: PublishedSet, arguments: list[str] | None = None) -> int:
    """Runs a script; returns its exit code: 0, 1 for an error that it has printed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=f"Get, verify and pack {official.title}, as {official.name}.npz.")
    parser.add_argument("--root", type=Path, default=data.data_root(), help="data root (now: %(default)s)")
    root = parser.parse_args(arguments).root.expanduser().absolute()
    try:
        source = prepare(official, root)
    except (SourceError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error}. If it is for {root}, choose another --root or ROBRET_DATA", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left half-written, run it again", file=sys.stderr)
        return 130
    else:
        print(f"{official.title} is ready: {root / official.name}.npz (source: {source})")
        print(f"  {official.summary(root / f'{official.name}.npz')}")
        return 0
    return 1


def prepare(official: PublishedSet, root: Path) -> str:
    """Makes sure that the packed file is there.

    Returns:
        What it was made from.

    Raises:
        SourceError: if there is nothing to make it from, or another file has its name.
        OSError: if a file cannot be read or written.
    """
    output = root / f"{official.name}.npz"
    if output.exists():
        check_packed(output, official)
        return "already there"
    official.fetch(root)
    for layout in official.layouts:
        try:
            official.pack(layout, reader(layout, [root, *(root / folder for folder in official.folders)]), output)
        except SourceError as error:
            print(f"  not from {layout}: {error}")
            continue
        return str(layout)
    raise SourceError(no_source_message(official, root))


def reader(layout: Form, places: Sequence[Path]) -> Read:
    """Reads the files of all pieces together.

    Raises:
        SourceError: if a piece is not there.
    """
    readers = {piece.unpacked: located(piece, places) for piece in layout.pieces}

    def read(names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        tops = [name.partition("/")[0] for name in names]
        if strangers := [name for name, top in zip(names, tops, strict=True) if top not in readers]:
            raise SourceError(f"the lists name the file {strangers[0]!r}, which is not in {' or '.join(readers)}")
        for piece, read_piece in readers.items():
            if own := [name for name, top in zip(names, tops, strict=True) if top == piece]:
                yield from read_piece(own)

    return read


def pack(official: OfficialSet, layout: Layout, read: Read, output: Path) -> None:
    """Writes the packed file, whole or not at all, in the order of the lists.

    Raises:
        SourceError: if the lists are not those of the set, or a photograph is missing or damaged.
        OSError: if a file cannot be read or written.
    """
    photographs, class_names, prefix = layout.listing(dict(read(layout.lists)))
    check_listing(photographs, class_names, official)
    names = [photograph.name for photograph in photographs]
    files = [prefix + name for name in names]
    arriving = tqdm(read(files), f"packing {official.name}", len(files), unit=" images", disable=None)
    write_jpeg_files(
        output,
        in_order(files, ((file, squeezed(content, file)) for file, content in arriving)),
        [photograph.number - 1 for photograph in photographs],
        class_names,
        names,
        [photograph.split for photograph in photographs],
    )


def in_order(names: Iterable[str], arriving: Iterator[tuple[str, bytes]]) -> Iterator[bytes]:
    """What arrives in any order, in the order of the names; no more is held than came too early."""
    early = {}
    for name in names:
        while name not in early:
            arrived, content = next(arriving)
            early[arrived] = content
        yield early.pop(name)


def squeezed(content: bytes, name: str) -> bytes:
    """The whole photograph as a square JPEG file, its aspect not kept.

    Raises:
        SourceError: if it is none, or a damaged one.
    """
    return square_file(content, name, lambda image: image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def central(content: bytes, name: str) -> bytes:
    """The middle of the photograph as a square JPEG file: its shorter side becomes that of the square.

    Raises:
        SourceError: if it is none, or a damaged one.
    """
    return square_file(content, name, lambda image: center_crop(resize(image, SIDE), SIDE))


def square_file(content: bytes, name: str, square: Callable[[Image.Image], Image.Image]) -> bytes:
    """The square that is made of a photograph, as a JPEG file.

    Raises:
        SourceError: if it is none, or a damaged one.
    """
    try:
        image = square(Image.open(io.BytesIO(content)).convert("RGB"))
    except Exception as error:  # damaged bytes surface as a dozen types
        raise SourceError(f"{name} is no photograph that can be read ({type(error).__name__}: {error})") from error
    return jpeg_file(Image.fromarray(np.asarray(image)), QUALITY)  # the pixels only: no EXIF, by which to turn them


def check_listing(photographs: Sequence[Photograph], class_names: Sequence[str], official: OfficialSet) -> None:
    """Checks that the lists are those of the set: class numbers, counts, no class in both parts, no name twice.

    Raises:
        SourceError: if not.
    """
    classes = official.train.classes + official.test.classes
    if len(class_names) != classes:
        raise SourceError(f"the lists have {len(class_names):,} classes; expected {classes:,}")
    for name, number, _ in photographs:
        if not 1 <= number <= classes:
            raise SourceError(f"the lists have class number {number} for {name}; expected 1 to {classes:,}")
    numbers = {split: [n for _, n, its_split in photographs if its_split == split] for split in ("train", "test")}
    check_parts(numbers["train"], numbers["test"], official)
    if len({photograph.name for photograph in photographs}) != len(photographs):
        raise SourceError("the lists name a photograph twice")


def check_parts(train: Sequence[int], test: Sequence[int], official: OfficialSet) -> None:
    """Checks the class numbers of both parts, one an image: how many there are, and that no class is in both.

    Raises:
        SourceError: if not.
    """
    for split, numbers, expected in (("train", train, official.train), ("test", test, official.test)):
        found = Part(len(numbers), len(set(numbers)))
        if found != expected:
            raise SourceError(f"{split} has {found}; expected {expected}")
    if shared := set(train) & set(test):
        raise SourceError(f"class {min(shared)} is both in train and in test")


def check_packed(path: Path, official: PublishedSet) -> None:
    """Checks that a file that is there is what this script writes, and whole.

    Raises:
        SourceError: if not. It may be a person's own, so it is for them to remove it.
    """
    try:
        packed = read_packed(path)
        official.check(packed)
        expected = official.side or SIDE
        if (side := packed.smallest_side()) != expected:
            raise SourceError(f"its smallest side is {side} pixels; expected {expected}")
    except (data.DataError, SourceError) as error:
        raise SourceError(f"{path} is not what this script writes ({error}). Move it away, and run again") from error


def _labels(packed: PackedFile, split: str) -> list[int]:
    return [] if packed.split is None else packed.labels[packed.split == split].tolist()


def no_source_message(official: PublishedSet, root: Path) -> str:
    """What a person can do when every source has failed."""
    needed = "\n  or\n".join("\n".join(f"    {piece}" for piece in layout.pieces) for layout in official.layouts)
    return f"""{official.title} is not in {root}, and no source could give it. To get it by hand:
  {official.by_hand}
  Put it into the folder above, as it is or unpacked:
{needed}
  Then run this script again."""


def table(texts: dict[str, bytes], member: str, columns: int) -> list[list[str]]:
    """The fields of all lines of a list, but empty ones, split at spaces; the last field may have spaces.

    Raises:
        SourceError: if a line has too few.
    """
    lines = [line for line in texts[member].decode(errors="replace").splitlines() if line.strip()]
    fields = [line.split(maxsplit=columns - 1) for line in lines]
    for line, found in zip(lines, fields, strict=True):
        if len(found) != columns:
            raise SourceError(f"{member} has the line {line!r}; expected {columns} fields")
    return fields


def whole_number(text: str, member: str) -> int:
    """The number that a field of a list is.

    Raises:
        SourceError: if it is none.
    """
    if not text.isdecimal():
        raise SourceError(f"{member} has {text!r} where a whole number is expected")
    return int(text)
