"""The script that packs OpenMoji, on a small package of the same layout: what is made, fetched and refused."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import official
import openmoji
from robret_lib import data
from robret_lib.data.packed import read_packed
from split_lists import Sizes

ROOT = Path(__file__).parents[1]
SIZES = Sizes(images=12, query=3, train=5, distinct_train=5)
GROUPS = ("objects", "animals-nature", "extras-openmoji")
DRAWINGS = range(12)
LICENSE = "Attribution-ShareAlike 4.0 International\n\nzoë\n"
RUN = subprocess.run

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def no_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(*command: object, **options: object) -> None:
        raise AssertionError(f"{command} must not be run")

    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setattr(subprocess, "run", forbidden)
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))


# --- a small package ------------------------------------------------------------------------------


def hexcode(drawing: int) -> str:
    return f"1F{600 + drawing}"


def color(drawing: int) -> tuple[int, int, int]:
    return 20 * drawing, 255 - 20 * drawing, 100


def svg(drawing: int) -> bytes:
    """A square on nothing, in a color like no other."""
    square = f'<rect x="18" y="18" width="36" height="36" fill="rgb{color(drawing)}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">{square}</svg>'.encode()


def entry(drawing: int, **changes: object) -> dict[str, object]:
    return {
        "hexcode": hexcode(drawing),
        "group": GROUPS[drawing % 3],
        "annotation": f"thing {drawing}",
        "tags": "" if drawing == 5 else "cheerful, big  face",
        "openmoji_tags": f"own{drawing}, naïve",
        "openmoji_author": f"Zoë {drawing % 4}",
        "skintone": "",
    } | changes


def entries() -> list[dict[str, object]]:
    """The drawings, and among them a skin tone of each second one, and two parts of which emoji are composed."""
    listed = []
    for drawing in DRAWINGS:
        listed.append(entry(drawing))
        if drawing % 2:
            listed.append(entry(drawing, hexcode=f"{hexcode(drawing)}-1F3FB", skintone=1))
    listed.insert(3, entry(0, hexcode="1F3FB", group="component"))
    listed.append(entry(1, hexcode="1F3FC", group="component"))
    return listed


def package(listed: list[dict[str, object]] | None = None) -> Files:
    listed = entries() if listed is None else listed
    files = {f"package/color/svg/{each['hexcode']}.svg": b"<svg/>" for each in listed}
    files |= {f"package/color/svg/{hexcode(drawing)}.svg": svg(drawing) for drawing in DRAWINGS}
    files |= {f"package/black/svg/{hexcode(drawing)}.svg": b"not read" for drawing in DRAWINGS}
    return files | {
        "package/data/openmoji.json": json.dumps(listed).encode(),
        "package/LICENSE.txt": LICENSE.encode(),
        "package/package.json": b"{}",
    }


def tgz(files: Files) -> bytes:
    """As `npm pack` makes one; members in an order of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


ARCHIVE = tgz(package())


