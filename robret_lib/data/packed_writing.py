"""Writes the storage format of `robret_lib.data.packed`."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.packed import PackedFile, labels_from
from robret_lib.files import written_whole


def write_packed(
    path: str | os.PathLike[str],
    images: Iterable[Tensor | Image.Image],
    labels: Tensor | Sequence[int],
    class_names: Sequence[str],
    names: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    quality: int = 95,
) -> None:
    """Writes a packed file that `robret_lib.data.load` reads, whole or not at all.

    Args:
        path: ends in .npz; its folder is made if need be, a file already there is replaced.
        images: uint8 tensors ``[3, H, W]`` or Pillow images, of any sizes; a generator will do, one is held
            at a time.
        labels: ``[N]`` class numbers from 0, or multi-hot ``[N, classes]`` of at least two classes, in any dtype.
        class_names: one a class.
        names: one an image.
        split: one an image: train and test, or train, query and database.
        quality: of the JPEG files, 1 to 100; color is kept at full resolution.

    Raises:
        DataError: if these do not fit together.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DataError(f"{path} must end in .npz to be found again")
    files = [_jpeg(image, quality) for image in images]
    packed = PackedFile(
        path=path,
        data=np.frombuffer(b"".join(files), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, files)], dtype=np.int64),
        labels=labels_from(labels if isinstance(labels, Tensor) else np.asarray(labels), path),
        class_names=tuple(class_names),
        names=None if names is None else tuple(names),
        split=None if split is None else np.array(split),
    )
    with written_whole(path) as file:
        np.savez(file, **_members(packed))


def _members(packed: PackedFile) -> dict[str, np.ndarray]:
    small = np.int16 if len(packed.class_names) <= 2**15 else np.int32
    label = packed.labels.numpy()
    texts = {"class_names": packed.class_names, "name": packed.names, "split": packed.split}
    return {
        "data": packed.data,
        "offsets": packed.offsets,
        "label": label.astype(small) if label.ndim == 1 else label,
        **{
            member: np.array([text.encode() for text in values])
            for member, values in texts.items()
            if values is not None
        },
    }


def _jpeg(image: Tensor | Image.Image, quality: int) -> bytes:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise DataError(f"an image is {image.dtype} {tuple(image.shape)}; expected uint8 [3, height, width]")
        image = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
