"""A reader's own folder becomes a data set: what is found in it, what is stored, what is refused in which words."""

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from robret_lib import data
from robret_lib.data import DataError, __main__, folder_packing
from robret_lib.data.folder import _LEFT_BEHIND, _WORDS_OF_SPLITS, files_of
from robret_lib.data.folder_packing import pack_folder
from robret_lib.data.jpeg import reduced
from robret_lib.data.packed import read_packed, squared
from robret_lib.data.packed_writing import write_jpeg_files
from robret_lib.data.pictures import as_shown
from tests.toy_checkout import RUNNING

PAGE = Path(__file__).parents[1] / "book" / "own_data.md"
COLORS = ("red", "green", "blue", "white", "black", "orange", "purple")


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture that JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tree(root: Path, *names: str) -> Path:
    """A folder with small pictures of these names; a name that ends in a slash is an empty folder."""
    root.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            Image.new("RGB", (8, 8), COLORS[i % len(COLORS)]).save(path, "PNG")
    return root


def stored(path: Path) -> list[tuple[str, str]]:
    """Name and class of each image, in order."""
    packed = read_packed(path)
    return [(name, packed.class_names[label]) for name, label in zip(packed.names, packed.labels.tolist(), strict=True)]


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return tree(tmp_path / "birds", *(f"{bird}/{i}.png" for bird in ("finch", "kite", "robin", "wren") for i in "12"))


# --- what is found --------------------------------------------------------------------------------


def test_each_subfolder_is_a_class_with_all_below_it_in_the_order_of_bytes(tmp_path: Path) -> None:
    names = ["B/1.png", "B/10.png", "B/2/deep/x.png", "B/2.png", "a b/ü.png", "a b/z.jpg", "ä/1.png"]
    pack_folder(tree(tmp_path / "set", *reversed(names)), tmp_path / "set.npz")
    classes = ["B", "B", "B", "B", "a b", "a b", "ä"]
    ordered = ["B/1.png", "B/10.png", "B/2/deep/x.png", "B/2.png", "a b/z.jpg", "a b/ü.png", "ä/1.png"]
    assert stored(tmp_path / "set.npz") == list(zip(ordered, classes, strict=True))
    assert read_packed(tmp_path / "set.npz").class_names == ("B", "a b", "ä")


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8)
SHOWN = NAMES.filter(
    lambda name: not name.startswith(".") and name.lower() not in _LEFT_BEHIND and len(name.encode()) < 60
)
FOLDERS = st.dictionaries(SHOWN, st.sets(SHOWN, min_size=1, max_size=4), min_size=2, max_size=4).filter(
    lambda folder: not {name.lower() for name in folder} <= _WORDS_OF_SPLITS  # those would be no classes
)


@settings(max_examples=40)
@given(folder=FOLDERS)
def test_any_names_come_back_in_order(tmp_path_factory, folder: dict[str, set[str]]) -> None:
    root = tmp_path_factory.mktemp("names")
    tree(root / "set", *(f"{name}/{file}.png" for name, files in folder.items() for file in files))
    pack_folder(root / "set", root / "set.npz")
    expected = [
        (f"{name}/{file}", name)
        for name in sorted(folder, key=os.fsencode)
        for file in sorted((f"{file}.png" for file in folder[name]), key=os.fsencode)
    ]
    assert stored(root / "set.npz") == expected


def test_what_is_hidden_or_left_behind_is_not_looked_at(birds: Path) -> None:
    before = files_of(birds)
    tree(birds, ".git/1.png", "@eaDir/1.png", "__MACOSX/wren/1.png", "wren/.thumbnails/1.png")
    for name in (".DS_Store", "Thumbs.db", "wren/.DS_Store", "wren/Thumbs.db", "wren/desktop.ini", "wren/._1.png"):
        (birds / name).write_text("no picture")
    assert files_of(birds) == before


