"""Packs CUB-200-2011, photographs of birds, where `robret_lib.data.load("cub")` finds it.

The set is Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset" (technical report
CNS-TR-2011-001, California Institute of Technology, 2011): 11,788 photographs of 200 classes. Metric learning trains on
classes 1 to 100 and searches classes 101 to 200; the split in train_test_split.txt is for classification, and is not
used.

Terms: the archive comes without a license. The photographs were found on Flickr and belong to those who took them; they
are used for research and education that is not commercial. Nothing of the set is part of this project, nor is the
packed file, which stays on your machine.

Some of the photographs are also in ImageNet, so a network with ImageNet weights may have seen birds that are searched.
"""

import sys

from official import Layout, Listing, OfficialSet, Part, Photograph, main, table, whole_number
from official_files import Piece, SourceError

TRAIN_CLASSES = 100  # the first ones; the others are searched
TOP = "CUB_200_2011"
CLASSES, IMAGES, LABELS = (f"{TOP}/{name}.txt" for name in ("classes", "images", "image_class_labels"))


def listing(texts: dict[str, bytes]) -> Listing:
    """What the lists say, in lines of ``<class> <its name>``, ``<image> <its file>`` and ``<image> <its class>``."""
    numbers = dict(table(texts, LABELS, 2))
    images = table(texts, IMAGES, 2)
    if sorted(numbers) != sorted(image for image, _ in images):
        raise SourceError(f"{IMAGES} and {LABELS} are not about the same images")
    photographs = [photograph(name, whole_number(numbers[image], LABELS)) for image, name in images]
    return Listing(photographs, [name for _, name in table(texts, CLASSES, 2)], f"{TOP}/images/")


def photograph(name: str, number: int) -> Photograph:
    """A photograph of a class, in the part that its class number says."""
    return Photograph(name, number, "train" if number <= TRAIN_CLASSES else "test")


ARCHIVE = Piece(
    "CUB_200_2011.tgz",
    unpacked=TOP,
    checksum="sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
    size=1_150_585_339,
    urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
)
CUB = OfficialSet(
    name="cub",
    title="CUB-200-2011",
    layouts=(Layout((ARCHIVE,), (CLASSES, IMAGES, LABELS), listing),),
    train=Part(5_864, 100),
    test=Part(5_924, 100),
    by_hand="Its page, https://www.vision.caltech.edu/datasets/cub_200_2011/, links to the archive.",
)

if __name__ == "__main__":
    sys.exit(main(CUB))
