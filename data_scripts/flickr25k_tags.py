"""Packs MIRFLICKR-25K with the tags of its photographs, where `robret_lib.data.load("flickr25k_tags")` finds it.

It is the set that work on hashing of images and texts calls MIRFlickr-25K, after Jiang and Li, "Deep Cross-Modal
Hashing" (CVPR 2017): 24 labels, without the 14 stricter ones of `flickr25k`, and of the tags the 1,386 that
``doc/common_tags.txt`` lists, those of at least 20 photographs. A text is the tags of a photograph, joined by blanks.
Photographs without such a tag or without a label are left out, so that 20,015 of 25,000 stay.

The published splits were drawn by chance: 2,000 queries, 10,000 to train with. Without lists in the folder
flickr25k_tags below the data root, the script draws one of its own of that size. Some works train with 5,000.

The archives are those of `flickr25k`, which says on which terms; they may lie in the folder flickr25k.
"""

import sys
from dataclasses import replace

import flickr25k
from official import main, table
from official_files import Read, SourceError
from official_hashing import Annotations, HashingForm
from split_lists import Sizes

COMMON, TAGS = "mirflickr/doc/common_tags.txt", 1_386


def annotations(read: Read) -> Annotations:
    """What the annotation files and the tags say of the photographs that have both."""
    everything = flickr25k.annotations(read, flickr25k.CONCEPTS)
    common = common_tags(read)
    members = [f"mirflickr/meta/tags/tags{number}.txt" for number in range(1, len(everything.names) + 1)]
    texts = {member: text(content, common) for member, content in read(members)}
    return everything._replace(texts=[texts[member] for member in members]).complete()


def common_tags(read: Read) -> set[str]:
    """The tags that are kept.

    Raises:
        SourceError: if the list is another one.
    """
    tags = {tag for tag, _ in table(dict(read([COMMON])), COMMON, columns=2)}
    if len(tags) != TAGS:
        raise SourceError(f"{COMMON} has {len(tags):,} tags; expected {TAGS:,}")
    return tags


def text(content: bytes, common: set[str]) -> str:
    """The common tags of a photograph, given its file of tags, one a line."""
    tags = [line.strip() for line in content.decode(errors="replace").splitlines()]
    return " ".join(tag for tag in tags if tag in common)


FLICKR25K_TAGS = replace(
    flickr25k.FLICKR25K,
    name="flickr25k_tags",
    title="FLICKR-25K with tags",
    layouts=(HashingForm(flickr25k.PIECES, annotations),),
    classes=len(flickr25k.CONCEPTS),
    sizes=Sizes(images=20_015, query=2_000, train=10_000, distinct_train=10_000),
    marks=None,
    with_texts=True,
    folders=("flickr25k_tags", "flickr25k"),
)

if __name__ == "__main__":
    sys.exit(main(FLICKR25K_TAGS))
