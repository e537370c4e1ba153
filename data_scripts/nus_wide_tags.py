"""Packs the part of NUS-WIDE that hashing of images and texts uses, as `robret_lib.data.load("nus_wide_tags")`.

It is the part of `nus_wide`, TC-21, of the photographs that have a tag: 190,421 of 195,834. A text is the tags of a
photograph, joined by blanks, of the 1,000 frequent ones: ``AllTags1k.txt`` says which it has, ``TagList1k.txt`` what
they are called. The tags of ``All_Tags.txt``, looked up in that list, are other ones in 16 rows; the set that came with
Jiang and Li, "Deep Cross-Modal Hashing" (CVPR 2017), agrees with ``AllTags1k.txt``. (https://github.com/iTomxy/data,
folder nuswide, counted both, and the 190,421.) Works that report 195,834 pairs kept the photographs without a tag.

The published splits have 100 queries and 500 photographs to train with for each of the 21 labels. Without lists in the
folder nus_wide_tags below the data root, the script draws one of its own of that size. The set has photographs twice,
with labels that differ; they stay, as in published work.

Photographs, lists, their known defects and the terms are those of `nus_wide`; they may lie in the folder nus_wide. A
copy that lacks photographs of this part is refused.

``AllTags1k.txt`` takes 0.5 GB of memory while it is read. Loaded at 256 pixels, the whole set takes 40 GB.
"""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress

import nus_wide
from official import main
from official_files import Piece, Read, SourceError
from official_hashing import Annotations, HashingForm
from split_lists import Sizes

TAG_LIST, TAGS = "NUS_WID_Tags/TagList1k.txt", "NUS_WID_Tags/AllTags1k.txt"


def annotations(file_of: Callable[[str], str], read: Read) -> Annotations:
    """What ground truth and tags say of the photographs that show a frequent concept and have a tag.

    Args:
        file_of, read: as of `nus_wide.everything`.

    Raises:
        SourceError: if the tags are of another number of photographs, or make no sense.
    """
    everything, tags = nus_wide.everything(file_of, read), nus_wide.words(read, TAG_LIST)
    ((_, content),) = read([TAGS])
    texts = [text(row.split(), tags, number) for number, row in enumerate(io.BytesIO(content), 1) if row.strip()]
    if len(texts) != len(everything.names):
        raise SourceError(
            f"{TAGS} has {len(texts):,} rows; expected {len(everything.names):,}, as {nus_wide.IMAGE_LIST}"
        )
    return everything._replace(texts=texts).complete()


def text(marks: Sequence[bytes], tags: Sequence[str], number: int) -> str:
    """The tags that a row marks by 1.

    Raises:
        SourceError: if it has not a 0 or 1 for each; it is named by its number.
    """
    if len(marks) != len(tags) or not set(marks) <= {b"0", b"1"}:
        raise SourceError(f"row {number:,} of {TAGS} has {len(marks):,} marks; expected {len(tags):,}, each 0 or 1")
    return " ".join(compress(tags, (mark == b"1" for mark in marks)))


def with_tags(form: HashingForm, file_of: Callable[[str], str]) -> HashingForm:
    """A form of `nus_wide` with the tags added."""
    return HashingForm(
        (*form.pieces, Piece("NUS_WID_Tags.zip", unpacked="NUS_WID_Tags")), partial(annotations, file_of)
    )


IN_FOLDERS, IN_ONE_FOLDER = nus_wide.NUS_WIDE.layouts
NUS_WIDE_TAGS = replace(
    nus_wide.NUS_WIDE,
    name="nus_wide_tags",
    title="NUS-WIDE with tags",
    layouts=(with_tags(IN_FOLDERS, nus_wide.in_folders), with_tags(IN_ONE_FOLDER, nus_wide.in_one_folder)),
    sizes=Sizes(images=190_421, query=2_100, train=10_500, distinct_train=10_500),
    reduced=None,
    with_texts=True,
    folders=("nus_wide_tags", "nus_wide"),
)

if __name__ == "__main__":
    sys.exit(main(NUS_WIDE_TAGS))
