"""What a data set is called, and where its packed file lies."""

import os
from pathlib import Path

from robret_lib.data.errors import DataError
from robret_lib.folders import data_root

PHOTOGRAPHS = Path(__file__).with_name("photographs")
"""The folder of the packed sets that are part of the library."""

OFFICIAL = (
    "cub",
    "cars",
    "sop",
    "flickr25k",
    "nus_wide",
    "coco",
    "openmoji",
    "flickr25k_tags",
    "nus_wide_tags",
    "coco_captions",
)
"""The sets that the scripts of ``data_scripts`` pack."""


def official_name(name: str | os.PathLike[str]) -> str:
    """The name of a set; an official one may have "-" for "_", as ``make data DATASET=nus-wide`` has it."""
    given = os.fspath(name)
    underscored = given.replace("-", "_")
    return underscored if underscored in OFFICIAL else given


def packed_path(name: str | os.PathLike[str]) -> Path:
    """Where the packed file of a set lies, or would lie: in the library, at the path itself, or in `data_root`."""
    given = Path(official_name(name)).expanduser()
    ours = PHOTOGRAPHS / f"{given}.npz"
    if ours.is_file():
        return ours
    return given if given.suffix == ".npz" else data_root() / f"{given}.npz"


def check_name(name: str | os.PathLike[str]) -> None:
    """Raise a DataError unless it is a known name, a path that ends in .npz, or a packed file that is there."""
    known = "fashion-mnist", *OFFICIAL
    if official_name(name) not in known and Path(name).suffix != ".npz" and not packed_path(name).is_file():
        raise no_such_set(name)


def no_such_set(name: str | os.PathLike[str]) -> DataError:
    """The error that names the file looked for, and all names that are known."""
    prepared = ", ".join(sorted(file.stem for file in data_root().glob("*.npz"))) or "none"
    official = f"{', '.join(map(repr, OFFICIAL[:-1]))} and {OFFICIAL[-1]!r}"
    return DataError(
        f"no data set {str(name)!r}: looked for the file {packed_path(name)}. Known are 'fashion-mnist', {official} "
        "(get one with `make data DATASET=cub`), 'grocery', the path of a packed .npz, and the packed files in "
        f"{data_root()} (now: {prepared}); set ROBRET_DATA if they lie elsewhere. A folder of photographs becomes one "
        "by `python -m robret_lib.data pack FOLDER`"
    )
