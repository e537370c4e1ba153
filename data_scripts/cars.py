"""Packs CARS-196, also called Stanford Cars, where `robret_lib.data.load("cars")` finds it.

The set is Krause, Stark, Deng and Fei-Fei, "3D Object Representations for Fine-Grained Categorization" (3dRR workshop,
2013): 16,185 photographs of 196 classes. Metric learning trains on classes 1 to 98 and searches classes 99 to 196; the
halves "train" and "test" of the set itself are for classification, and are not used. It is around in two layouts with
the same photographs: one folder car_ims, or the two halves cars_train and cars_test.

Its official site is gone, see https://github.com/pytorch/vision/issues/7545, so nothing is fetched: the files must come
from a copy, and those that are not unpacked are compared with the checksums of the originals.

Terms: for research that is not commercial; the photographs belong to those who took them. Nothing of the set is part of
this project, nor is the packed file, which stays on your machine.
"""

import io
import sys

import numpy as np
from scipy.io import loadmat

from official import Layout, Listing, OfficialSet, Part, Photograph, main
from official_files import Piece, SourceError

TRAIN_CLASSES = 98  # the first ones; the others are searched
ONE_FOLDER = "cars_annos.mat"
CLASS_NAMES = "devkit/cars_meta.mat"
HALVES = {"cars_train": "devkit/cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}


def listing_of_one_folder(texts: dict[str, bytes]) -> Listing:
    """What cars_annos.mat says."""
    annotations = variable(texts, ONE_FOLDER, "annotations")
    photographs = photographs_of(annotations, "relative_im_path", ONE_FOLDER)
    return Listing(photographs, variable(texts, ONE_FOLDER, "class_names").tolist())


def listing_of_halves(texts: dict[str, bytes]) -> Listing:
    """What the development kit and the labels of the second half say."""
    photographs = []
    for folder, member in HALVES.items():
        photographs += photographs_of(variable(texts, member, "annotations"), "fname", member, f"{folder}/")
    return Listing(photographs, variable(texts, CLASS_NAMES, "class_names").tolist())


def photographs_of(annotations: np.ndarray, path: str, member: str, folder: str = "") -> list[Photograph]:
    """The photographs of a list, each in the part that its class number says.

    Raises:
        SourceError: if the list has no such fields, as where the labels were left out.
    """
    for field in (path, "class"):
        if field not in (annotations.dtype.names or ()):
            raise SourceError(f"{member} has the fields {annotations.dtype.names}; expected {field!r} among them")
    numbers = [int(number) for number in annotations["class"]]
    splits = ["train" if number <= TRAIN_CLASSES else "test" for number in numbers]
    return [
        Photograph(f"{folder}{name}", *where) for name, *where in zip(annotations[path], numbers, splits, strict=True)
    ]


def variable(texts: dict[str, bytes], member: str, name: str) -> np.ndarray:
    """A variable of a MATLAB file, one entry a row.

    Raises:
        SourceError: if it is not there.
    """
    try:
        return np.atleast_1d(loadmat(io.BytesIO(texts[member]), squeeze_me=True)[name])
    except Exception as error:  # damaged bytes surface as a dozen types
        raise SourceError(f"{member}: {name!r} cannot be read ({type(error).__name__}: {error})") from error


ONE_FOLDER_PIECES = (
    Piece("cars_annos.mat", "cars_annos.mat", "md5:b407c6086d669747186bd1d764ff9dbc"),
    Piece("car_ims.tgz", "car_ims", "md5:d5c8f0aa497503f355e17dc7886c3f14"),
)
HALVES_PIECES = (
    Piece(
        "cars_test_annos_withlabels.mat",
        unpacked="cars_test_annos_withlabels.mat",
        checksum="sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        size=185_758,
    ),
    Piece(
        "car_devkit.tgz",
        unpacked="devkit",
        checksum="sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
        size=330_960,
    ),
    Piece(
        "cars_train.tgz",
        unpacked="cars_train",
        checksum="sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
        size=979_269_282,
    ),
    Piece(
        "cars_test.tgz",
        unpacked="cars_test",
        checksum="sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
        size=977_350_468,
    ),
)
CARS = OfficialSet(
    name="cars",
    title="CARS-196",
    layouts=(
        Layout(ONE_FOLDER_PIECES, (ONE_FOLDER,), listing_of_one_folder),
        Layout(HALVES_PIECES, (CLASS_NAMES, *HALVES.values()), listing_of_halves),
    ),
    train=Part(8_054, 98),
    test=Part(8_131, 98),
    by_hand=(
        "Its official site is gone. https://github.com/pytorch/vision/issues/7545 tells where copies are: the folders\n"
        "  cars_train and cars_test are in the data set jessicali9530/stanford-cars-dataset of Kaggle, and the two\n"
        "  small files that belong to them are linked there."
    ),
    folders=("cars", "stanford_cars"),
)

if __name__ == "__main__":
    sys.exit(main(CARS))
