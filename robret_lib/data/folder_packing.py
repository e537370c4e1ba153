"""Packs a folder of photographs, one subfolder a class: what `robret_lib.data.load` reads, from what people have."""

import os
import warnings
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from robret_lib.data.errors import DataError
from robret_lib.data.folder import FolderFile, ImageFolder, files_of, shown
from robret_lib.data.jpeg import jpeg_file
from robret_lib.data.packed_writing import write_jpeg_files
from robret_lib.data.texts import encoded, printable
from robret_lib.folders import data_root

Unreadable = Literal["refuse", "skip"]
"""What to do where files are no images that can be read."""


@dataclass(frozen=True)
class UnreadableFile:
    """A file that is no image, or a damaged one; its name as seen from the folder, and what is wrong."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{printable(self.name)}: {self.reason}"


def pack_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    side: int = 256,
    quality: int = 90,
    unreadable: Unreadable = "refuse",
    force: bool = False,
    progress: bool = False,
) -> list[UnreadableFile]:
    """Packs a folder, see `robret_lib.data.folder` for what lies where in it.

    One photograph is held at a time, and the JPEG files made so far.

    Args:
        folder: one subfolder a class, or ``train`` and ``test``, or ``train``, ``query`` and ``database``, with one
            subfolder a class in each.
        output: ends in .npz. None is `default_output`.
        side: what the shorter side of a photograph is reduced to, in pixels; none is enlarged, the aspect stays.
        quality: of the JPEG files, 1 to 100.
        unreadable: ``"refuse"`` writes nothing if any file is unreadable, ``"skip"`` packs the others.
        force: replace ``output`` if it is there.
        progress: show a bar.

    Returns:
        What was skipped.

    Raises:
        DataError: if there is nothing to pack, files are unreadable (all are listed), a class has no readable
            one, there is only one class, ``output`` must not or cannot be written, or an option is none of these.
        OSError: naming ``output``, if the disk is full or the like. Nothing is left half-written.
    """
    _check_options(side, quality, unreadable)
    folder = Path(folder)
    output = default_output(folder) if output is None else Path(output)
    _check_output(output, force)
    found = files_of(folder)
    _check_classes(found.class_names, folder)
    encoded(found.class_names, "class_names", output)  # what cannot be stored is refused before the long part

    files, kept, failed = _encoded(
        tqdm(found.files, desc="packing", unit=" files", disable=not progress), side, quality
    )
    failed += [UnreadableFile(path.relative_to(folder).as_posix(), _OF_NO_CLASS) for path in _images(found.loose)]
    if failed and unreadable == "refuse":
        raise DataError(_refusal(failed, folder))
    _check_every_class_is_there(kept, found, failed, folder)

    numbers = {name: number for number, name in enumerate(found.class_names)}
    write_jpeg_files(
        output,
        (files.popleft() for _ in range(len(files))),  # each is let go of once it is copied
        [numbers[file.class_name] for file in kept],
        found.class_names,
        [file.name for file in kept],
        None if kept[0].split is None else [str(file.split) for file in kept],
    )
    return failed


def default_output(folder: Path) -> Path:
    """Where ``robret_lib.data.load("name of the folder")`` finds it.

    Raises:
        DataError: if the folder has no name, or there is no data root.
    """
    name = os.path.basename(os.path.abspath(folder))  # also of "." and ".."
    if not name:
        raise DataError(f"{folder} has no name to call the data set by; name an output file")
    try:
        return data_root() / f"{name}.npz"
    except RuntimeError as error:
        raise DataError(f"{error}, or name an output file") from error


def _check_options(side: int, quality: int, unreadable: str) -> None:
    if side < 1 or not 1 <= quality <= 100:
        raise DataError(f"side={side}, quality={quality}: expected a side of at least 1, a quality from 1 to 100")
    if unreadable not in get_args(Unreadable):
        raise DataError(f"unreadable={unreadable!r}: expected one of {', '.join(map(repr, get_args(Unreadable)))}")


def _check_output(output: Path, force: bool) -> None:
    if output.suffix != ".npz":
        raise DataError(f"the output file {shown(output)} must end in .npz to be found again")
    if output.is_dir():
        raise DataError(f"the output file {shown(output)} is a folder")
    if output.exists() and not force:
        raise DataError(f"{shown(output)} is already there; replace it (--force), or name another output file")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"{shown(output)} cannot be written: {shown(parent)} is no folder that this user may write to")


def _check_classes(class_names: Collection[str], folder: Path) -> None:
    if len(class_names) < 2:
        (name,) = class_names
        raise DataError(f"{shown(folder)} holds one class only, {printable(name)!r}; a search needs at least two")


def _encoded(
    given: Iterable[FolderFile], side: int, quality: int
) -> tuple[deque[bytes], list[FolderFile], list[UnreadableFile]]:
    """The JPEG files, of which files they are, and which files cannot be read."""
    encoded, kept, failed = deque(), [], []
    for file in given:
        try:
            encoded.append(_reduced_file(file.path, side, quality))
            kept.append(file)
        except Exception as error:  # damaged bytes surface as a dozen types
            failed.append(UnreadableFile(file.name, _reason(error, file.path)))
    return encoded, kept, failed


def _images(loose: Iterable[Path]) -> list[Path]:
    """Of the files that belong to no class, those that are images; a list of licenses may lie beside them, say."""
    return [path for path in loose if _is_image(path)]


def _is_image(path: Path) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"), _opened(path):
            return True
    except Exception:  # damaged bytes surface as a dozen types
        return False


def _opened(path: Path) -> Image.Image:
    if not path.is_file():  # a pipe, on which to wait for ever
        raise DataError("a link that leads nowhere" if path.is_symlink() else "no regular file")
    return Image.open(path)


def _reduced_file(path: Path, side: int, quality: int) -> bytes:
    """The JPEG file that is stored of a photograph."""
    with warnings.catch_warnings(action="ignore"), _opened(path) as image:
        # A large JPEG file decodes several times as fast to a half or a quarter; twice the size wanted loses nothing.
        factor = min(1, 2 * side / min(image.size))
        image.draft(None, tuple(ceil(length * factor) for length in image.size))
        return jpeg_file(image, quality, side)


_OF_NO_CLASS = "of no class, since it lies beside the folders of the classes"


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        if path.suffix.lower() in (".heic", ".heif"):
            return "HEIC, which Pillow does not read; convert it to JPEG"
        return "empty" if not path.stat().st_size else "of no format that Pillow reads"
    if isinstance(error, OSError | DataError):
        words = getattr(error, "strerror", None) or str(error)
    else:
        words = f"{type(error).__name__}: {error}"
    return printable(" ".join(words.split()))


def _refusal(failed: list[UnreadableFile], folder: Path) -> str:
    heading = (
        f"of {shown(folder)} these files cannot be packed, {len(failed):,} in all; nothing is written. "
        "Remove them, or skip them (--unreadable skip):"
    )
    return "\n  ".join([heading, *map(str, failed)])


def _check_every_class_is_there(
    kept: list[FolderFile], found: ImageFolder, failed: list[UnreadableFile], folder: Path
) -> None:
    """With a photograph in every split in which it has a folder."""
    without = {(file.split, file.class_name) for file in found.files}
    without -= {(file.split, file.class_name) for file in kept}
    if without:
        places = sorted("/".join(filter(None, place)) for place in without)
        heading = f"no file can be read of {', '.join(map(printable, places))} in {shown(folder)}; nothing is written:"
        raise DataError("\n  ".join([heading, *map(str, failed)]))
