"""Packs MIRFLICKR-25K, in deep hashing called FLICKR-25K, where `robret_lib.data.load("flickr25k")` finds it.

The set is Huiskes and Lew, "The MIR Flickr Retrieval Evaluation" (MIR 2008): 25,000 photographs. Its 38 labels are all
annotation files: 24 concepts, and of 14 of them a stricter version, ``_r1``. Work on images and texts takes the 24, as
`flickr25k_tags` does.

419 photographs have no label, 38 of them queries of the published split. They stay, as in the published code: such a
query finds nothing, so the mean average precision cannot exceed 97.8 %.

The published split is that of ProS-GAN, https://github.com/xunguangwang/ProS-GAN, folder data/FLICKR-25K, which CgAT
and SAAT use too. Put its text files into the folder flickr25k below the data root. Its list to train with was drawn
with replacement, 5,000 rows of 4,496 photographs. A packed file holds a photograph once, so there train has 4,496;
without the lists it has 5,000. The lists of DeepHash-pytorch, of 1,000 queries, are another split and are refused.

Terms: the photographs are under Creative Commons licenses, each named with its author in meta/license of the archive;
to show one, give credit. Nothing of the set is part of this project, nor is the packed file, which stays on your
machine.
"""

import sys
from collections.abc import Sequence

import numpy as np

from official import main, whole_number
from official_files import Piece, Read, SourceError
from official_hashing import Annotations, HashingForm, HashingSet
from split_drawing import anywhere
from split_lists import Sizes

PHOTOGRAPHS = 25_000
CONCEPTS = (
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport"),
    *("tree", "water"),
)
STRICTER = (
    *("baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people", "portrait", "river"),
    *("sea", "tree"),
)
CLASSES = tuple(sorted((*CONCEPTS, *(f"{concept}_r1" for concept in STRICTER))))
ANNOTATIONS = "mirflickr25k_annotations_v080"


def annotations(read: Read, classes: Sequence[str] = CLASSES) -> Annotations:
    """What the annotation files say, each a list of the numbers of photographs that have the label."""
    members = {f"{ANNOTATIONS}/{name}.txt": column for column, name in enumerate(classes)}
    labels = np.zeros((PHOTOGRAPHS, len(classes)), np.uint8)
    for member, content in read(list(members)):
        labels[[number - 1 for number in numbers(content, member)], members[member]] = 1
    names = [f"mirflickr/im{number}.jpg" for number in range(1, PHOTOGRAPHS + 1)]
    return Annotations(names, names, labels, classes)


def numbers(content: bytes, member: str) -> list[int]:
    """The numbers of photographs in an annotation file.

    Raises:
        SourceError: if one is none of a photograph.
    """
    found = [whole_number(word, member) for word in content.decode(errors="replace").split()]
    if strangers := [number for number in found if not 1 <= number <= PHOTOGRAPHS]:
        raise SourceError(f"{member} has photograph {strangers[0]}; expected 1 to {PHOTOGRAPHS:,}")
    return found


HOST = "press.liacs.nl/mirflickr/mirflickr25k.v3b"
PIECES = (
    Piece(
        "mirflickr25k_annotations_v080.zip",
        unpacked=ANNOTATIONS,
        checksum="md5:aa0138c79892b1b670184d142380948f",
        size=207_220,
        urls=tuple(f"{scheme}://{HOST}/mirflickr25k_annotations_v080.zip" for scheme in ("https", "http")),
    ),
    Piece(
        "mirflickr25k.zip",
        unpacked="mirflickr",
        checksum="md5:a23d0a8564ee84cda5622a6c2f947785",
        size=3_069_184_257,
        urls=tuple(f"{scheme}://{HOST}/mirflickr25k.zip" for scheme in ("https", "http")),
    ),
)
FLICKR25K = HashingSet(
    name="flickr25k",
    title="FLICKR-25K",
    layouts=(HashingForm(PIECES, annotations),),
    classes=len(CLASSES),
    sizes=Sizes(images=PHOTOGRAPHS, query=1_700, train=5_000, distinct_train=4_496),
    draw=anywhere,
    marks=117_906,  # counted in the published lists, as are the 4,496
    by_hand=(
        "Its page, https://press.liacs.nl/mirflickr/mirdownload.html, links to the archives. Where their addresses\n"
        "  have moved, it names the new ones. The annotations unpack into no folder of their own: make one for them."
    ),
    folders=("flickr25k",),
)

if __name__ == "__main__":
    sys.exit(main(FLICKR25K))
