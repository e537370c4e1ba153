"""Where data sets come from: one `load` for all of them.

Fashion-MNIST is Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms" (2017); searching its test images in themselves is how the published ranking attacks
(RobRank) use it. The grocery photographs are Klasson, Zhang and Kjellström, "A hierarchical grocery store image dataset
with visual and semantic labels" (WACV 2019), a small part of them. The official sets of metric learning, CUB-200-2011,
CARS-196 and Stanford Online Products, are packed by a script each, and so are those of hashing, and OpenMoji, the
drawings with words that the chapter on images and texts uses; ``data_scripts/README.md`` says what they take.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from robret_lib.data.center_crop import center_crop, center_cropped
from robret_lib.data.errors import DataError
from robret_lib.data.hashing_split import hashing_split
from robret_lib.data.labels import check_labels, multi_hot, relevance, same_kind
from robret_lib.data.mixed import mixed
from robret_lib.data.names import PHOTOGRAPHS, check_name, no_such_set, official_name, packed_path
from robret_lib.data.packed import squared
from robret_lib.data.packed_splits import load_packed
from robret_lib.data.packed_writing import write_packed
from robret_lib.data.retrieval_data import Protocol, RetrievalData, Split, as_float
from robret_lib.folders import data_root

__all__ = [
    "FASHION_MNIST_SHA256",
    "GROCERY",
    "DataError",
    "Protocol",
    "RetrievalData",
    "Split",
    "as_float",
    "center_crop",
    "center_cropped",
    "check_labels",
    "check_name",
    "same_kind",
    "data_root",
    "fashion_mnist_folder",
    "hashing_split",
    "load",
    "mixed",
    "multi_hot",
    "official_name",
    "read_verified",
    "relevance",
    "write_packed",
]

# Of the unpacked files: the Debian package and the upstream host compress the same pixels differently.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
GROCERY = PHOTOGRAPHS / "grocery.npz"
"""40 classes of groceries, 16 photographs each, and their coarse classes; ``data_scripts/grocery.py`` made it."""

_FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SEARCHED_IMAGES = {"quick": 2_000, "full": None}  # per scale: at most so many queries and gallery images


def load(
    name: str | os.PathLike[str], scale: str = "quick", size: int | None = None, *, progress: bool = False
) -> RetrievalData:
    """A data set in the three roles of retrieval.

    Args:
        name: ``"fashion-mnist"``; ``"grocery"``, the photographs that are part of the library (`GROCERY`); or a
            packed .npz (see `write_packed`): its path, or the bare name of one in `data_root`, as ``"cub"``,
            ``"cars"``, ``"sop"``, ``"flickr25k"``, ``"nus_wide"`` (or ``"nus-wide"``), ``"coco"`` and, with texts,
            ``"openmoji"``, ``"flickr25k_tags"``, ``"nus_wide_tags"`` and ``"coco_captions"``, which the scripts of
            ``data_scripts`` make of the official sets.
        scale: ``"full"`` takes everything. ``"quick"`` keeps the whole of train and at most 2,000 queries and
            2,000 gallery images: of Fashion-MNIST the first 2,000 test images; of a packed file two images of
            every class in turn until the 2,000 are full, so that they still have matches (of multi-hot labels
            the first 2,000).
        size: side in pixels of the square images that come out, bicubic. Default: 28 for Fashion-MNIST, the
            smallest side found for a packed file. The aspect is not kept.
        progress: show a bar where it takes seconds.

    Returns:
        Images uint8 ``[N, 1, size, size]`` (Fashion-MNIST) or ``[N, 3, size, size]`` (packed), labels int64
        ``[N]`` or uint8 ``[N, classes]``, texts where the packed file has some. A packed file fills the roles by
        its ``split`` member; else by the pair of files it belongs to (``_train_`` and ``_test_`` in their names);
        else the first half of its classes trains and the second half is searched in itself. ``.protocol`` says
        which.

    Raises:
        DataError: if the set is not there (the message says how to get it), is damaged, or an argument is
            not allowed.
    """
    if scale not in _SEARCHED_IMAGES:
        raise DataError(f"scale {scale!r} is unknown; allowed: {', '.join(map(repr, _SEARCHED_IMAGES))}")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise DataError(f"size {size!r} is not a number of pixels; give a whole number from 1, or None")
    limit = _SEARCHED_IMAGES[scale]
    if name == "fashion-mnist":
        return _load_fashion_mnist(limit, size, progress)
    return load_packed(_find_packed(name), limit, size, progress)


def fashion_mnist_folder(root: Path) -> Path:
    """Where the four unpacked files lie below a data root; torchvision's ``FashionMNIST`` looks there too."""
    return root / "FashionMNIST" / "raw"


def read_verified(path: Path, sha256: str) -> bytes:
    """The bytes of a file, exactly those that were checked.

    Raises:
        DataError: if the file is missing or its sha256 differs; it is named.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path.name} is missing") from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path.name} is truncated or altered "
            f"({len(content):,} bytes, sha256 {found[:12]}..., expected {sha256[:12]}...)"
        )
    return content


def _load_fashion_mnist(limit: int | None, size: int | None, progress: bool) -> RetrievalData:
    folder = fashion_mnist_folder(data_root())
    try:
        files = {name: read_verified(folder / name, sha256) for name, sha256 in FASHION_MNIST_SHA256.items()}
    except DataError as error:
        raise DataError(
            f"Fashion-MNIST is not usable in {folder}: {error}. Run `make data DATASET=fashion-mnist`, "
            "or set ROBRET_DATA to the folder that holds FashionMNIST/raw"
        ) from error
    test = _idx_split(files, "t10k", size, progress, limit)
    return RetrievalData(
        name="fashion-mnist",
        train=_idx_split(files, "train", size, progress),
        query=test,
        gallery=test,
        class_names=_FASHION_MNIST_CLASSES,
        protocol=Protocol(
            name="test against itself",
            description=f"Each of {len(test):,} test images searches all others, of classes trained on.",
            self_excluded=True,
            class_disjoint=False,
        ),
    )


def _idx_split(files: dict[str, bytes], part: str, size: int | None, progress: bool, limit: int | None = None) -> Split:
    """Reads verified files: images ``[N, 28, 28]`` behind 16 bytes of header, labels ``[N]`` behind 8."""
    pixels = np.frombuffer(files[f"{part}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(files[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
    pixels, labels = pixels[:limit].copy(), labels[:limit].astype(np.int64)
    if size is not None:
        bar = tqdm(pixels, desc=f"resizing {part}", disable=not progress)
        pixels = np.stack([squared(Image.fromarray(image), size) for image in bar])
    return Split(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(labels))


def _find_packed(name: str | os.PathLike[str]) -> Path:
    path = packed_path(name)
    if not path.is_file():
        raise no_such_set(name)
    return path
