"""Packs the part of NUS-WIDE that deep hashing uses, TC-21, where `robret_lib.data.load("nus_wide")` finds it.

The set is Chua et al., "NUS-WIDE: A Real-World Web Image Database from National University of Singapore" (CIVR 2009):
269,648 photographs, 81 concepts. TC-21 is the 195,834 that show at least one of the 21 most frequent concepts.

The published split has 100 queries and 500 photographs to train with for each of the 21. Lists are in
https://github.com/xunguangwang/ProS-GAN, folder data/NUS-WIDE; CgAT and SAAT use these; those of DeepHash-pytorch,
folder data/nuswide_21, are as long and are other ones: say which you took. Put them into the folder nus_wide below the
data root. The sets named nuswide_21_m and nuswide_81_m there are of another copy, of 223,496 photographs.

The photographs are given on request only, so nothing is fetched, and no checksums are known: all counts are asserted.
They may lie in the folders of the official form, Flickr/actor/0001_2124494179.jpg, or in one, as in copies that are
around: images/0001_2124494179.jpg. Known defects:

* copies that lack photographs are said to be in circulation, one with 193,834, which is unverified. One of that size is
  taken as it is, and that is said; any other number is refused;
* Groundtruth/TrainTestLabels/Labels_lake_Train.txt has -1130179 in line 78,372; it is not read, only AllLabels is;
* some photographs, like albatross/0213_10341804.jpg, cannot be read by OpenCV. Pillow, used here, reads them.

Terms: academic use only, by the form that is signed to get the photographs; they belong to those who took them. Nothing
of the set is part of this project, nor is the packed file, which stays on your machine.

Loaded at 256 pixels, the whole set takes 38 GB of memory: 195,834 images of 3 x 256 x 256 bytes.
"""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from official import main
from official_files import Piece, Read, SourceError
from official_hashing import Annotations, HashingForm, HashingSet
from split_drawing import of_each_class
from split_lists import Sizes, file_name

FREQUENT = 21  # concepts
IMAGE_LIST, CONCEPT_LIST = "ImageList/Imagelist.txt", "ConceptsList/Concepts81.txt"


def annotations(file_of: Callable[[str], str], read: Read) -> Annotations:
    """What the ground truth says of the photographs that show a frequent concept; arguments as of `everything`."""
    return everything(file_of, read).complete()


def everything(file_of: Callable[[str], str], read: Read) -> Annotations:
    """Which photographs show which of the frequent concepts.

    Args:
        file_of: where a photograph is, given its name, as ``actor/0001_2124494179.jpg``.
        read: gives the files.
    """
    names = ["/".join(line.replace("\\", "/").split("/")[-2:]) for line in words(read, IMAGE_LIST)]
    concepts, shown = ground_truth(read, len(names))
    frequent = np.sort(np.argsort(-shown.sum(axis=1, dtype=np.int64), kind="stable")[:FREQUENT])
    return Annotations(names, [file_of(name) for name in names], shown[frequent].T, [concepts[row] for row in frequent])


def ground_truth(read: Read, images: int) -> tuple[list[str], np.ndarray]:
    """The concepts, and which images show them, uint8 ``[concepts, images]``."""
    concepts = words(read, CONCEPT_LIST)
    members = [f"Groundtruth/AllLabels/Labels_{concept}.txt" for concept in concepts]
    contents = dict(read(members))
    return concepts, np.stack([column(contents[member].split(), member, images) for member in members])


def column(marks: list[bytes], member: str, images: int) -> np.ndarray:
    """What a file says of a concept, a line of 0 or 1 an image, as uint8 ``[images]``.

    Raises:
        SourceError: if it is of another length, or has something else in it.
    """
    if len(marks) != images:
        raise SourceError(f"{member} has {len(marks):,} lines; expected {images:,}, as {IMAGE_LIST}")
    if strangers := set(marks) - {b"0", b"1"}:
        line = min(marks.index(stranger) for stranger in strangers)
        raise SourceError(
            f"{member} has {marks[line].decode(errors='replace')!r} in line {line + 1:,}; expected 0 or 1"
        )
    return np.array(marks, dtype="S1").view(np.uint8) - ord("0")


def words(read: Read, member: str) -> list[str]:
    """The words of a list, one a line."""
    ((_, content),) = read([member])
    return content.decode(errors="replace").split()


def in_folders(name: str) -> str:
    """Where a photograph is in the official form."""
    return f"Flickr/{name}"


def in_one_folder(name: str) -> str:
    """Where it is in copies that are around."""
    return f"images/{file_name(name)}"


LISTS = (
    Piece("Groundtruth.zip", unpacked="Groundtruth"),
    Piece("ConceptsList.zip", unpacked="ConceptsList"),
    Piece("ImageList.zip", unpacked="ImageList"),
)
NUS_WIDE = HashingSet(
    name="nus_wide",
    title="NUS-WIDE",
    layouts=(
        HashingForm((*LISTS, Piece("Flickr", unpacked="Flickr")), partial(annotations, in_folders)),
        HashingForm((*LISTS, Piece("images", unpacked="images")), partial(annotations, in_one_folder)),
    ),
    classes=FREQUENT,
    sizes=Sizes(images=195_834, query=2_100, train=10_500, distinct_train=10_500),
    draw=of_each_class,
    reduced=193_834,
    by_hand=(
        "The small archives are on its page,\n"
        "  https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html.\n"
        "  The photographs are sent to those who sign the form on that page, Agreement and Disclaimer, and mail it to\n"
        "  the address there. Where that is dead, https://github.com/NExTplusplus/NUS-WIDE calls itself the official\n"
        "  place. Of the photographs a folder is expected: Flickr with a folder a concept, or images with all of them."
    ),
    folders=("nus_wide",),
)

if __name__ == "__main__":
    sys.exit(main(NUS_WIDE))