def put(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_archive(root: Path, content: bytes = ARCHIVE) -> None:
    put(root, {openmoji.PIECE.file: content})


def run(root: Path, known: bytes = ARCHIVE) -> int:
    """Runs the script with the counts of the small set, and with the checksum and the size of an archive."""
    piece = replace(openmoji.PIECE, checksum=f"sha256:{hashlib.sha256(known).hexdigest()}", size=len(known))
    small = replace(openmoji.OPENMOJI, layouts=(official.Form((piece,)),), sizes=SIZES)
    return official.main(small, ["--root", str(root)])


def refused(root: Path, capsys) -> tuple[str, str]:
    """Why a run makes nothing, and what a person can do."""
    assert run(root) == 1
    assert not (root / "openmoji.npz").exists() and not list(root.rglob("*.tmp"))
    output = capsys.readouterr()
    return output.out, output.err


def members(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


# --- what is made ---------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path):
    put_archive(tmp_path)
    assert run(tmp_path) == 0
    return read_packed(tmp_path / "openmoji.npz")


def test_skin_tones_and_parts_of_emoji_are_left_out(packed) -> None:
    assert len(entries()) == 12 + 6 + 2
    assert packed.names == tuple(hexcode(drawing) for drawing in DRAWINGS)


def test_the_label_is_the_group(packed) -> None:
    assert packed.class_names == ("animals-nature", "extras-openmoji", "objects")
    assert packed.labels.tolist() == [2, 0, 1] * 4


def test_the_text_is_the_name_and_the_tags_without_commas(packed) -> None:
    assert packed.texts[4] == "thing 4 cheerful big face own4 naïve"
    assert packed.texts[5] == "thing 5 own5 naïve"
    assert len(set(packed.texts)) == 12


def test_pictures_are_the_drawings_on_white(packed) -> None:
    pictures = packed.decode(range(12), openmoji.SIDE).permute(0, 2, 3, 1).numpy().astype(int)
    assert packed.smallest_side() == openmoji.SIDE == 96
    for drawing in DRAWINGS:
        assert np.abs(pictures[drawing, 30:66, 30:66] - color(drawing)).max() < 8
        assert pictures[drawing, :12].min() > 247


def test_authors_and_license_are_members_of_the_file(packed) -> None:
    stored = members(packed.path)
    assert [author.decode() for author in stored["author"]] == [f"Zoë {drawing % 4}" for drawing in DRAWINGS]
    assert [text.decode() for text in stored["license"]] == [LICENSE]


def test_it_is_loaded_by_its_name_with_texts_in_every_role(packed) -> None:
    loaded = data.load("openmoji", "full", size=16)
    roles = packed.split
    assert [(roles == role).sum() for role in ("query", "train", "database")] == [3, 5, 4]
    for part, chosen in ((loaded.query, roles == "query"), (loaded.train, roles == "train")):
        assert part.texts == tuple(packed.texts[position] for position in np.flatnonzero(chosen))
    assert set(loaded.gallery.texts) == set(packed.texts) - set(loaded.query.texts) > set(loaded.train.texts)
    assert not loaded.protocol.self_excluded


def test_what_is_ready_is_said_with_the_license(tmp_path: Path, capsys) -> None:
    put_archive(tmp_path)
    run(tmp_path)
    assert (
        "query 3, train 5, gallery 9 with train in it; drawings and texts by the OpenMoji project, license CC BY-SA"
        in (capsys.readouterr().out)
    )


def test_the_archive_and_its_folder_give_the_same_file(tmp_path: Path) -> None:
    put_archive(tmp_path / "archive")
    put(tmp_path / "folder", package())
    made = []
    for kind in ("archive", "folder"):
        assert run(tmp_path / kind) == 0
        made.append({name: array.tobytes() for name, array in members(tmp_path / kind / "openmoji.npz").items()})
    assert made[0] == made[1]


def test_a_second_run_does_nothing(packed, tmp_path: Path, capsys) -> None:
    before = packed.path.stat().st_mtime_ns
    (tmp_path / openmoji.PIECE.file).unlink()
    assert run(tmp_path) == 0
    assert "source: already there" in capsys.readouterr().out
    assert packed.path.stat().st_mtime_ns == before


# --- npm ------------------------------------------------------------------------------------------


def with_npm(monkeypatch: pytest.MonkeyPatch, pack: Callable[[list[str]], None]) -> list[list[str]]:
    """Puts an npm in place that does this; returns the commands that it has got so far."""
    commands = []

    def fake(command: list[str], **options: object) -> None:
        commands.append(command)
        pack(command)

    monkeypatch.setattr(shutil, "which", lambda program: f"/somewhere/{program}")
    monkeypatch.setattr(subprocess, "run", fake)
    return commands


def packing(content: bytes) -> Callable[[list[str]], None]:
    def pack(command: list[str]) -> None:
        put_archive(Path(command[command.index("--pack-destination") + 1]), content)

    return pack


def test_npm_fetches_the_package(tmp_path: Path, monkeypatch) -> None:
    commands = with_npm(monkeypatch, packing(ARCHIVE))
    root = tmp_path / "new folder"
    assert run(root) == 0
    assert [command[:3] for command in commands] == [["npm", "pack", "openmoji@17.0.0"]]
    assert {path.name for path in root.iterdir()} == {"openmoji.npz", "openmoji-17.0.0.tgz"}


@pytest.mark.parametrize("there", ["archive", "folder", "packed file"])
def test_npm_is_not_asked_for_what_is_there(tmp_path: Path, monkeypatch, there: str) -> None:
    commands = with_npm(monkeypatch, packing(ARCHIVE))
    if there == "folder":
        put(tmp_path, package())
    else:
        put_archive(tmp_path)
    if there == "packed file":
        assert run(tmp_path) == 0
        (tmp_path / openmoji.PIECE.file).unlink()
    assert run(tmp_path) == 0 and commands == []


def test_without_npm_it_says_what_to_do(tmp_path: Path, capsys) -> None:
    said, advice = refused(tmp_path, capsys)
    assert "npm is not installed, so the package cannot be fetched" in said
    assert "`npm pack openmoji@17.0.0` fetches it, on any machine" in advice
    assert openmoji.PIECE.file in advice and str(tmp_path) in advice
    assert list(tmp_path.iterdir()) == []


def failing(command: list[str]) -> None:
    raise subprocess.CalledProcessError(1, command, stderr="npm ERR! no such package\n")


def hanging(command: list[str]) -> None:
    raise subprocess.TimeoutExpired(command, openmoji.TIMEOUT)


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        (failing, "`npm pack openmoji@17.0.0` failed: npm ERR! no such package\n"),
        (hanging, "`npm pack openmoji@17.0.0` had no answer after 120 seconds\n"),
    ],
)
def test_an_npm_that_fails_is_named(tmp_path: Path, monkeypatch, npm, message: str, capsys) -> None:
    with_npm(monkeypatch, npm)
    said, advice = refused(tmp_path, capsys)
    assert message in said and "To get it by hand" in advice