def test_a_list_beside_the_classes_is_left_alone_but_a_photograph_is_not(birds: Path, tmp_path: Path) -> None:
    (birds / "licenses.csv").write_text("name,license")
    os.mkfifo(birds / "pipe")
    assert pack_folder(birds, tmp_path / "a.npz") == []
    tree(birds, "alone.jpg")
    with pytest.raises(DataError, match="1 in all; nothing is written.*\n  alone.jpg: of no class"):
        pack_folder(birds, tmp_path / "b.npz")
    assert [file.name for file in pack_folder(birds, tmp_path / "b.npz", unreadable="skip")] == ["alone.jpg"]
    assert stored(tmp_path / "b.npz") == stored(tmp_path / "a.npz")


def test_names_that_are_no_utf8_are_kept_and_such_classes_refused(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    try:
        tree(tmp_path / "set", f"a/{odd}.png", "b/1.png")
    except OSError:
        pytest.skip("this file system knows UTF-8 names only")
    pack_folder(tmp_path / "set", tmp_path / "set.npz")
    assert stored(tmp_path / "set.npz") == [(f"a/{odd}.png", "a"), ("b/1.png", "b")]
    tree(tmp_path / "set", f"{odd}/1.png")
    with pytest.raises(DataError, match=r"'class_names' 2 is 'caf\\udce9', which UTF-8 cannot hold; give it another"):
        pack_folder(tmp_path / "set", tmp_path / "set.npz", force=True)


def test_links_are_followed_but_not_in_circles(birds: Path) -> None:
    (birds / "wren" / "back").symlink_to(birds)
    (birds / "wren" / "self").symlink_to(birds / "wren")
    tree(birds, "kite/deep/1.png")
    (birds / "kite" / "deep" / "up").symlink_to(birds / "kite")
    (birds / "kite" / "again").symlink_to(birds / "kite" / "deep")
    (birds / "robin" / "linked.png").symlink_to(birds / "wren" / "1.png")
    (birds / "thrush").symlink_to(birds / "robin")
    names = [file.name for file in files_of(birds).files]
    assert names == [
        *("finch/1.png", "finch/2.png", "kite/1.png", "kite/2.png", "kite/again/1.png"),
        *("robin/1.png", "robin/2.png", "robin/linked.png", "thrush/1.png", "thrush/2.png", "thrush/linked.png"),
        *("wren/1.png", "wren/2.png"),
    ]


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [("test", "train"), ("database", "query", "train")])
def test_folders_of_a_split_fill_the_roles(tmp_path: Path, split: tuple[str, ...]) -> None:
    names = [f"{part}/{name}/1.png" for part in split for name in ("wren", f"only in {part}")]
    pack_folder(tree(tmp_path / "set", *names), tmp_path / "set.npz")
    packed = read_packed(tmp_path / "set.npz")
    in_order = [part for part in ("train", "query", "database", "test") if part in split]
    assert packed.split.tolist() == [part for part in in_order for _ in range(2)]
    assert packed.names == tuple(
        f"{part}/{name}/1.png" for part in in_order for name in sorted(("wren", f"only in {part}"))
    )
    assert packed.class_names == (*(f"only in {part}" for part in split), "wren")
    loaded = data.load(tmp_path / "set.npz")
    assert len(loaded.train) == len(loaded.query) == 2 and len(loaded.gallery) == (2 if "test" in split else 4)


@pytest.mark.parametrize("parts", [("train", "val", "test"), ("Train", "Test"), ("train", "val"), ("query", "gallery")])
def test_another_split_does_not_pass_for_classes(tmp_path: Path, parts: tuple[str, ...]) -> None:
    tree(tmp_path / "set", *(f"{part}/{name}/1.png" for part in parts for name in "ab"))
    with pytest.raises(
        DataError, match="seems to be divided into .*; expected the folders train and test or train and"
    ):
        pack_folder(tmp_path / "set", tmp_path / "set.npz")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    pack_folder(tree(tmp_path / "vehicles", "bus/1.png", "train/1.png"), tmp_path / "a.npz")
    assert stored(tmp_path / "a.npz") == [("bus/1.png", "bus"), ("train/1.png", "train")]


