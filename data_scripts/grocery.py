"""Makes the small grocery set of this repository from a copy of the official one, so that anyone can check it.

    python grocery.py               says where the set lies; it is part of the library, there is nothing to get
    python grocery.py CHECKOUT      makes it again from a checkout of the official repository

The official set is Klasson, Zhang and Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
Labels" (WACV 2019): https://github.com/marcusklasson/GroceryStoreDataset, license MIT. Of its 81 classes the small set
takes the 40 with the most photographs, and of each class 16, spread evenly over its list in order of their names. Every
second class trains, the others are searched. No network and no person had a hand in the choice.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library of this checkout, whatever is installed

from members import add_members
from robret_lib import data
from robret_lib.data.texts import encoded

CLASSES, PHOTOGRAPHS = 40, 16
SIDE, QUALITY = 96, 76
CITATION = (
    "Marcus Klasson, Cheng Zhang and Hedvig Kjellström: A Hierarchical Grocery Store Image Dataset with Visual and "
    "Semantic Labels. IEEE Winter Conference on Applications of Computer Vision (WACV), 2019."
)
PARTS = ("train.txt", "val.txt", "test.txt")


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Make the small grocery set (3 MB) from the official one.")
    parser.add_argument("checkout", type=Path, nargs="?", help="of the official repository")
    parser.add_argument("--output", type=Path, default=data.GROCERY, help="the file (now: %(default)s)")
    options = parser.parse_args(arguments)
    if options.checkout is None:
        print(f"The grocery set is part of the library: {data.GROCERY}")
        return 0
    try:
        photographs = make(options.checkout, options.output)
    except (OSError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {photographs} photographs, {options.output.stat().st_size:,} bytes")
    return 0


def make(checkout: Path, output: Path) -> int:
    """Writes the set; returns how many photographs it holds.

    Raises:
        OSError: if a file of the official set is missing, or the output cannot be written.
    """
    names, coarse_names, coarse_of = class_table(checkout / "dataset" / "classes.csv")
    listed = photographs_by_class(checkout / "dataset")
    largest = sorted(listed, key=lambda number: (-len(listed[number]), number))[:CLASSES]
    chosen = {number: spread_evenly(listed[number], PHOTOGRAPHS) for number in sorted(largest)}
    paths = [path for paths in chosen.values() for path in paths]
    labels = np.repeat(np.arange(len(chosen)), [len(paths) for paths in chosen.values()])
    data.write_packed(
        output,
        (small(checkout / "dataset" / path) for path in tqdm(paths, desc="photographs")),
        labels.tolist(),
        [names[number] for number in chosen],
        names=paths,
        split=["test" if label % 2 else "train" for label in labels],
        quality=QUALITY,
    )
    kept = sorted({coarse_of[number] for number in chosen})
    coarse = np.array([kept.index(coarse_of[number]) for number in chosen], np.int16)
    add_members(
        output,
        coarse_label=coarse[labels],
        coarse_class_names=encoded([coarse_names[number] for number in kept], "coarse_class_names", output),
        license=encoded([(checkout / "LICENSE").read_text()], "license", output),
        citation=encoded([CITATION], "citation", output),
    )
    return len(paths)


def class_table(path: Path) -> tuple[dict[int, str], dict[int, str], dict[int, int]]:
    """The names of the fine and of the coarse classes, and the coarse class of each fine one."""
    names, coarse_names, coarse_of = {}, {}, {}
    with path.open(newline="") as file:
        for name, number, coarse_name, coarse, *_ in list(csv.reader(file))[1:]:
            names[int(number)], coarse_names[int(coarse)] = name, coarse_name
            coarse_of[int(number)] = int(coarse)
    return names, coarse_names, coarse_of


def photographs_by_class(folder: Path) -> dict[int, list[str]]:
    """The paths of each class in order of their names, over all three parts of the official split."""
    found = defaultdict(list)
    for part in PARTS:
        for line in (folder / part).read_text().splitlines():
            path, number, _ = line.split(",")
            found[int(number)].append(path.strip())
    return {number: sorted(paths) for number, paths in found.items()}


def spread_evenly(paths: list[str], number: int) -> list[str]:
    """As many of them, one from the middle of each stretch of equal length."""
    return [paths[int((place + 0.5) * len(paths) / number)] for place in range(number)]


def small(path: Path) -> Image.Image:
    """The photograph with its short side reduced."""
    image = Image.open(path)
    factor = SIDE / min(image.size)
    return image.resize([round(factor * side) for side in image.size], Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
