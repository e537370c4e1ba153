"""Packs MS-COCO with the captions of its photographs, where `robret_lib.data.load("coco_captions")` finds it.

All 123,287 photographs of 2014 to train and to validate with, also those that show none of the 80 kinds of objects and
that `coco` leaves out. A text is the captions of a photograph in the order of their numbers, joined by blanks; there
are five, and where there are more, the first five stay.

The published splits were drawn by chance: 5,000 queries, 10,000 to train with, as in BadCM. Without lists in the folder
coco_captions below the data root, the script draws one of its own of that size. Some works ask with 2,000.

The archives are those of `coco`, which says on which terms; they may lie in the folder coco.

Loaded at 256 pixels, the whole set takes 26 GB of memory: 123,287 images of 3 x 256 x 256 bytes, those of train twice.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import coco
from official import main
from official_files import Read, SourceError
from official_hashing import Annotations, HashingForm
from split_lists import Sizes

CAPTIONS = 5  # of a photograph


def annotations(read: Read) -> Annotations:
    """What the files of objects and of captions say of all photographs.

    Raises:
        SourceError: if a file cannot be understood, or a photograph has no caption.
    """
    everything, texts = coco.everything(read), {}
    for part in coco.PARTS:
        texts |= coco.understood(read, f"annotations/captions_{part}.json", partial(captions, part))
    if missing := [name for name in everything.names if not texts.get(name)]:
        raise SourceError(f"{len(missing):,} photographs have no caption, the first is {missing[0]}")
    return everything._replace(texts=[texts[name] for name in everything.names])


def captions(part: str, said: dict[str, Any]) -> dict[str, str]:
    """The texts of the photographs of a part, by their names."""
    files, found = coco.files_of(part, said), defaultdict(list)
    for caption in sorted(said["annotations"], key=itemgetter("id")):
        found[files[caption["image_id"]]].append(" ".join(caption["caption"].split()))
    return {name: " ".join(texts[:CAPTIONS]) for name, texts in found.items()}


COCO_CAPTIONS = replace(
    coco.COCO,
    name="coco_captions",
    title="MS-COCO with captions",
    layouts=(HashingForm(coco.PIECES, annotations),),
    sizes=Sizes(images=123_287, query=5_000, train=10_000, distinct_train=10_000),
    with_texts=True,
    folders=("coco_captions", "coco"),
)

if __name__ == "__main__":
    sys.exit(main(COCO_CAPTIONS))