def test_the_same_class_must_be_there_in_the_split_that_has_its_folder(tmp_path: Path) -> None:
    tree(tmp_path / "set", "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    (tmp_path / "set" / "test" / "b" / "1.png").write_text("no picture")
    with pytest.raises(DataError, match="no file can be read of test/b in .*\n  test/b/1.png: of no format"):
        pack_folder(tmp_path / "set", tmp_path / "set.npz", unreadable="skip")


# --- what is stored -------------------------------------------------------------------------------


def transparent(width: int, height: int) -> Image.Image:
    image = smooth(width, height).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


PHOTOGRAPHS = {
    "large.jpg": lambda: smooth(1000, 700),
    "tall.jpg": lambda: smooth(90, 500),
    "gray.jpg": lambda: smooth(200, 100).convert("L"),
    "print.jpg": lambda: smooth(150, 100).convert("CMYK"),
    "small.png": lambda: smooth(40, 60),
    "transparent.png": lambda: transparent(200, 120),
    "palette.gif": lambda: smooth(100, 130).quantize(16),
    "wide.webp": lambda: smooth(300, 64),
    "deep.tif": lambda: Image.fromarray(np.asarray(smooth(100, 80).convert("L")).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_is_stored_as_it_looks_and_reduced(tmp_path: Path, name: str, orientation: int) -> None:
    tree(tmp_path / "set", "a/1.png", "b/")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    PHOTOGRAPHS[name]().save(tmp_path / "set" / "b" / name, exif=exif)
    pack_folder(tmp_path / "set", tmp_path / "set.npz", side=64, quality=95)
    with Image.open(tmp_path / "set" / "b" / name) as opened:
        expected = reduced(as_shown(opened), 64)
    assert min(expected.size) <= 64
    packed = read_packed(tmp_path / "set.npz")
    with packed._open(1) as found:
        assert found.size == expected.size
        difference = np.asarray(found.convert("RGB")).astype(int) - np.asarray(expected)
    assert np.abs(difference).mean() < 2
    square = data.load(tmp_path / "set.npz", size=32).gallery.images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(square - squared(expected, 32)).mean() < 2


def test_the_first_picture_of_an_animation_is_stored(tmp_path: Path) -> None:
    tree(tmp_path / "set", "a/1.png", "b/")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "set" / "b" / "moving.gif", save_all=True, append_images=frames[1:])
    pack_folder(tmp_path / "set", tmp_path / "set.npz")
    assert data.load(tmp_path / "set.npz").gallery.images[0, :, 4, 4].tolist() == pytest.approx([255, 0, 0], abs=4)


@given(width=st.integers(1, 400), height=st.integers(1, 400), side=st.integers(1, 300))
def test_reducing_keeps_the_aspect_and_never_enlarges(width: int, height: int, side: int) -> None:
    image = Image.new("L", (width, height))
    found = reduced(image, side)
    assert min(found.size) == min(side, width, height)
    if min(width, height) <= side:
        assert found is image
    else:
        assert max(found.size) == pytest.approx(max(width, height) * side / min(width, height), abs=0.51)
    assert reduced(image, None) is image


def test_quality_is_that_of_the_files(birds: Path, tmp_path: Path) -> None:
    smooth(300, 300).effect_spread(20).save(birds / "wren" / "3.png")
    sizes = []
    for quality in (20, 60, 100):
        pack_folder(birds, tmp_path / f"{quality}.npz", quality=quality)
        sizes.append((tmp_path / f"{quality}.npz").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_same_folder_gives_the_same_file(birds: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        pack_folder(birds, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_of_a_generator_no_second_copy_is_held(tmp_path: Path) -> None:
    size, count = 1_000_000, 80  # much more than NumPy copies at once to write it
    tracemalloc.start()
    try:
        write_jpeg_files(tmp_path / "a.npz", (bytes(size) for _ in range(count)), [0, 1] * (count // 2), ["a", "b"])
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size * count
    finally:
        tracemalloc.stop()


# --- files that cannot be read --------------------------------------------------------------------

BAD = {
    "cut.jpg": "image file is truncated",
    "cut.png": "truncated|Truncated|broken",
    "empty.jpg": "empty",
    "link.jpg": "a link that leads nowhere",
    "notes.txt": "of no format that Pillow reads",
    "phone.HEIC": "HEIC, which Pillow does not read; convert it to JPEG",
    "pipe.jpg": "no regular file",
    "wide.jpg": "70000 x 1 pixels; expected at most",
}


@pytest.fixture
def damaged(birds: Path) -> Path:
    """The birds, with one file of every kind that is none in the class of the wrens."""
    folder = birds / "wren"
    for name in ("cut.jpg", "cut.png"):
        smooth(64, 64).save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-60])
    (folder / "empty.jpg").touch()
    (folder / "link.jpg").symlink_to("nowhere")
    (folder / "notes.txt").write_text("seen in May")
    (folder / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    os.mkfifo(folder / "pipe.jpg")
    Image.new("1", (70_000, 1)).save(folder / "wide.jpg", "PNG")
    return birds


def test_unreadable_files_are_all_listed_and_nothing_is_written(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        pack_folder(damaged, tmp_path / "new" / "a.npz")
    heading, *lines = str(error.value).splitlines()
    assert f"{len(BAD)} in all; nothing is written. Remove them, or skip them (--unreadable skip)" in heading
    for line, (name, reason) in zip(lines, BAD.items(), strict=True):
        assert re.match(f"  wren/{name}: .*({reason})", line), line
    assert not (tmp_path / "new").exists()


def test_skipping_packs_the_others_as_if_they_were_alone(damaged: Path, tmp_path: Path) -> None:
    skipped = pack_folder(damaged, tmp_path / "a.npz", unreadable="skip")
    assert [file.name for file in skipped] == [f"wren/{name}" for name in BAD]
    for name in BAD:
        (damaged / "wren" / name).unlink()
    pack_folder(damaged, tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_control_characters_of_names_do_not_reach_the_terminal(birds: Path, tmp_path: Path) -> None:
    (birds / "wren" / "a\n\x1b[31m.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"\n  wren/a\\n\\x1b\[31m.jpg: of no format") as error:
        pack_folder(birds, tmp_path / "a.npz")
    assert len(str(error.value).splitlines()) == 2


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "does not exist": lambda folder: folder,
    "is a file; expected a folder": lambda folder: tree(folder.parent, "set"),
    "is empty; expected one folder a class": lambda folder: tree(folder),
    "holds 2 files, but no folders": lambda folder: tree(folder, "1.jpg", "2.jpg"),
    "b holds no files; remove it": lambda folder: tree(folder, "a/1.jpg", "b/"),
    "holds one class only, 'a'": lambda folder: tree(folder, "a/1.jpg", "a/b/2.jpg"),
    "train holds 1 files, but no folders": lambda folder: tree(folder, "train/1.jpg", "test/a/1.jpg"),
    "test is empty": lambda folder: tree(folder, "train/a/1.jpg", "test/"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_folder_without_classes_is_refused(tmp_path: Path, message: str, capsys) -> None:
    folder = tmp_path / "below" / "set"
    REFUSED[message](folder)
    assert __main__.main(["pack", str(folder)]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", said.err) and not said.out
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_listed_is_named(birds: Path, tmp_path: Path, monkeypatch) -> None:
    def forbidden(path: Path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(DataError, match=r"birds cannot be listed \(Permission denied\)"):
        pack_folder(birds, tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("a.npy", "must end in .npz"),
        ("there.npz", "there.npz is already there; replace it (--force), or name another output file"),
        ("folder.npz", "is a folder"),
        ("there.npz/below/a.npz", "there.npz is no folder that this user may write to"),
        (f"{'long' * 70}.npz", "File name too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(
    birds: Path, tmp_path: Path, monkeypatch, capsys, output: str, message: str
) -> None:
    (tmp_path / "there.npz").write_text("old")
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.setattr(folder_packing, "files_of", None)
    assert __main__.main(["pack", str(birds), "--output", str(tmp_path / output)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert (tmp_path / "there.npz").read_text() == "old"


@pytest.mark.parametrize("option", [{"side": 0}, {"quality": 0}, {"quality": 101}, {"unreadable": "ignore"}])
def test_options_that_are_none_are_refused(birds: Path, option: dict, data_folder: Path) -> None:
    with pytest.raises(DataError, match=f"{next(iter(option))}=.*: expected"):
        pack_folder(birds, **option)
    assert not data_folder.exists()


def test_a_folder_without_rights_is_refused_before_anything_is_read(birds: Path, data_folder, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=f"{data_folder.parent} is no folder that this user may write to"):
        pack_folder(birds)
    assert not data_folder.exists()


def test_a_full_disk_is_one_line_and_leaves_the_old_file(birds: Path, data_folder: Path, monkeypatch, capsys) -> None:
    def full_disk(file, **arrays) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    data_folder.mkdir()
    (data_folder / "birds.npz").write_text("old")
    monkeypatch.setattr(np, "savez", full_disk)
    assert __main__.main(["pack", str(birds), "--force"]) == 1
    path = data_folder / "birds.npz"
    assert capsys.readouterr().err == f"error: {path}: cannot be written (No space left on device)\n"
    assert path.read_text() == "old" and list(data_folder.iterdir()) == [path]


def test_where_there_is_no_data_folder_an_output_is_asked_for(birds: Path, monkeypatch, capsys) -> None:
    def lost() -> Path:
        raise RuntimeError("where is the data?")

    monkeypatch.setattr(folder_packing, "data_root", lost)
    assert __main__.main(["pack", str(birds)]) == 1
    assert capsys.readouterr().err == "error: where is the data?, or name an output file\n"
    assert __main__.main(["pack", "/"]) == 1
    assert "has no name to call the data set by" in capsys.readouterr().err


# --- the command ----------------------------------------------------------------------------------


def said_to_load(text: str) -> data.RetrievalData:
    """Runs the lines that the command prints at its end."""
    lines = text.partition("Load it:\n")[2].splitlines()
    namespace: dict[str, object] = {}
    exec("\n".join(line.strip() for line in lines), namespace)
    return namespace["photographs"]


@pytest.mark.parametrize("given", ["birds", ".", "../birds/", "wren/.."])
def test_the_default_name_is_that_of_the_folder(birds: Path, monkeypatch, capsys, given: str) -> None:
    monkeypatch.chdir(birds.parent if given == "birds" else birds)
    assert __main__.main(["pack", given]) == 0
    said = capsys.readouterr().out
    assert "data.load('birds', scale='full')" in said
    loaded = said_to_load(said)
    assert (loaded.name, len(loaded.train), len(loaded.gallery)) == ("birds", 4, 4)
    assert loaded.class_names == ("finch", "kite", "robin", "wren")


def test_the_command_says_what_became_of_the_folder(birds: Path, data_folder: Path, capsys) -> None:
    smooth(6, 9).save(birds / "kite" / "tiny.png")
    assert __main__.main(["pack", str(birds)]) == 0
    said = capsys.readouterr()
    path = data_folder / "birds.npz"
    assert said.err == ""
    assert said.out.splitlines()[:6] == [
        f"packed 9 images of 4 classes, {path.stat().st_size:,} bytes: {path}",
        "  train    5 images of 2 classes",
        "  query    4 images of 2 classes",
        "  gallery  4 images of 2 classes",
        data.load("birds").protocol.description,
        "All are loaded as squares of 6 pixels, the smallest side there is (kite/tiny.png); "
        "data.load(..., size=N) gives others.",
    ]
    assert said_to_load(said.out).gallery.images.shape[-1] == 6 and "note" not in said.out


def test_skipped_files_are_listed_and_counted(damaged: Path, capsys) -> None:
    assert __main__.main(["pack", str(damaged), "--unreadable", "skip"]) == 0
    said = capsys.readouterr()
    assert len(re.findall("^skipped wren/.*: .*$", said.err, re.MULTILINE)) == said.err.count("\n") == len(BAD)
    assert said.out.startswith(f"packed 8 images of 4 classes, {len(BAD)} skipped, ")


def test_a_photograph_a_class_is_packed_with_a_warning(tmp_path: Path, capsys) -> None:
    tree(tmp_path / "set", *(f"{name}/1.png" for name in "abcdef"))
    assert __main__.main(["pack", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "note: queries without another image of their class in the gallery, so without a right answer: 3\n" in said
    assert said.count("note") == 1 and len(said_to_load(said).gallery) == 3


def test_roles_of_one_class_are_packed_with_a_warning(tmp_path: Path, capsys) -> None:
    tree(tmp_path / "set", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    assert __main__.main(["pack", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "note: the gallery holds one class only" in said and "note: train holds one class only" in said


def test_queries_from_outside_find_their_class_in_train_too(tmp_path: Path, capsys) -> None:
    tree(tmp_path / "set", "train/a/1.png", "train/b/1.png", "query/a/1.png", "query/c/1.png", "database/d/1.png")
    assert __main__.main(["pack", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "so without a right answer: 1\n" in said and "  gallery  3 images of 3 classes\n" in said


@pytest.mark.parametrize("name", [*__main__.TAKEN, "photographs.npz"])
def test_a_set_that_its_name_would_not_find_is_loaded_by_its_path(tmp_path: Path, data_folder, capsys, name) -> None:
    tree(tmp_path / name, "a/1.png", "b/1.png")
    assert __main__.main(["pack", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert f"data.load({str(data_folder / name) + '.npz'!r}" in said
    assert said_to_load(said).class_names == ("a", "b")


def test_a_file_that_a_pair_of_names_makes_unloadable_is_an_error(tmp_path: Path, capsys) -> None:
    for name, classes in (("x_train", "ab"), ("x_test", "cd")):
        tree(tmp_path / name, *(f"{label}/1.png" for label in classes))
    assert __main__.main(["pack", str(tmp_path / "x_train")]) == 0
    assert __main__.main(["pack", str(tmp_path / "x_test")]) == 1
    assert "x_test.npz is written, but cannot be loaded: " in capsys.readouterr().err


def test_of_a_pair_of_names_the_file_that_was_packed_is_counted(tmp_path: Path, capsys) -> None:
    tree(tmp_path / "x_train", "a/1.png", "b/1.png", "b/2.png")
    tree(tmp_path / "x_test", "a/1.png", "b/1.png")
    for name, count in (("x_train", 3), ("x_test", 2)):
        assert __main__.main(["pack", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.startswith(f"packed {count} images of 2 classes")


def test_force_replaces(birds: Path, data_folder: Path) -> None:
    assert __main__.main(["pack", str(birds)]) == 0
    tree(birds, "wren/3.png")
    assert __main__.main(["pack", str(birds), "--force"]) == 0
    assert len(read_packed(data_folder / "birds.npz")) == 9


@pytest.mark.parametrize(
    "arguments",
    [["pack"], ["unpack", "x"], *(["pack", "x", *more.split()] for more in (
        "--side 0", "--side -1", "--side 2.5", "--quality 0", "--quality 101", "--unreadable maybe", "y"
    ))],
)  # fmt: skip
def test_wrong_usage_is_told_apart(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        __main__.main(arguments)
    assert end.value.code == 2 and "usage: python -m robret_lib.data" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys) -> None:
    assert __main__.main([]) == 0
    assert "pack a folder of photographs" in capsys.readouterr().out


# --- the command in a terminal --------------------------------------------------------------------


@pytest.mark.slow
def test_in_a_terminal_there_is_a_bar_and_any_letters_can_be_shown(tmp_path: Path) -> None:
    root = tree(tmp_path / "Vögel im Garten", "Bläßhuhn/1.png", "Zaunkönig/ä ö.png")
    command = [sys.executable, "-m", "robret_lib.data", "pack", str(root)]
    own, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    done = subprocess.run(
        command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    os.close(terminal)
    shown = os.read(own, 2**16).decode()
    os.close(own)
    assert done.returncode == 0, shown
    assert "packing: 100%" in shown and "2/2" in shown
    assert "data.load('V\\xf6gel im Garten', scale='full')" in done.stdout
    assert data.load("Vögel im Garten").class_names == ("Bläßhuhn", "Zaunkönig")


STOPS = {"reading": "folder_packing.jpeg_file", "writing": "np.savez"}
STOPPED = """
import signal, sys
import numpy as np
from robret_lib.data import __main__, folder_packing

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

def stop(file, *_, **__):
    if hasattr(file, "write"):
        file.write(b"half")
    with open({fifo!r}, "w") as held:
        while True:
            pass

{place} = stop
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", STOPS)
def test_an_interrupt_leaves_the_old_file_and_no_traceback(birds: Path, tmp_path: Path, data_folder, place) -> None:
    data_folder.mkdir()
    (data_folder / "birds.npz").write_text("old")
    os.mkfifo(tmp_path / "fifo")
    code = STOPPED.format(fifo=str(tmp_path / "fifo"), place=STOPS[place])
    command = [sys.executable, "-c", code, "pack", str(birds), "--force"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    RUNNING.append(process)
    with (tmp_path / "fifo").open():  # opens once the command has come that far
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert (process.returncode, output, errors) == (130, "", "\ninterrupted; no file is left half-written\n")
    assert [path.name for path in data_folder.iterdir()] == ["birds.npz"]
    assert (data_folder / "birds.npz").read_text() == "old"


# --- the page -------------------------------------------------------------------------------------


def test_the_page_names_every_option(capsys) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["pack", "--help"])
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert options == set(re.findall(r"--[a-z]+", PAGE.read_text()))


@pytest.mark.slow
def test_the_lines_of_the_page_run(tmp_path: Path, capsys) -> None:
    page = PAGE.read_text()
    command = re.search(r"```bash\npython -m robret_lib.data (.*?)\n```", page)[1].split()
    layout = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
    root = tmp_path / command[1]
    for seed, name in enumerate(re.findall(r"^  (\w+)/$", layout, re.MULTILINE)):
        (root / name).mkdir(parents=True)
        for i in range(3):
            smooth(160, 140, seed).rotate(i).save(root / name / f"{i}.jpg")
    assert __main__.main([command[0], str(root)]) == 0
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert max(map(len, code.splitlines())) <= 88, "the page shows no more"
    exec(code, {})
    before, after = re.findall(r"for (\d+) %", capsys.readouterr().out)
    assert int(after) <= int(before) == 100, "pictures of one class are nearly the same here"


def test_packed_photographs_are_what_write_packed_makes_of_them(birds: Path, tmp_path: Path) -> None:
    pack_folder(birds, tmp_path / "a.npz", quality=80)
    packed = read_packed(tmp_path / "a.npz")
    images = [Image.open(birds / name) for name in packed.names]
    data.write_packed(tmp_path / "b.npz", images, packed.labels, packed.class_names, packed.names, quality=80)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert torch.equal(packed.labels, torch.arange(4).repeat_interleave(2))
