"""The scripts of the hashing sets, on small sets of the same layouts: labels, splits, lists, and what is refused."""

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import center_crop, resize

import coco
import flickr25k
import nus_wide
import official
import official_files
import split_drawing
import split_lists
from robret_lib import data
from robret_lib.data.packed import read_packed

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
OFFICIAL_SIDE = official.SIDE
SETS = {"flickr25k": flickr25k.FLICKR25K, "nus_wide": nus_wide.NUS_WIDE, "coco": coco.COCO}
SIZES = {
    "flickr25k": split_lists.Sizes(images=30, query=6, train=10, distinct_train=8),
    "nus_wide": split_lists.Sizes(images=30, query=4, train=12, distinct_train=12),
    "coco": split_lists.Sizes(images=30, query=6, train=10, distinct_train=10),
}
CLASSES = {"flickr25k": 38, "nus_wide": 2, "coco": 4}
LACKING = 3  # images that the reduced copy of NUS-WIDE has not

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and sets of 30 small squares."""

    def gone(request, timeout):
        raise URLError("no network in tests")

    monkeypatch.setattr(official_files, "urlopen", gone)
    monkeypatch.setattr(official, "SIDE", 16)
    monkeypatch.setattr(flickr25k, "PHOTOGRAPHS", 30)
    monkeypatch.setattr(nus_wide, "FREQUENT", 2)
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))


# --- small sets of the official layouts -----------------------------------------------------------


@cache
def jpeg(image: int) -> bytes:
    """A photograph like no other, broad or tall."""
    width, height = (24 + image, 18) if image % 2 else (20, 31)
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 5 * image, height))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([across, down, 8 * image + 0 * across], axis=2).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def lines(texts) -> bytes:
    return "".join(f"{text}\r\n" for text in texts).encode()


def flickr_labels() -> np.ndarray:
    """Of all classes; the images 5, 10, ... have none."""
    labels = np.random.default_rng(0).random((30, 38)) < 0.2
    labels[4::5] = False
    return labels.astype(np.uint8)


def flickr() -> tuple[Files, list[str], np.ndarray]:
    names, labels = [f"mirflickr/im{number}.jpg" for number in range(1, 31)], flickr_labels()
    files = {name: jpeg(image) for image, name in enumerate(names)}
    for column, name in enumerate(flickr25k.CLASSES):
        files[f"{flickr25k.ANNOTATIONS}/{name}.txt"] = lines(np.flatnonzero(labels[:, column]) + 1)
    files[f"{flickr25k.ANNOTATIONS}/README.txt"] = b"no list"
    return files, names, labels


def nus() -> tuple[Files, list[str], np.ndarray]:
    """Four concepts, of which sky and cat are frequent; every fifth of 40 photographs shows neither, five nothing."""
    names = [f"{'actor' if image < 20 else 'zoo'}/{image:04}_{7000 + image}.jpg" for image in range(40)]
    files = {f"Flickr/{name}": jpeg(image) for image, name in enumerate(names) if image % 4}
    shown = {
        "bear": [image == 4 for image in range(40)],
        "cat": [image % 2 == 1 for image in range(40)],
        "fox": [image in (1, 2, 8) for image in range(40)],
        "sky": [image % 4 in (2, 3) for image in range(40)],
    }
    for concept, marks in shown.items():
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = lines(map(int, marks))
    files["ConceptsList/Concepts81.txt"] = lines(shown)
    files["ImageList/Imagelist.txt"] = lines(name.replace("/", "\\") for name in names)
    kept = [image for image in range(40) if image % 4]
    labels = np.array([[shown["cat"][image], shown["sky"][image]] for image in kept], np.uint8)
    return files, [names[image] for image in kept], labels


def nus_in_one_folder() -> tuple[Files, list[str], np.ndarray]:
    files, names, labels = nus()
    moved = {f"images/{name.rpartition('/')[2]}" if name.startswith("Flickr/") else name: files[name] for name in files}
    return moved, names, labels


def objects() -> tuple[Files, list[str], np.ndarray]:
    """Category numbers have gaps and are not in the order of names; three photographs of each part show nothing."""
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "zebra"}]
    categories.append({"id": 90, "name": "apple"})
    files, names, rows = {}, [], []
    for part, start, number in (("train2014", 0, 24), ("val2014", 24, 12)):
        images, annotations = [], []
        for image in range(start, start + number):
            name = f"COCO_{part}_{image:012}.jpg"
            images.insert(0, {"id": image, "file_name": name})
            shown = [] if image - start < 3 else sorted({image % 4, image % 3})
            for column in shown * 2:
                category = {0: 90, 1: 3, 2: 1, 3: 9}[column]  # apple, cat, person, zebra
                annotations.append({"image_id": image, "category_id": category, "iscrowd": image % 2})
            if shown:
                files[f"{part}/{name}"] = jpeg(image)
                names.append(f"{part}/{name}")
                rows.append([column in shown for column in range(4)])
        said = {"images": images, "annotations": annotations, "categories": categories}
        files[f"annotations/instances_{part}.json"] = json.dumps(said).encode()
    return files, names, np.array(rows, np.uint8)


MADE = {"flickr25k": flickr, "nus_wide": nus, "coco": objects}


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in reversed(files):
            archive.writestr(name, files[name])
    return buffer.getvalue()


def archives(name: str, files: Files) -> Files:
    """As the set is published: annotations of FLICKR-25K without a top folder, photographs of NUS-WIDE unpacked."""
    packed = {}
    for piece in SETS[name].layouts[0].pieces:
        own = {file: content for file, content in files.items() if file.startswith(f"{piece.unpacked}/")}
        if piece.unpacked == flickr25k.ANNOTATIONS:
            own = {file.partition("/")[2]: content for file, content in own.items()}
        packed |= {piece.file: zipped(own)} if piece.file.endswith(".zip") else own
    return packed


def put(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def small(name: str, known: Files | None = None):
    """The set of a script with the counts of the small one, and with the checksums of the archives that are known."""
    changes = {"sizes": SIZES[name], "classes": CLASSES[name]}
    if name == "flickr25k":
        changes["marks"] = int(flickr_labels().sum())
    if name == "nus_wide":
        changes["reduced"] = 30 - LACKING

    def known_piece(piece):
        content = (known or {}).get(piece.file)
        if content is None:
            return piece
        return replace(piece, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))

    layouts = tuple(replace(form, pieces=tuple(map(known_piece, form.pieces))) for form in SETS[name].layouts)
    return replace(SETS[name], layouts=layouts, **changes)


def run(name: str, root: Path, known: Files | None = None) -> int:
    return official.main(small(name, known), ["--root", str(root)])


def made(name: str, root: Path):
    """The packed file of the small set, from its folders."""
    put(root, MADE[name]()[0])
    assert run(name, root) == 0
    return read_packed(root / f"{name}.npz")


def refused(name: str, root: Path, capsys) -> str:
    """Why a run makes nothing."""
    assert run(name, root) == 1
    assert not (root / f"{name}.npz").exists() and not list(root.rglob("*.tmp"))
    output = capsys.readouterr()
    assert SETS[name].by_hand in output.err
    return output.out


# --- what is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_what_is_made_is_the_set(tmp_path: Path, name: str) -> None:
    packed, (_, names, labels) = made(name, tmp_path), MADE[name]()
    assert packed.names == tuple(names)
    assert np.array_equal(packed.labels.numpy(), labels) and labels.any(axis=0).all()
    roles, sizes = packed.split, SIZES[name]
    assert [(roles == role).sum() for role in ("query", "train")] == [sizes.query, sizes.train]


def test_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert made("coco", tmp_path).class_names == ("apple", "cat", "person", "zebra")
    assert made("nus_wide", tmp_path).class_names == ("cat", "sky")
    assert made("flickr25k", tmp_path).class_names == tuple(sorted(flickr25k.CLASSES))


@pytest.mark.parametrize("name", SETS)
def test_the_gallery_is_all_but_the_queries_with_train_in_it(tmp_path: Path, name: str) -> None:
    packed = made(name, tmp_path)
    loaded = data.load(name, "full")
    queries = packed.split == "query"
    assert np.array_equal(loaded.query.labels, packed.labels[queries])
    assert np.array_equal(loaded.gallery.labels, packed.labels[~queries])
    gallery = {image.numpy().tobytes() for image in loaded.gallery.images}
    assert {image.numpy().tobytes() for image in loaded.train.images} <= gallery
    assert not gallery & {image.numpy().tobytes() for image in loaded.query.images}
    assert len(gallery) == 30 - SIZES[name].query and not loaded.protocol.self_excluded


def test_what_is_packed_is_what_the_published_code_crops_from(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(official, "SIDE", OFFICIAL_SIDE)
    packed, (files, names, _) = made("flickr25k", tmp_path), flickr()
    for position in (0, 1):  # a tall one, a broad one
        published = center_crop(resize(Image.open(io.BytesIO(files[names[position]])).convert("RGB"), 256), 224)
        ours = center_crop(packed._open(position), 224)
        assert packed._open(position).size == (256, 256)
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(published).astype(int)).mean() < 1


@pytest.mark.parametrize("name", SETS)
def test_archives_and_folders_give_the_same_file(tmp_path: Path, name: str) -> None:
    files, _, _ = MADE[name]()
    published, contents = archives(name, files), []
    for kind, content in (("archives", published), ("folders", files)):
        put(tmp_path / kind, content)
        assert run(name, tmp_path / kind, published) == 0
        with np.load(tmp_path / kind / f"{name}.npz") as members:
            contents.append({member: members[member].tobytes() for member in members.files})
    assert contents[0] == contents[1]


def test_photographs_of_nus_wide_in_one_folder_give_the_same_file(tmp_path: Path) -> None:
    packed = made("nus_wide", tmp_path / "folders")
    files, names, _ = nus_in_one_folder()
    put(tmp_path / "one" / "nus_wide", files)
    assert run("nus_wide", tmp_path / "one") == 0
    other = read_packed(tmp_path / "one" / "nus_wide.npz")
    assert other.names == packed.names == tuple(names)
    assert np.array_equal(other.data, packed.data) and np.array_equal(other.split, packed.split)


def test_full_paths_of_another_machine_in_the_image_list(tmp_path: Path) -> None:
    files, names, _ = nus()
    listed = files["ImageList/Imagelist.txt"].decode().split()
    files["ImageList/Imagelist.txt"] = lines(rf"C:\ImageData\Flickr\{name}" for name in listed)
    put(tmp_path, files)
    assert run("nus_wide", tmp_path) == 0
    assert read_packed(tmp_path / "nus_wide.npz").names == tuple(names)


def test_images_without_a_label_stay_and_are_counted(tmp_path: Path, capsys) -> None:
    packed = made("flickr25k", tmp_path)
    without = packed.labels.sum(dim=1).numpy() == 0
    assert np.flatnonzero(without).tolist() == [4, 9, 14, 19, 24, 29]
    said = capsys.readouterr().out
    assert f"6 images have none, of these {(without & (packed.split == 'query')).sum()} queries" in said
    assert "query 6, train 10, gallery 24 with train in it; 38 labels" in said


@pytest.mark.parametrize("name", SETS)
def test_a_second_run_does_nothing(tmp_path: Path, name: str, capsys) -> None:
    made(name, tmp_path)
    before = (tmp_path / f"{name}.npz").stat().st_mtime_ns
    assert run(name, tmp_path) == 0
    assert "source: already there" in capsys.readouterr().out
    assert (tmp_path / f"{name}.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("images", "classes", "query", "train", "message"),
    [
        (30, 37, 6, 10, "its labels are of shape (30, 37); expected 38 columns"),
        (30, 38, 6, 9, "there are 30 images, 6 of query and 9 of train; expected 30 images, 6 of query and 10 (or 8"),
        (30, 38, 5, 10, "there are 30 images, 5 of query and 10 of train; expected 30"),
        (29, 38, 6, 10, "there are 29 images, 6 of query and 10 of train; expected 30"),
    ],
)
def test_another_file_of_that_name_is_refused(tmp_path, images, classes, query, train, message, capsys) -> None:
    labels, names = flickr_labels()[:images, :classes], [f"class {column}" for column in range(classes)]
    split = ["query"] * query + ["train"] * train + ["database"] * (images - query - train)
    pictures = [Image.new("RGB", (16, 16))] * images
    data.write_packed(tmp_path / "flickr25k.npz", pictures, labels, names, split=split)
    assert run("flickr25k", tmp_path) == 1
    error = capsys.readouterr().err
    assert message in error and "Move it away" in error


# --- our own splits -------------------------------------------------------------------------------


def test_our_own_split_is_named_so(tmp_path: Path, capsys) -> None:
    made("coco", tmp_path)
    assert "split: drawn by this script (seed 0). It has the sizes of the published one" in capsys.readouterr().out


@pytest.mark.parametrize("draw", [split_drawing.anywhere, split_drawing.of_each_class])
def test_our_own_splits_repeat_whatever_the_order_and_depend_on_the_seed(draw, monkeypatch) -> None:
    _, names, labels = nus()
    first = dict(zip(names, draw(names, labels, SIZES["nus_wide"]), strict=True))
    again = dict(zip(names[::-1], draw(names[::-1], labels[::-1], SIZES["nus_wide"]), strict=True))
    assert first == again
    monkeypatch.setattr(split_drawing, "SEED", 1)
    assert first != dict(zip(names, draw(names, labels, SIZES["nus_wide"]), strict=True))


def test_of_each_class_there_are_as_many() -> None:
    """The rare class chooses first; here all others are of the frequent one alone."""
    labels = np.array([[1, 1]] * 5 + [[1, 0]] * 25, np.uint8)
    sizes = split_lists.Sizes(images=30, query=4, train=6, distinct_train=6)
    split = split_drawing.of_each_class([f"{image}.jpg" for image in range(30)], labels, sizes)
    assert sorted(split[:5]) == ["query"] * 2 + ["train"] * 3
    assert (split[5:] == "query").sum() == 2 and (split[5:] == "train").sum() == 3


def test_a_class_with_too_few_images_is_named() -> None:
    labels = np.array([[1, 1]] * 2 + [[1, 0]] * 28, np.uint8)
    with pytest.raises(official_files.SourceError, match="class 1 has 0 images left for train; expected 6"):
        split_drawing.of_each_class([str(image) for image in range(30)], labels, SIZES["nus_wide"])


# --- published lists ------------------------------------------------------------------------------


Lists = dict[str, list[int]]


def positions(name: str) -> Lists:
    """A split of 30 images; of FLICKR-25K two rows of train are repeats."""
    sizes = SIZES[name]
    query, database = list(range(sizes.query)), list(range(sizes.query, 30))
    train = database[: sizes.distinct_train]
    return {"test": query, "train": train + train[: sizes.train - len(train)], "database": database}


def in_pairs(names: list[str], labels: np.ndarray, lists: Lists) -> Files:
    files = {}
    for stem, rows in lists.items():
        files[f"{stem}_img.txt"] = lines(f"mirflickr/{names[row].rpartition('/')[2]}" for row in rows)
        files[f"{stem}_label.txt"] = lines(" ".join(map(str, labels[row])) + " " for row in rows)
    return files


def in_lines(names: list[str], labels: np.ndarray, lists: Lists) -> Files:
    """With the paths of another machine."""
    return {
        f"{stem}.txt": lines(f"/home/someone/{names[row]} {' '.join(map(str, labels[row]))}" for row in rows)
        for stem, rows in lists.items()
    }


def with_lists(name: str, root: Path, form: Callable, lists: Lists, labels: np.ndarray | None = None) -> None:
    """The small set with lists beside it, whose columns are in an order of their own."""
    files, names, official_labels = MADE[name]()
    labels = official_labels if labels is None else labels
    put(root, files)
    put(root / name, form(names, labels[:, ::-1], lists))


@pytest.mark.parametrize("form", [in_pairs, in_lines])
@pytest.mark.parametrize("name", SETS)
def test_published_lists_are_taken(tmp_path: Path, name: str, form, capsys) -> None:
    lists = positions(name)
    with_lists(name, tmp_path, form, lists)
    assert run(name, tmp_path) == 0
    packed = read_packed(tmp_path / f"{name}.npz")
    assert np.flatnonzero(packed.split == "query").tolist() == lists["test"]
    assert np.flatnonzero(packed.split == "train").tolist() == sorted(set(lists["train"]))
    assert np.array_equal(packed.labels.numpy(), MADE[name]()[2])
    sizes, said = SIZES[name], capsys.readouterr().out
    assert f"whose {sizes.train} rows of train name {sizes.distinct_train} images\n" in said
    assert str(tmp_path / name) in said and "drawn by" not in said
    assert run(name, tmp_path) == 0  # it knows its own file again


def test_the_list_of_the_database_may_be_left_out(tmp_path: Path) -> None:
    lists = positions("coco")
    del lists["database"]
    with_lists("coco", tmp_path, in_lines, lists)
    assert run("coco", tmp_path) == 0
    assert (read_packed(tmp_path / "coco.npz").split == "query").tolist() == [True] * 6 + [False] * 24


def test_other_labels_in_the_lists_are_named_and_not_packed(tmp_path: Path, capsys) -> None:
    _, _, labels = objects()
    others = labels.copy()
    others[[0, 29], 1] ^= 1  # a query, one of the database
    with_lists("coco", tmp_path, in_pairs, positions("coco"), others)
    assert run("coco", tmp_path) == 0
    assert "Difference: 2 of 40 rows have other labels than the official annotations" in capsys.readouterr().out
    assert np.array_equal(read_packed(tmp_path / "coco.npz").labels.numpy(), labels)


def without_a_row(lists: Lists, stem: str) -> Lists:
    return lists | {stem: lists[stem][:-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lists: without_a_row(lists, "train"), "the list 'train' in {} has 9 rows; expected 10"),
        (lambda lists: without_a_row(lists, "test"), "the list 'test' in {} has 5 rows; expected 6"),
        (lambda lists: without_a_row(lists, "database"), "the list 'database' in {} has 23 rows; expected 24"),
        (lambda lists: lists | {"train": [6] * 10}, "the list 'train' in {} names 1 images; expected 8, or 10"),
        (lambda lists: lists | {"test": [0, 0, 1, 2, 3, 4]}, "the list 'test' in {} names 5 images, some of them"),
        (
            lambda lists: lists | {"train": [0, *lists["train"][1:-2], *lists["train"][1:3]]},
            "im1.jpg is both in the list 'test' in {} and in the list 'train'",
        ),
        (
            lambda lists: lists | {"database": [0, *lists["database"][1:]]},
            "im1.jpg is both in the list 'test' in {} and in the list 'database'",
        ),
        (lambda lists: {"train": lists["train"]}, "{} has a list of train, but none named test"),
    ],
)
def test_lists_that_are_no_such_split_are_refused(tmp_path: Path, change, message: str, capsys) -> None:
    with_lists("flickr25k", tmp_path, in_lines, change(positions("flickr25k")))
    assert message.format(tmp_path / "flickr25k") in refused("flickr25k", tmp_path, capsys)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("test_label.txt", b"0 ", b"", "row 1 of {} has 37 labels; expected 38, each 0 or 1"),
        ("test_label.txt", b"0 ", b"2 ", "row 1 of {} has 38 labels; expected 38, each 0 or 1"),
        ("test_img.txt", b"im1.jpg", b"im77.jpg", "names 1 images that are not in the set, the first is im77.jpg"),
        ("test_img.txt", b"mirflickr/im1.jpg\r\n", b"", "has 5 rows, but {label} has 6"),
    ],
)
def test_damaged_lists_are_named(tmp_path: Path, file: str, old: bytes, new: bytes, message: str, capsys) -> None:
    with_lists("flickr25k", tmp_path, in_pairs, positions("flickr25k"))
    path = tmp_path / "flickr25k" / file
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    expected = message.format(path, label=path.with_name("test_label.txt"))
    assert expected in refused("flickr25k", tmp_path, capsys)


def test_a_list_without_its_labels_is_named(tmp_path: Path, capsys) -> None:
    with_lists("flickr25k", tmp_path, in_pairs, positions("flickr25k"))
    (tmp_path / "flickr25k" / "train_label.txt").unlink()
    assert "train_label.txt is not; they belong together" in refused("flickr25k", tmp_path, capsys)


# --- copies that lack images ----------------------------------------------------------------------


@pytest.mark.parametrize("lists", [False, True])
def test_the_reduced_copy_of_nus_wide_is_taken_and_named(tmp_path: Path, lists: bool, capsys) -> None:
    if lists:
        with_lists("nus_wide", tmp_path, in_pairs, positions("nus_wide"))
    else:
        put(tmp_path, nus()[0])
    names, gone = nus()[1], [0, 5, 20]  # of the lists a query, one of train, one of the database
    for image in gone:
        (tmp_path / "Flickr" / names[image]).unlink()
    assert run("nus_wide", tmp_path) == 0
    said = capsys.readouterr().out
    assert "difference: this is a copy that lacks 3 of 30 images" in said and names[0] in said
    packed = read_packed(tmp_path / "nus_wide.npz")
    assert packed.names == tuple(name for image, name in enumerate(names) if image not in gone)
    found = [(packed.split == role).sum() for role in ("query", "train", "database")]
    assert found == ([3, 11, 13] if lists else [4, 12, 11])
    assert run("nus_wide", tmp_path) == 0


@pytest.mark.parametrize("lacking", [1, LACKING - 1, LACKING + 1])
def test_any_other_number_of_missing_images_is_refused(tmp_path: Path, lacking: int, capsys) -> None:
    files, names, _ = nus()
    put(tmp_path, {file: content for file, content in files.items() if file[7:] not in names[:lacking]})
    first = ", then ".join(f"Flickr/{name}" for name in names[: min(lacking, 3)])
    said = refused("nus_wide", tmp_path, capsys)
    assert f"{tmp_path} lacks {lacking} of 30 files, the first is {first}\n" in said and "difference" not in said


@pytest.mark.parametrize("name", ["flickr25k", "coco"])
def test_missing_images_of_the_other_sets_are_refused(tmp_path: Path, name: str, capsys) -> None:
    files, names, _ = MADE[name]()
    put(tmp_path, {file: content for file, content in files.items() if file not in names[-5:-1]})
    assert (
        f"lacks 4 of {30 if name == 'flickr25k' else 9} files, the first is {names[-5]}, then {names[-4]}"
        in refused(name, tmp_path, capsys)
    )


@pytest.mark.parametrize("name", SETS)
def test_images_that_cannot_be_read_are_counted_and_named(tmp_path: Path, name: str, capsys) -> None:
    files, names, _ = MADE[name]()
    prefix = "Flickr/" if name == "nus_wide" else ""
    damaged = {f"{prefix}{image}": files[f"{prefix}{image}"][:200] for image in (names[3], names[17])}
    put(tmp_path, files | damaged)
    said = refused(name, tmp_path, capsys)
    assert f"2 of 30 images cannot be read: {prefix}{names[3]} is no photograph" in said and names[17] in said


# --- annotations that are not the official ones ---------------------------------------------------


SKY, CONCEPTS = "Groundtruth/AllLabels/Labels_sky.txt", nus_wide.CONCEPT_LIST
INSTANCES = "annotations/instances_val2014.json"
BABY = f"{flickr25k.ANNOTATIONS}/baby_r1.txt"


@pytest.mark.parametrize(
    ("name", "member", "change", "message"),
    [
        ("nus_wide", SKY, lambda c: c[:-3], f"{SKY} has 39 lines; expected 40, as ImageList/Imagelist.txt"),
        ("nus_wide", SKY, lambda c: b"0\r\n-1130179" + c[4:], f"{SKY} has '-1130179' in line 2; expected 0 or 1"),
        ("nus_wide", SKY, lambda c: b"0\r\n" * 40, "the annotations have 22 images with 2 labels; expected 30 images"),
        ("nus_wide", CONCEPTS, lambda c: c + b"unicorn\r\n", "the first is Groundtruth/AllLabels/Labels_unicorn.txt"),
        ("nus_wide", "ImageList/Imagelist.txt", lambda c: c[:-20], "_bear.txt has 40 lines; expected 39"),
        (
            "nus_wide",
            "ImageList/Imagelist.txt",
            lambda c: c.replace(b"0002_7002", b"0001_7001"),
            "name an image twice, or two images of one file",
        ),
        ("flickr25k", BABY, lambda c: c + b"31\r\n", f"{BABY} has photograph 31; expected 1 to 30"),
        ("flickr25k", BABY, lambda c: b"0\r\n" + c, f"{BABY} has photograph 0; expected 1 to 30"),
        ("flickr25k", BABY, lambda c: c + b"x\r\n", "has 'x' where a whole number is expected"),
        ("flickr25k", BABY, lambda c: c[: c.rindex(b"\r\n", 0, -1)], "labels in all; expected"),
        ("flickr25k", BABY, None, f"of 38 files, the first is {BABY}"),
        ("coco", INSTANCES, lambda c: c[:-10], f"{INSTANCES} cannot be understood (JSONDecodeError"),
        (
            "coco",
            INSTANCES,
            lambda c: c.replace(b'"category_id": 90', b'"category_id": 91', 1),
            f"{INSTANCES} cannot be understood (KeyError: 91)",
        ),
        ("coco", INSTANCES, lambda c: c.replace(b'"zebra"', b'"gnu"'), f"{INSTANCES} has other categories than that"),
        ("coco", INSTANCES, lambda c: b'{"images": []}', f"{INSTANCES} cannot be understood (KeyError: 'categories')"),
    ],
)
def test_annotations_that_are_not_the_official_ones(tmp_path: Path, name, member, change, message, capsys) -> None:
    files, _, _ = MADE[name]()
    content = files.pop(member)
    if change is not None:
        files[member] = change(content)
        assert files[member] != content
    put(tmp_path, files)
    assert message in refused(name, tmp_path, capsys)


# --- the scripts ----------------------------------------------------------------------------------


def test_the_official_counts() -> None:
    """Those of the published lists; how many rows train has, and how many images, is counted in them."""
    sizes = {name: (*hashing_set.sizes, hashing_set.sizes.database) for name, hashing_set in SETS.items()}
    assert sizes == {
        "flickr25k": (25_000, 1_700, 5_000, 4_496, 23_300),
        "nus_wide": (195_834, 2_100, 10_500, 10_500, 193_734),
        "coco": (122_218, 5_000, 10_000, 10_000, 117_218),
    }
    assert {name: hashing_set.classes for name, hashing_set in SETS.items()} == {
        "flickr25k": 38,
        "nus_wide": 21,
        "coco": 80,
    }
    assert len(set(flickr25k.CONCEPTS)) == 24 and set(flickr25k.STRICTER) < set(flickr25k.CONCEPTS)
    assert nus_wide.NUS_WIDE.reduced == 195_834 - 2_000


@pytest.mark.parametrize("name", SETS)
def test_nothing_is_fetched_that_cannot_be_verified(name: str) -> None:
    for form in SETS[name].layouts:
        for piece in form.pieces:
            assert not piece.urls or (piece.checksum is not None and piece.size is not None)
            assert piece.checksum is None or len(piece.checksum.partition(":")[2]) in (32, 64)


@pytest.mark.parametrize("name", SETS)
def test_nothing_there_says_where_it_is_to_be_had(tmp_path: Path, name: str, capsys) -> None:
    assert run(name, tmp_path) == 1
    output = capsys.readouterr()
    assert SETS[name].by_hand in output.err and "https://" in output.err and "not from" in output.out
    for piece in SETS[name].layouts[0].pieces:
        assert str(piece) in output.err
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("name", SETS)
def test_make_data_runs_the_script(name: str) -> None:
    command = ["make", "--dry-run", "-C", SCRIPTS.parent, "data", f"DATASET={name.replace('_', '-')}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"data_scripts/{name}.py" in shown.split() and (SCRIPTS / f"{name}.py").is_file()
