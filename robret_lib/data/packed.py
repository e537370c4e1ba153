"""The storage of every prepared color set: one .npz that holds its photographs as JPEG files, end to end.

=============== ===========================  ==============================================================
member          type                         meaning
=============== ===========================  ==============================================================
``data``        uint8 ``[bytes]``            all JPEG files, one after the other
``offsets``     int64 ``[N + 1]``            image i is ``data[offsets[i]:offsets[i + 1]]``
``label``       int16 ``[N]``                class number from 0; or uint8 ``[N, classes]`` of zeros and ones
``class_names`` bytes ``[classes]``          UTF-8, for the whole label space
``name``        bytes ``[N]``, optional      where the image came from; UTF-8, or the bytes of a file name
``split``       bytes ``[N]``, optional      ``train`` and ``test``, or ``train``, ``query`` and ``database``
``text``        bytes ``[N]``, optional      what is said of the image, in UTF-8
=============== ===========================  ==============================================================

Other members may stand beside these. Nothing is pickled.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from robret_lib.data.errors import DataError
from robret_lib.data.labels import check_label_range, kept_labels
from robret_lib.data.pictures import as_shown
from robret_lib.data.texts import decoded, printable

SPLIT_VALUES = ({"train", "test"}, {"train", "query", "database"})


@dataclass(frozen=True, eq=False)
class PackedFile:
    """A packed set in memory, its images still compressed; the members are those of the module's table.

    Raises:
        DataError: if the members do not fit together.
    """

    path: Path
    data: np.ndarray
    offsets: np.ndarray
    labels: Tensor
    class_names: tuple[str, ...]
    names: tuple[str, ...] | None = None
    split: np.ndarray | None = None
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_offsets()
        members = {"label": self.labels, "name": self.names, "split": self.split, "text": self.texts}
        for what, values in members.items():
            if values is not None and len(values) != len(self):
                raise DataError(f"{self.path}: {len(self)} images, but {what!r} has {len(values)} entries")
        check_label_range(self.labels, len(self.class_names), str(self.path))
        if self.split is not None and set(self.split.tolist()) not in SPLIT_VALUES:
            allowed = " or ".join(str(sorted(values)) for values in SPLIT_VALUES)
            raise DataError(f"{self.path}: 'split' holds {sorted(set(self.split.tolist()))}; expected {allowed}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _check_offsets(self) -> None:
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise DataError(f"{self.path}: 'data' is {self.data.dtype} {self.data.shape}; expected uint8 [bytes]")
        if self.offsets.ndim != 1 or self.offsets.dtype.kind not in "iu":
            raise DataError(
                f"{self.path}: 'offsets' is {self.offsets.dtype} {self.offsets.shape}; expected int64 [N + 1]"
            )
        if len(self.offsets) < 2:
            raise DataError(f"{self.path} holds no images")
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, len(self.data)) or (self.offsets[1:] <= self.offsets[:-1]).any():
            raise DataError(f"{self.path}: 'offsets' must rise strictly from 0 to the {len(self.data)} bytes of 'data'")

    def smallest_side(self) -> int:
        """The smallest height or width of any image, in pixels (reads the JPEG headers only)."""
        return self.smallest()[0]

    def smallest(self) -> tuple[int, int]:
        """The smallest height or width of any image, in pixels, and the position of the first image that has it."""
        return min((min(self._open(position).size), position) for position in range(len(self)))

    def decode(self, positions: Sequence[int] | np.ndarray, size: int, progress: bool = False) -> Tensor:
        """The chosen images as they look, see `robret_lib.data.pictures.as_shown`; as squares, whatever their aspect.

        Args:
            positions: which images, in the order wanted.
            size: side in pixels; images of another size are resized (bicubic).
            progress: show a bar.

        Returns:
            uint8 ``[len(positions), 3, size, size]``.

        Raises:
            DataError: if an image does not decode; it is named.
        """
        images = np.empty((len(positions), 3, size, size), dtype=np.uint8)
        bar = tqdm(positions, desc=f"decoding {self.path.stem}", disable=not progress)
        for row, position in enumerate(bar):
            image = self._open(position)
            try:
                images[row] = squared(as_shown(image), size).transpose(2, 0, 1)
            except Exception as error:  # damaged bytes surface as a dozen types
                raise DataError(f"{self._where(position)} does not decode: {error}") from error
        return torch.from_numpy(images)

    def _open(self, position: int) -> Image.Image:
        compressed = self.data[self.offsets[position] : self.offsets[position + 1]].tobytes()
        try:
            # Pillow refuses above its limit, for files from elsewhere; what it only warns of may have been written here
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                return Image.open(io.BytesIO(compressed), formats=["JPEG"])
        except Exception as error:  # damaged bytes surface as a dozen types
            raise DataError(f"{self._where(position)} is not a usable JPEG file: {error}") from error

    def _where(self, position: int) -> str:
        return where(self.path, position, None if self.names is None else self.names[position])


def where(path: Path, position: int, name: str | None) -> str:
    """How messages name an image of a packed file; the name may be unknown."""
    return f"{path}: image {position}" + (f" ({printable(name)})" if name else "")


def squared(image: Image.Image, size: int) -> np.ndarray:
    """The image as a square of ``size`` pixels: uint8 ``[size, size]`` or ``[size, size, 3]``."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def read_packed(path: Path) -> PackedFile:
    """Reads a packed file whole, its images still compressed.

    Raises:
        DataError: if the file is damaged, a member is missing, or the members do not fit together.
    """
    members = _read_members(path)
    for member in ("data", "offsets", "label", "class_names"):
        if member not in members:
            raise DataError(f"{path}: member {member!r} is missing; it holds {sorted(members) or 'nothing'}")
    return PackedFile(
        path=path,
        data=members["data"],
        offsets=members["offsets"],
        labels=labels_from(members["label"], path),
        class_names=decoded(members["class_names"], "class_names", path),
        names=decoded(members["name"], "name", path) if "name" in members else None,
        split=np.array(decoded(members["split"], "split", path)) if "split" in members else None,
        texts=decoded(members["text"], "text", path) if "text" in members else None,
    )


def _read_members(path: Path) -> dict[str, np.ndarray]:
    """Reads every member: an optional one whose name was altered must not pass for absent."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if any(entry.comment for entry in archive.zip.infolist()):  # numpy writes none
                raise ValueError("a comment in the archive's directory may hide members")
            return {member: archive[member] for member in archive.files}
    except Exception as error:  # damaged bytes surface as a dozen types, from BadZipFile to MemoryError
        raise DataError(
            f"{path} cannot be read as a packed .npz: truncated, altered or of another format "
            f"({type(error).__name__}: {error}); fetch or prepare it again"
        ) from error


def labels_from(given: np.ndarray | Tensor, path: Path) -> Tensor:
    """Labels as `PackedFile` holds them, see `robret_lib.data.labels.kept_labels`.

    Raises:
        DataError: if they are no labels; it begins with ``path``.
    """
    try:
        return kept_labels(given.cpu() if isinstance(given, Tensor) else _tensor(given))
    except DataError as error:
        raise DataError(f"{path}: 'label': {error}") from error


def _tensor(given: np.ndarray) -> Tensor:
    if given.dtype.kind not in "biuf" or given.dtype.itemsize > 8:
        raise DataError(f"{given.dtype} of shape {given.shape}: expected numbers")
    return torch.from_numpy(np.array(given, given.dtype.newbyteorder("=")))  # a copy, where it is read-only
