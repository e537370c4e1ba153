"""``python -m robret_lib.data pack FOLDER`` makes a data set of a reader's own photographs."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robret_lib.data import GROCERY, DataError
from robret_lib.data.folder_packing import default_output, pack_folder
from robret_lib.data.packed import PackedFile
from robret_lib.data.packed_splits import Part, Plan, plan_of
from robret_lib.data.texts import printable

TAKEN = ("fashion-mnist", GROCERY.stem)
"""Names that `robret_lib.data.load` does not look up among the packed files."""

LAYOUT = """\
Every subfolder of FOLDER is a class, with all photographs in it and below it:

  birds/robin/1.jpg
  birds/robin/summer/2.png
  birds/wren/3.jpg

The first half of the classes, by name, is then to train with, and the second half is searched in itself. To decide
that yourself, put the classes below the folders birds/train and birds/test, or birds/train, birds/query and
birds/database.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 for an error that it has printed, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        _pack(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; no file is left half-written", file=sys.stderr)
        return 130
    else:
        return 0
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m robret_lib.data", description="Make data sets of your own.")
    commands = parser.add_subparsers(dest="command", title="commands")
    pack = commands.add_parser(
        "pack",
        help="pack a folder of photographs, one subfolder a class",
        description="Pack a folder of photographs into one file, which robret_lib.data.load then finds by its name.",
        epilog=LAYOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack.add_argument("folder", metavar="FOLDER", type=Path, help="the folder; its name is that of the data set")
    pack.add_argument(
        "--output", metavar="FILE.npz", type=Path, help="the file to write (default: FOLDER's name in the data folder)"
    )
    pack.add_argument("--force", action="store_true", help="replace the file if it is there already")
    pack.add_argument(
        "--side",
        metavar="N",
        type=_at_least_1,
        default=256,
        help="reduce the shorter side to N pixels; the aspect stays, nothing is enlarged (default: %(default)s)",
    )
    pack.add_argument(
        "--quality", metavar="Q", type=_quality, default=90, help="of the JPEG files, 1 to 100 (default: %(default)s)"
    )
    pack.add_argument(
        "--unreadable",
        choices=("refuse", "skip"),
        default="refuse",
        help="where files are damaged or no images: list them and write nothing, or skip them (default: %(default)s)",
    )
    return parser


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)


def _pack(options: argparse.Namespace) -> None:
    output = options.output or default_output(options.folder)
    found_by_name = options.output is None and output.stem not in TAKEN and not output.stem.endswith(".npz")
    skipped = pack_folder(
        options.folder,
        output,
        options.side,
        options.quality,
        options.unreadable,
        options.force,
        progress=sys.stderr.isatty(),
    )
    for file in skipped:
        print(f"skipped {file}", file=sys.stderr)
    try:
        plan = plan_of(output)
    except DataError as error:
        raise DataError(f"{printable(str(output))} is written, but cannot be loaded: {error}") from error
    to_load = output.stem if found_by_name else str(output.absolute())
    print("\n".join(_summary(output, plan, len(skipped), options.side, to_load)))


def _summary(output: Path, plan: Plan, skipped: int, side: int, to_load: str) -> Iterator[str]:
    """What became of the folder, in lines."""
    file = next(part.file for part in (plan.train, plan.gallery) if part.file.path == output)
    left_out = f", {skipped:,} skipped" if skipped else ""
    everything = Part(file, np.arange(len(file)))
    yield f"packed {_count(everything)}{left_out}, {output.stat().st_size:,} bytes: {printable(str(output))}"
    for role, part in (("train", plan.train), ("query", plan.query), ("gallery", plan.gallery)):
        yield f"  {role:<8} {_count(part)}"
    yield plan.protocol.description
    smallest, position = file.smallest()
    because = f", the smallest side there is ({_name(file, position)})" if smallest < side else ""
    yield f"All are loaded as squares of {smallest} pixels{because}; data.load(..., size=N) gives others."
    yield from (f"note: {note}" for note in _notes(plan))
    yield "Load it:"
    yield ""
    yield "    from robret_lib import data"
    yield f"    photographs = data.load({to_load!r}, scale='full')"


def _notes(plan: Plan) -> Iterator[str]:
    """What makes the numbers of a search mean less than they seem to."""
    counts = np.bincount(plan.gallery.labels, minlength=len(plan.gallery.file.class_names))
    others = counts[plan.query.labels] - plan.protocol.self_excluded
    if alone := int((others == 0).sum()):
        yield f"queries without another image of their class in the gallery, so without a right answer: {alone:,}"
    if np.count_nonzero(counts) == 1:
        yield "the gallery holds one class only, so the answers are all right or all wrong"
    if len(plan.train.labels.unique()) == 1:
        yield "train holds one class only, so no embedding can be trained with it"


def _count(part: Part) -> str:
    images, classes = len(part.labels), len(part.labels.unique())
    return f"{images:,} image{'s' * (images != 1)} of {classes:,} class{'es' * (classes != 1)}"


def _name(file: PackedFile, position: int) -> str:
    return printable(file.names[position]) if file.names else f"image {position}"


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows few letters is no error
    sys.exit(main())
