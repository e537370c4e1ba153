"""Packs MS-COCO as deep hashing uses it, where `robret_lib.data.load("coco")` finds it.

The set is Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014): of the photographs of 2014 to train and
to validate with, the 122,218 that show at least one of its 80 kinds of objects, crowds of them included. The labels are
in the order of their names, as in the published lists.

The published split is that of HashNet, https://github.com/thuml/HashNet, folder pytorch/data/coco, with test.txt,
train.txt and database.txt; ProS-GAN, CgAT and SAAT have the same one in another form. The lists of DeepHash-pytorch are
as long and are other ones: say which you took. Put them into the folder coco below the data root.

Terms: the annotations are under CC BY 4.0; the photographs are of Flickr, under the license that each owner chose.
Nothing of the set is part of this project, nor is the packed file, which stays on your machine.

Loaded at 256 pixels, the whole set takes 24 GB of memory: 122,218 images of 3 x 256 x 256 bytes.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np

from official import main
from official_files import Piece, Read, SourceError
from official_hashing import Annotations, HashingForm, HashingSet
from split_drawing import anywhere
from split_lists import Sizes

PARTS = ("train2014", "val2014")
Understood = TypeVar("Understood")


def annotations(read: Read) -> Annotations:
    """What the two files of annotated objects say of the photographs that show one."""
    return everything(read).complete()


def everything(read: Read) -> Annotations:
    """What they say of all photographs, of a part in the order of their numbers.

    Raises:
        SourceError: if a file cannot be understood, or they do not fit together.
    """
    names, labels, class_names = [], [], None
    for part in PARTS:
        member = f"annotations/instances_{part}.json"
        part_names, part_labels, part_class_names = understood(read, member, partial(objects, part))
        if class_names not in (None, part_class_names):
            raise SourceError(f"{member} has other categories than that of {PARTS[0]}")
        names, labels, class_names = names + part_names, [*labels, part_labels], part_class_names
    return Annotations(names, names, np.concatenate(labels), class_names)


def understood(read: Read, member: str, of: Callable[[dict[str, Any]], Understood]) -> Understood:
    """What is made of a file of annotations.

    Raises:
        SourceError: if it is damaged, or lacks something: as where an object is of no category or in no photograph.
    """
    ((_, content),) = read([member])
    try:
        return of(json.loads(content))
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{member} cannot be understood ({type(error).__name__}: {error})") from error


def files_of(part: str, said: dict[str, Any]) -> dict[int, str]:
    """Where the photographs of a part are, by their numbers."""
    return {image["id"]: f"{part}/{image['file_name']}" for image in said["images"]}


def objects(part: str, said: dict[str, Any]) -> tuple[list[str], np.ndarray, list[str]]:
    """The photographs of a part, in the order of their numbers; their labels; the class names."""
    class_names = sorted(category["name"] for category in said["categories"])
    columns = {category["id"]: class_names.index(category["name"]) for category in said["categories"]}
    files = files_of(part, said)
    rows = {number: row for row, number in enumerate(sorted(files))}
    labels = np.zeros((len(rows), len(class_names)), np.uint8)
    for thing in said["annotations"]:
        labels[rows[thing["image_id"]], columns[thing["category_id"]]] = 1
    return [files[number] for number in rows], labels, class_names


HOST = "http://images.cocodataset.org"
PIECES = (
    Piece(
        "annotations_trainval2014.zip",
        unpacked="annotations",
        checksum="sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
        size=252_872_794,
        urls=(f"{HOST}/annotations/annotations_trainval2014.zip",),
    ),
    Piece(
        "train2014.zip",
        unpacked="train2014",
        checksum="sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        size=13_510_573_713,
        urls=(f"{HOST}/zips/train2014.zip",),
    ),
    Piece(
        "val2014.zip",
        unpacked="val2014",
        checksum="sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        size=6_645_013_297,
        urls=(f"{HOST}/zips/val2014.zip",),
    ),
)
COCO = HashingSet(
    name="coco",
    title="MS-COCO",
    layouts=(HashingForm(PIECES, annotations),),
    classes=80,
    sizes=Sizes(images=122_218, query=5_000, train=10_000, distinct_train=10_000),
    draw=anywhere,
    by_hand="Its page, https://cocodataset.org/#download, links to the archives of 2014.",
    folders=("coco",),
)

if __name__ == "__main__":
    sys.exit(main(COCO))
