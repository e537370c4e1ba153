"""The photographs of a folder that has one subfolder a class.

=========================== =====================================================================
file                        what it is
=========================== =====================================================================
``robin/1.jpg``             of the class robin
``robin/summer/2.png``      of the class robin too: folders below that of a class belong to it
``train/robin/1.jpg``       of the class robin, to train with; where all folders of the first level
                            are ``train`` and ``test``, or ``train``, ``query`` and ``database``
``3.jpg``                   of no class
=========================== =====================================================================

What is hidden, its name beginning with a period, is not looked at, nor what file managers leave behind. Everything
else is taken for a photograph until it is opened.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robret_lib.data.errors import DataError
from robret_lib.data.texts import printable

SPLITS = (("train", "test"), ("train", "query", "database"))
_WORDS_OF_SPLITS = {
    *("train", "training", "test", "testing", "val", "valid", "validation", "dev"),
    *("query", "queries", "gallery", "database"),
}
_LEFT_BEHIND = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}  # in lower case


@dataclass(frozen=True)
class FolderFile:
    """A file below the folder of a class.

    Attributes:
        path: where it is.
        name: the same as seen from the whole folder, with slashes.
        class_name: the name of its class's folder.
        split: the folder of the first level, where those are a split.
    """

    path: Path
    name: str
    class_name: str
    split: str | None


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        files: by split and class, and within a class by name, in the order of the bytes of the names.
        class_names: in the order of their bytes, of all splits together.
        loose: files beside the folders of the classes.
    """

    files: tuple[FolderFile, ...]
    class_names: tuple[str, ...]
    loose: tuple[Path, ...]


def files_of(folder: Path) -> ImageFolder:
    """Finds the files of each class, without opening any.

    Links are followed. One that leads back to where it lies, or a folder a second time into the same class, is not.

    Raises:
        DataError: if there is no such folder, or it holds no classes, or one without files, or cannot be listed.
    """
    if not folder.is_dir():
        raise DataError(f"{shown(folder)} {'is a file' if folder.exists() else 'does not exist'}; expected a folder")
    split = _split_of(folder)
    files, loose = [], []
    for part, top in [(None, folder)] if split is None else [(part, folder / part) for part in split]:
        classes = _classes(top)
        loose += [path for path in _listed(top) if not path.is_dir()]
        for class_folder in classes:
            found = list(_files_below(class_folder, {_identity(folder), _identity(top)}))
            if not found:
                raise DataError(f"{shown(class_folder)} holds no files; remove it, or put photographs there")
            files += [FolderFile(path, _name(path, folder), class_folder.name, part) for path in found]
    class_names = sorted({file.class_name for file in files}, key=os.fsencode)
    return ImageFolder(tuple(files), tuple(class_names), tuple(loose))


def shown(path: Path) -> str:
    """A path as messages can have it."""
    return printable(str(path))


def _split_of(folder: Path) -> tuple[str, ...] | None:
    """The folders of the first level, in the order of the roles, where they are a split.

    Raises:
        DataError: if they seem to be another one, whose parts would pass for classes.
    """
    names = {path.name for path in _listed(folder) if path.is_dir()}
    for split in SPLITS:
        if names == set(split):
            return split
    if len(names) > 1 and {name.lower() for name in names} <= _WORDS_OF_SPLITS:
        raise DataError(
            f"{shown(folder)} seems to be divided into {', '.join(sorted(names))}; expected the folders "
            f"{' or '.join(' and '.join(split) for split in SPLITS)}, or one folder a class"
        )
    return None


def _classes(folder: Path) -> list[Path]:
    entries = _listed(folder)
    classes = [path for path in entries if path.is_dir()]
    if not classes:
        holds = f"holds {len(entries)} files, but no folders" if entries else "is empty"
        raise DataError(f"{shown(folder)} {holds}; expected one folder a class, with its photographs in it")
    return classes


def _files_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    identity = _identity(folder)
    if identity in seen:
        return
    seen.add(identity)
    for path in _listed(folder):
        if path.is_dir():
            yield from _files_below(path, seen)
        else:
            yield path


def _listed(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed ({error.strerror})") from error
    return [path for path in entries if not path.name.startswith(".") and path.name.lower() not in _LEFT_BEHIND]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
