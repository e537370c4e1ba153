"""Packs Stanford Online Products, photographs of things for sale, where `robret_lib.data.load("sop")` finds it.

The set is Oh Song, Xiang, Jegelka and Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding" (CVPR
2016): 120,053 photographs of 22,634 products. Ebay_train.txt and Ebay_test.txt divide the products. They count images
and classes through from the first file to the second, so a test image's number is not its place in the test set:
nothing here is looked up by such a number.

Terms: the archive has a LICENSE file of its own, said to be MIT, which can be about the lists only. The photographs
are from listings on eBay and belong to those who took them; they are used for research. Nothing of the set is part of
this project, nor is the packed file, which stays on your machine.

Loaded at 256 pixels, the whole set takes 24 GB of memory: 120,053 images of 3 x 256 x 256 bytes.
"""

import sys

from official import Layout, Listing, OfficialSet, Part, Photograph, main, table, whole_number
from official_files import Piece

TOP = "Stanford_Online_Products"
LISTS = {split: f"{TOP}/Ebay_{split}.txt" for split in ("train", "test")}


def listing(texts: dict[str, bytes]) -> Listing:
    """What the lists of the archive say: a heading, then lines of ``<image> <class> <category> <file>``."""
    photographs, class_names = [], {}
    for split, member in LISTS.items():
        for _, class_number, _, name in table(texts, member, 4)[1:]:
            number = whole_number(class_number, member)
            photographs.append(Photograph(name, number, split))
            class_names[number] = f"{name.partition('_final/')[0]} {number}"
    return Listing(photographs, [class_names[number] for number in sorted(class_names)], f"{TOP}/")


ARCHIVE = Piece(
    "Stanford_Online_Products.zip",
    unpacked=TOP,
    checksum="sha256:b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
    size=3_083_860_082,
    urls=(
        "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&confirm=t",
        "ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
    ),
)
SOP = OfficialSet(
    name="sop",
    title="Stanford Online Products",
    layouts=(Layout((ARCHIVE,), tuple(LISTS.values()), listing),),
    train=Part(59_551, 11_318),
    test=Part(60_502, 11_316),
    by_hand=(
        "Its page is https://cvgl.stanford.edu/projects/lifted_struct/, and the authors' repository, which links to\n"
        "  the archive, https://github.com/rksltnl/Deep-Metric-Learning-CVPR16."
    ),
)

if __name__ == "__main__":
    sys.exit(main(SOP))
