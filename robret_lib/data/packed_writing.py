"""Writes the storage format of `robret_lib.data.packed`."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.jpeg import jpeg_file
from robret_lib.data.packed import PackedFile, labels_from, where
from robret_lib.data.texts import encoded
from robret_lib.files import written_whole


def write_packed(
    path: str | os.PathLike[str],
    images: Iterable[Tensor | Image.Image],
    labels: Tensor | Sequence[int],
    class_names: Sequence[str],
    names: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    quality: int = 95,
    texts: Sequence[str] | None = None,
) -> None:
    """Writes a packed file that `robret_lib.data.load` reads, whole or not at all.

    Args:
        path: ends in .npz; its folder is made if need be, a file already there is replaced.
        images: uint8 tensors ``[3, H, W]`` or Pillow images of any mode, of any sizes up to 178,956,970
            pixels, stored as they look, see `robret_lib.data.pictures.as_shown`. A generator will do, one is held
            at a time.
        labels: ``[N]`` class numbers from 0, or multi-hot ``[N, classes]`` of at least two classes, in any dtype.
        class_names: one a class.
        names: one an image; file names that are no UTF-8, as `os.listdir` gives them, come back the same.
        split: one an image: train and test, or train, query and database.
        quality: of the JPEG files, 1 to 100; color is kept at full resolution.
        texts: one an image, what is said of it.

    Raises:
        DataError: if these do not fit together; if an image is damaged, too large or of no such kind, with its
            position and, if known, its name.
    """
    names = None if names is None else tuple(names)
    files = _jpeg_files(images, quality, names or (), path)
    write_jpeg_files(path, files, labels, class_names, names, split, texts)


def write_jpeg_files(
    path: str | os.PathLike[str],
    files: Iterable[bytes],
    labels: Tensor | Sequence[int],
    class_names: Sequence[str],
    names: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Writes a packed file of JPEG files, which stay as they are; else as `write_packed`.

    Args:
        files: each what `robret_lib.data.jpeg.jpeg_file` gives. Of a generator no second copy is held.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path} must end in .npz to be found again")
    given = {"class_names": class_names, "name": names, "split": split, "text": texts}
    given = {member: tuple(values) for member, values in given.items() if values is not None}
    stored = {member: encoded(values, member, path) for member, values in given.items()}
    joined, ends = bytearray(), [0]
    for file in files:
        joined += file
        ends.append(len(joined))
    packed = PackedFile(
        path=path,
        data=np.frombuffer(joined, dtype=np.uint8),
        offsets=np.array(ends, dtype=np.int64),
        labels=labels_from(labels if isinstance(labels, Tensor) else np.asarray(labels), path),
        class_names=given["class_names"],
        names=given.get("name"),
        split=np.array(given["split"]) if "split" in given else None,
        texts=given.get("text"),
    )
    with written_whole(path) as file:
        np.savez(file, **_numbers(packed), **stored)


def _numbers(packed: PackedFile) -> dict[str, np.ndarray]:
    small = np.int16 if len(packed.class_names) <= 2**15 else np.int32
    label = packed.labels.numpy()
    return {
        "data": packed.data,
        "offsets": packed.offsets,
        "label": label.astype(small) if label.ndim == 1 else label,
    }


def _jpeg_files(
    images: Iterable[Tensor | Image.Image], quality: int, names: Sequence[str], path: str | os.PathLike[str]
) -> Iterator[bytes]:
    position, image = 0, None
    try:
        for image in images:
            yield jpeg_file(image, quality)
            position, image = position + 1, None  # where the next one cannot be given, its file name is not this one's
    except Exception as error:  # of a damaged picture, and of a generator that opens it, in a dozen types
        name = names[position] if position < len(names) else os.fsdecode(getattr(image, "filename", ""))
        what = f"{error}" if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{where(Path(path), position, name)} cannot be stored: {what}") from error