# --- what is refused ------------------------------------------------------------------------------


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (altered(ARCHIVE), f"{openmoji.PIECE.file} is altered or another file: sha256"),
        (ARCHIVE[:-1], f"is cut off or another file: {len(ARCHIVE) - 1:,} bytes, expected {len(ARCHIVE):,}"),
    ],
)
@pytest.mark.parametrize("by_npm", [False, True])
def test_another_archive_is_refused(tmp_path: Path, monkeypatch, content, message, by_npm: bool, capsys) -> None:
    if by_npm:
        with_npm(monkeypatch, packing(content))
    else:
        put_archive(tmp_path, content)
    assert message in refused(tmp_path, capsys)[0]


ABOUT = "package/data/openmoji.json"
SVG_OF_3 = f"package/color/svg/{hexcode(3)}.svg"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({ABOUT: b"[{"}, f"{ABOUT} cannot be understood (JSONDecodeError"),
        ({ABOUT: json.dumps([{"hexcode": "1F600"}]).encode()}, f"{ABOUT} cannot be understood (KeyError: 'skintone')"),
        (
            {ABOUT: json.dumps(entries()[1:]).encode()},
            f"{ABOUT} has 11 drawings of their own; expected 12",
        ),
        ({ABOUT: None}, f"the first is {ABOUT}"),
        ({"package/LICENSE.txt": None}, "the first is package/LICENSE.txt"),
        ({SVG_OF_3: None}, f"lacks 1 of 12 files, the first is {SVG_OF_3}"),
        ({SVG_OF_3: b"<svg"}, f"{SVG_OF_3} cannot be rendered"),
    ],
)
def test_another_package_is_refused(tmp_path: Path, changes: dict[str, bytes | None], message: str, capsys) -> None:
    files = package() | changes
    put(tmp_path, {name: content for name, content in files.items() if content is not None})
    assert message in refused(tmp_path, capsys)[0]


ROLES = ["query"] * 3 + ["train"] * 5 + ["database"] * 4


@pytest.mark.parametrize(
    ("side", "split", "texts", "message"),
    [
        (96, ROLES, None, "it has no texts"),
        (96, ROLES + ["database"], ["a"] * 13, "there are 13 images, 3 of query and 5 of train; expected 12 images"),
        (96, ["query"] + ROLES[:-1], ["a"] * 12, "there are 12 images, 4 of query and 5 of train; expected 12 images"),
        (96, None, ["a"] * 12, "there are 12 images, 0 of query and 0 of train; expected 12 images, 3 of query"),
        (64, ROLES, ["a"] * 12, "its smallest side is 64 pixels; expected 96"),
    ],
)
def test_a_packed_file_that_is_another_one_is_refused(tmp_path: Path, side, split, texts, message, capsys) -> None:
    count = 12 if split is None else len(split)
    pictures = [Image.new("RGB", (side, side))] * count
    path = tmp_path / "openmoji.npz"
    data.write_packed(path, pictures, [0, 1] * (count // 2) + [0] * (count % 2), ["a", "b"], split=split, texts=texts)
    before = path.read_bytes()
    assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert message in error and "Move it away" in error
    assert path.read_bytes() == before


# --- the real set ---------------------------------------------------------------------------------


def test_the_official_counts() -> None:
    assert openmoji.OPENMOJI.sizes == (2_456, 256, 1_700, 1_700) and openmoji.OPENMOJI.sizes.database == 2_200
    assert len(openmoji.PIECE.checksum.removeprefix("sha256:")) == 64 and not openmoji.PIECE.urls


def test_the_real_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBRET_DATA")
    if not (data.data_root() / "openmoji.npz").is_file():
        pytest.skip("OpenMoji is not prepared: make data DATASET=openmoji")
    loaded = data.load("openmoji", "full", size=16)
    assert [len(part) for part in (loaded.query, loaded.train, loaded.gallery)] == [256, 1_700, 2_200]
    assert len(loaded.class_names) == 11 and "component" not in loaded.class_names
    assert loaded.gallery.labels.unique().tolist() == list(range(11))
    assert all(loaded.query.texts) and all(loaded.gallery.texts)
    assert not any("skin tone" in text for text in loaded.gallery.texts)
    stored = members(data.data_root() / "openmoji.npz")
    assert len(stored["author"]) == 2_456 and stored["license"][0].startswith(b"Attribution-ShareAlike 4.0")


@pytest.mark.parametrize("datasets", [["openmoji"], None])
def test_make_data_runs_the_script(monkeypatch: pytest.MonkeyPatch, datasets: list[str] | None) -> None:
    """Also where nobody says which data set."""
    monkeypatch.undo()
    if shutil.which("make") is None:
        pytest.skip("needs make")
    named = [] if datasets is None else [f"DATASET={' '.join(datasets)}"]
    command = ["make", "--dry-run", "-C", ROOT, "data", *named]
    shown = RUN(command, capture_output=True, text=True, check=True).stdout.split()
    assert "data_scripts/openmoji.py" in shown
    assert ("data_scripts/fashion_mnist.py" in shown) == (datasets is None)
