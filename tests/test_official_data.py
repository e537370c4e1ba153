"""The scripts of the official sets, on small sets of the same layouts: what they make, refuse, fetch and say."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.transforms import Resize

import cars
import cub
import official
import official_files
import sop
from robret_lib import data
from robret_lib.augmentation import random_crop_and_flip
from robret_lib.data.packed import read_packed

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
SHARED = Path(__file__).parents[2] / "shared" / "data"
TRAIN, TEST = 3, 2  # classes; class c has c + 2 images
NUMBERS = [number for number in range(1, TRAIN + TEST + 1) for _ in range(number + 2)]  # of the classes, one an image
OFFICIAL_SIDE = official.SIDE
PARTS = official.Part(3 + 4 + 5, TRAIN), official.Part(6 + 7, TEST)

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(request, timeout):
        raise URLError("no network\nin tests")

    monkeypatch.setattr(official_files, "urlopen", gone)


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three classes train, and squares are small; of the official side where a test says so."""
    monkeypatch.setattr(official, "SIDE", 24)
    monkeypatch.setattr(cub, "TRAIN_CLASSES", TRAIN)
    monkeypatch.setattr(cars, "TRAIN_CLASSES", TRAIN)
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))


@pytest.fixture
def official_side(monkeypatch: pytest.MonkeyPatch, small_sets: None) -> None:
    monkeypatch.setattr(official, "SIDE", OFFICIAL_SIDE)


# --- small sets of the official layouts -----------------------------------------------------------


@cache
def jpeg(image: int) -> bytes:
    """A photograph like no other: of its own size, one gray, one that its EXIF orientation would turn."""
    width, height = 40 + 10 * image, 120
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 9 * image, height))
    pixels = np.stack([across, down, np.full_like(across, 9 * image)], axis=2).astype(np.uint8)
    picture, exif = Image.fromarray(pixels).convert("L" if image == 1 else "RGB"), Image.Exif()
    exif[0x0112] = 6 if image == 2 else 1
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def birds() -> tuple[Files, list[str]]:
    names = [f"{number:03}.Bird_{number}/Bird_{image:04}.jpg" for image, number in enumerate(NUMBERS)]
    files = {f"CUB_200_2011/images/{name}": jpeg(image) for image, name in enumerate(names)}
    classes = [f"{number} {number:03}.Bird_{number}" for number in range(1, TRAIN + TEST + 1)]
    files["CUB_200_2011/classes.txt"] = lines(classes)
    files["CUB_200_2011/images.txt"] = lines(f"{image} {name}" for image, name in enumerate(names, 1))
    files["CUB_200_2011/image_class_labels.txt"] = lines(f"{image} {number}" for image, number in enumerate(NUMBERS, 1))
    files["attributes.txt"] = b"beside the folder, as in the official archive"
    return files, names


def products() -> tuple[Files, list[str]]:
    """Image and class numbers go on from one list to the other."""
    names = [
        f"{'bicycle' if number < 5 else 'coffee_maker'}_final/{image}_0.JPG" for image, number in enumerate(NUMBERS)
    ]
    files = {f"Stanford_Online_Products/{name}": jpeg(image) for image, name in enumerate(names)}
    rows = [f"{image} {number} 1 {name}" for image, (number, name) in enumerate(zip(NUMBERS, names, strict=True), 1)]
    heading = "image_id class_id super_class_id path"
    for split, its_rows in (("train", rows[: PARTS[0].images]), ("test", rows[PARTS[0].images :])):
        files[f"Stanford_Online_Products/Ebay_{split}.txt"] = lines([heading, *its_rows])
    return files, names


def cars_in_one_folder() -> tuple[Files, list[str]]:
    names = [f"car_ims/{image + 1:06}.jpg" for image in range(len(NUMBERS))]
    files = {name: jpeg(image) for image, name in enumerate(names)}
    tests = [image % 2 for image in range(len(NUMBERS))]
    files["cars_annos.mat"] = mat(
        annotations=annotations(relative_im_path=names, bbox_x1=NUMBERS, test=tests, **{"class": NUMBERS}),
        class_names=class_names_of_cars(),
    )
    return files, names


def cars_in_halves() -> tuple[Files, list[str]]:
    """Both halves have all classes; the numbers of the images begin anew in the second."""
    files, names = {"devkit/cars_meta.mat": mat(class_names=class_names_of_cars())}, []
    for rest, folder, member in (
        (0, "cars_train", "devkit/cars_train_annos.mat"),
        (1, "cars_test", "cars_test_annos_withlabels.mat"),
    ):
        images = [image for image in range(len(NUMBERS)) if image % 2 == rest]
        of_folder = [f"{place:05}.jpg" for place in range(1, len(images) + 1)]
        files |= {f"{folder}/{name}": jpeg(image) for image, name in zip(images, of_folder, strict=True)}
        files[member] = mat(annotations=annotations(fname=of_folder, **{"class": [NUMBERS[image] for image in images]}))
        names += [f"{folder}/{name}" for name in of_folder]
    return files, names


def lines(texts) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def annotations(**fields) -> np.ndarray:
    records = np.empty((1, len(next(iter(fields.values())))), [(field, object) for field in fields])
    for field, values in fields.items():
        records[field][0, :] = values
    return records


def class_names_of_cars() -> np.ndarray:
    return np.array([[f"Car {number} 2012" for number in range(1, TRAIN + TEST + 1)]], object)


def mat(**variables: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def tgz(files: Files) -> bytes:
    """Members in an order that is not that of the lists, as official ones are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return buffer.getvalue()


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in reversed(files):
            archive.writestr(name, files[name])
    return buffer.getvalue()


def below(files: Files, *tops: str) -> Files:
    return {name: content for name, content in files.items() if name.startswith(tuple(f"{top}/" for top in tops))}


ARCHIVES: dict[str, Callable[[Files], Files]] = {
    "cub": lambda files: {"CUB_200_2011.tgz": tgz(files)},
    "sop": lambda files: {"Stanford_Online_Products.zip": zipped(files)},
    "cars in one folder": lambda files: {
        "car_ims.tgz": tgz(below(files, "car_ims")),
        "cars_annos.mat": files["cars_annos.mat"],
    },
    "cars in halves": lambda files: {
        "cars_train.tgz": tgz(below(files, "cars_train")),
        "cars_test.tgz": tgz(below(files, "cars_test")),
        "car_devkit.tgz": tgz(below(files, "devkit")),
        "cars_test_annos_withlabels.mat": files["cars_test_annos_withlabels.mat"],
    },
}
SETS = {"cub": cub.CUB, "sop": sop.SOP, "cars in one folder": cars.CARS, "cars in halves": cars.CARS}
MADE = {"cub": birds, "sop": products, "cars in one folder": cars_in_one_folder, "cars in halves": cars_in_halves}


def small(form: str, known: Files) -> official.OfficialSet:
    """The set of a script, with the counts of the small one, and with the checksums of the files that are known."""

    def known_piece(piece: official_files.Piece) -> official_files.Piece:
        if piece.file not in known:
            return piece
        content = known[piece.file]
        return replace(piece, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))

    layouts = tuple(
        replace(layout, pieces=tuple(known_piece(piece) for piece in layout.pieces)) for layout in SETS[form].layouts
    )
    return replace(SETS[form], layouts=layouts, train=PARTS[0], test=PARTS[1])


def put(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def put_archives(root: Path, form: str, files: Files) -> official.OfficialSet:
    archives = ARCHIVES[form](files)
    put(root, archives)
    return small(form, archives)


def put_unpacked(root: Path, form: str, files: Files, folder: str = "") -> official.OfficialSet:
    put(root / folder, files)
    return small(form, files)


def run(small_set: official.OfficialSet, root: Path) -> int:
    return official.main(small_set, ["--root", str(root)])


def below_root(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


# --- what is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SETS)
@pytest.mark.parametrize("unpacked", [False, True])
def test_what_is_made_is_the_set(tmp_path: Path, form: str, unpacked: bool, official_side, capsys) -> None:
    files, names = MADE[form]()
    small_set = (put_unpacked if unpacked else put_archives)(tmp_path, form, files)
    before = below_root(tmp_path)
    assert run(small_set, tmp_path) == 0
    assert "train 12 images of 3 classes, test 13 images of 2 classes" in capsys.readouterr().out
    assert below_root(tmp_path) - before == {f"{small_set.name}.npz"}

    packed = read_packed(tmp_path / f"{small_set.name}.npz")
    numbers = {name: int(label) + 1 for name, label in zip(packed.names, packed.labels, strict=True)}
    assert packed.names == tuple(names)
    assert packed.split.tolist() == ["train" if number <= TRAIN else "test" for number in numbers.values()]
    prefix = {"cub": "CUB_200_2011/images/", "sop": "Stanford_Online_Products/"}.get(form, "")
    images = {jpeg(image): image for image in range(len(NUMBERS))}
    for position, (name, number) in enumerate(numbers.items()):
        original = files[prefix + name]
        assert number == NUMBERS[images[original]]
        published = Resize((256, 256))(Image.open(io.BytesIO(original)).convert("RGB"))
        difference = np.asarray(packed._open(position)).astype(int) - np.asarray(published).astype(int)
        assert packed._open(position).size == (256, 256) and np.abs(difference).mean() < 1


@pytest.mark.parametrize("form", SETS)
def test_it_is_loaded_by_its_name(tmp_path: Path, form: str, official_side) -> None:
    small_set = put_archives(tmp_path, form, MADE[form]()[0])
    run(small_set, tmp_path)
    loaded = data.load(small_set.name, "full", size=256)
    assert loaded.train.images.shape == (12, 3, 256, 256) and loaded.gallery.images.shape == (13, 3, 256, 256)
    assert loaded.train.labels.unique().tolist() == [0, 1, 2] and loaded.query.labels.unique().tolist() == [3, 4]
    assert loaded.protocol.class_disjoint and loaded.protocol.self_excluded and loaded.query is loaded.gallery
    first, last = {
        "cub": ("001.Bird_1", "005.Bird_5"),
        "sop": ("bicycle 1", "coffee_maker 5"),
    }.get(form, ("Car 1 2012", "Car 5 2012"))
    assert len(loaded.class_names) == 5 and (loaded.class_names[0], loaded.class_names[-1]) == (first, last)


@pytest.mark.parametrize("form", SETS)
def test_archives_and_folders_give_the_same_file(tmp_path: Path, form: str) -> None:
    files, _ = MADE[form]()
    made = set()
    for name, place in (("archives", put_archives), ("folders", put_unpacked)):
        small_set = place(tmp_path / name, form, files)
        assert run(small_set, tmp_path / name) == 0
        with np.load(tmp_path / name / f"{small_set.name}.npz") as members:
            made.add(tuple((member, members[member].tobytes()) for member in members.files))
    assert len(made) == 1


@pytest.mark.parametrize("folder", ["cars", "stanford_cars"])
@pytest.mark.parametrize("form", ["cars in one folder", "cars in halves"])
def test_cars_are_found_where_others_keep_them(tmp_path: Path, form: str, folder: str) -> None:
    assert run(put_unpacked(tmp_path, form, MADE[form]()[0], folder), tmp_path) == 0


def test_folders_within_folders_of_their_name_are_found(tmp_path: Path) -> None:
    files, _ = cars_in_halves()
    doubled = {f"{name.partition('/')[0]}/{name}" if "/" in name else name: files[name] for name in files}
    assert run(put_unpacked(tmp_path, "cars in halves", doubled), tmp_path) == 0


def test_pieces_may_lie_apart_and_in_different_states(tmp_path: Path) -> None:
    files, _ = cars_in_halves()
    small_set = put_archives(tmp_path, "cars in halves", files)
    (tmp_path / "cars_train.tgz").unlink()
    put(tmp_path / "cars", below(files, "cars_train"))
    assert run(small_set, tmp_path) == 0


def test_early_files_are_held_and_no_others() -> None:
    given = []

    def arriving():
        for name in "cab":
            given.append(name)
            yield name, name.encode()

    ordered = official.in_order("abc", arriving())
    assert given == [] and next(ordered) == b"a" and given == ["c", "a"]
    assert list(ordered) == [b"b", b"c"]


# --- a second run, an interrupted one -------------------------------------------------------------


@pytest.mark.parametrize("form", SETS)
def test_a_second_run_does_nothing(tmp_path: Path, form: str, monkeypatch, capsys) -> None:
    small_set = put_archives(tmp_path, form, MADE[form]()[0])
    assert run(small_set, tmp_path) == 0
    for file in below_root(tmp_path) - {f"{small_set.name}.npz"}:
        (tmp_path / file).unlink()
    monkeypatch.setattr(official, "pack", None)  # calling it would raise TypeError
    before = (tmp_path / f"{small_set.name}.npz").stat()
    assert run(small_set, tmp_path) == 0
    assert "source: already there" in capsys.readouterr().out
    assert (tmp_path / f"{small_set.name}.npz").stat().st_mtime_ns == before.st_mtime_ns


def test_an_interrupted_run_leaves_nothing_half_and_the_next_is_whole(tmp_path: Path, monkeypatch, capsys) -> None:
    small_set = put_archives(tmp_path, "cub", birds()[0])
    squeezed, calls = official.squeezed, []

    def interrupted(content: bytes, name: str) -> bytes:
        calls.append(name)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return squeezed(content, name)

    monkeypatch.setattr(official, "squeezed", interrupted)
    assert run(small_set, tmp_path) == 130
    assert "nothing is left half-written" in capsys.readouterr().err
    assert below_root(tmp_path) == {"CUB_200_2011.tgz"}
    assert run(small_set, tmp_path) == 0 and len(calls) == 7 + 25


def test_a_disk_that_is_full_is_an_error_in_words(tmp_path: Path, monkeypatch, capsys) -> None:
    small_set = put_archives(tmp_path, "sop", products()[0])

    def full(file, **members):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert run(small_set, tmp_path) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "sop.npz" in error and "--root or ROBRET_DATA" in error
    assert below_root(tmp_path) == {"Stanford_Online_Products.zip"}


def of_other_counts(path: Path) -> None:
    write(path, [0, 0, 1, 1, 2], ["train", "train", "test", "test", "test"])


def without_a_split(path: Path) -> None:
    write(path, [number - 1 for number in NUMBERS], None)


def of_another_side(path: Path) -> None:
    write(path, [number - 1 for number in NUMBERS], ["train" if n <= TRAIN else "test" for n in NUMBERS])


def with_a_class_in_both(path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, *[2] * 6, *[4] * 7]
    write(path, labels, ["train"] * 12 + ["test"] * 13)


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def write(path: Path, labels: list[int], split: list[str] | None) -> None:
    images = [Image.new("RGB", (16, 16))] * len(labels)
    data.write_packed(path, images, labels, [f"class {n}" for n in range(max(labels) + 1)], split=split)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_other_counts, "train has 2 images of 1 classes; expected 12 images of 3 classes"),
        (without_a_split, "train has 0 images"),
        (of_another_side, "its smallest side is 16 pixels; expected 24"),
        (with_a_class_in_both, "class 2 is both in train and in test"),
        (altered, "cannot be read as a packed .npz"),
        (cut_off, "cannot be read as a packed .npz"),
    ],
)
def test_another_file_of_that_name_is_refused_and_left_alone(tmp_path: Path, spoil, message: str, capsys) -> None:
    small_set, path = put_archives(tmp_path, "sop", products()[0]), tmp_path / "sop.npz"
    assert run(small_set, tmp_path) == 0
    spoil(path)
    content = path.read_bytes()
    assert run(small_set, tmp_path) == 1
    error = capsys.readouterr().err
    assert message in error and "Move it away, and run again" in error
    assert path.read_bytes() == content
    path.unlink()
    assert run(small_set, tmp_path) == 0


# --- what is refused ------------------------------------------------------------------------------


def refused(small_set: official.OfficialSet, root: Path, capsys) -> str:
    """What a run says that makes nothing: why, and how to get the set."""
    assert run(small_set, root) == 1
    assert not (root / f"{small_set.name}.npz").exists() and not list(root.rglob("*.tmp"))
    output = capsys.readouterr()
    assert f"error: {small_set.title} is not in {root}" in output.err and small_set.by_hand in output.err
    return output.out


@pytest.mark.parametrize("form", SETS)
def test_nothing_there_and_no_network_says_where_it_is_to_be_had(tmp_path: Path, form: str, capsys) -> None:
    small_set = replace(SETS[form], train=PARTS[0])
    root = tmp_path / "new"
    assert run(small_set, root) == 1
    output = capsys.readouterr()
    assert str(root) in output.err and small_set.by_hand in output.err and "https://" in output.err
    for layout in small_set.layouts:
        for piece in layout.pieces:
            assert piece.file in output.err and piece.checksum.partition(":")[2] in output.err
        first = layout.pieces[0].file
        assert f"not from {layout}: {first} is not in {root}" in output.out
    for url in small_set.layouts[0].pieces[0].urls:
        assert f"not from {url}: no download" in output.out and "no network in tests" in output.out
    assert not root.exists() or not any(root.iterdir())


@pytest.mark.parametrize("form", SETS)
def test_a_wrong_checksum_is_named(tmp_path: Path, form: str, capsys) -> None:
    small_set = put_archives(tmp_path, form, MADE[form]()[0])
    for file in below_root(tmp_path):
        intact = (tmp_path / file).read_bytes()
        altered(tmp_path / file)
        said = refused(small_set, tmp_path, capsys)
        assert f"{tmp_path / file} is altered or another file: sha256" in said and f"{file} is not in" not in said
        (tmp_path / file).write_bytes(intact)
    assert run(small_set, tmp_path) == 0


@pytest.mark.parametrize("form", SETS)
def test_a_wrong_size_is_named(tmp_path: Path, form: str, capsys) -> None:
    small_set = put_archives(tmp_path, form, MADE[form]()[0])
    for file in below_root(tmp_path):
        intact = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(intact[:-10])
        said = refused(small_set, tmp_path, capsys)
        assert f"cut off or another file: {len(intact) - 10:,} bytes, expected {len(intact):,}" in said
        (tmp_path / file).write_bytes(intact)


def test_a_known_md5_is_enough(tmp_path: Path, capsys) -> None:
    small_set = put_archives(tmp_path, "cars in one folder", cars_in_one_folder()[0])
    content = (tmp_path / "car_ims.tgz").read_bytes()
    annotation, images = small_set.layouts[0].pieces
    images = replace(images, size=None, checksum=f"md5:{hashlib.md5(content).hexdigest()}")
    small_set = replace(small_set, layouts=(replace(small_set.layouts[0], pieces=(annotation, images)),))
    altered(tmp_path / "car_ims.tgz")
    assert "car_ims.tgz is altered or another file: md5" in refused(small_set, tmp_path, capsys)
    (tmp_path / "car_ims.tgz").write_bytes(content)
    assert run(small_set, tmp_path) == 0


@pytest.mark.parametrize("form", SETS)
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_an_archive_that_was_published_cut_off_is_damaged(tmp_path: Path, form: str, kept: float, capsys) -> None:
    archives = ARCHIVES[form](MADE[form]()[0])
    file = max(archives, key=lambda name: len(archives[name]))
    archives[file] = archives[file][: int(kept * len(archives[file]))]
    put(tmp_path, archives)
    assert f"{tmp_path / file} is damaged" in refused(small(form, archives), tmp_path, capsys)


@pytest.mark.parametrize("place", [put_archives, put_unpacked])
@pytest.mark.parametrize("form", SETS)
def test_a_missing_file_is_named(tmp_path: Path, form: str, place, capsys) -> None:
    files, _ = MADE[form]()
    lists = next(layout.lists for layout in SETS[form].layouts if set(layout.lists) <= set(files))
    photographs = [name for name in files if name.lower().endswith(".jpg")]
    for number, name in enumerate([photographs[-1], *lists]):
        if "/" in name:
            root = tmp_path / str(number)
            left = {other: content for other, content in files.items() if other != name}
            assert name in refused(place(root, form, left), root, capsys)


def changed(files: Files, member: str, old: str, new: str) -> Files:
    text = files[member].decode()
    assert old in text
    return files | {member: text.replace(old, new, 1).encode()}


CLASSES_OF_BIRDS, IMAGES_OF_BIRDS, LABELS_OF_BIRDS = cub.CLASSES, cub.IMAGES, cub.LABELS
TRAIN_PRODUCTS, TEST_PRODUCTS = sop.LISTS.values()


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        (LABELS_OF_BIRDS, "25 5\n", "25 6\n", "class number 6 for 005.Bird_5/Bird_0024.jpg; expected 1 to 5"),
        (LABELS_OF_BIRDS, "1 1\n", "1 0\n", "class number 0 for 001.Bird_1/Bird_0000.jpg; expected 1 to 5"),
        (LABELS_OF_BIRDS, "1 1\n", "1 -1\n", "has '-1' where a whole number is expected"),
        (LABELS_OF_BIRDS, "1 1\n", "1 4\n", "train has 11 images of 3 classes; expected 12 images of 3 classes"),
        (LABELS_OF_BIRDS, "1 1\n", "", "images.txt and CUB_200_2011/image_class_labels.txt are not about the same"),
        (LABELS_OF_BIRDS, "1 1\n", "1\n", "has the line '1'; expected 2 fields"),
        (CLASSES_OF_BIRDS, "5 005.Bird_5\n", "", "the lists have 4 classes; expected 5"),
        (IMAGES_OF_BIRDS, "Bird_0001", "Bird_0000", "the lists name a photograph twice"),
        (IMAGES_OF_BIRDS, "Bird_0001", "Bird_9999", "of 25 files, the first is CUB_200_2011/images/001.Bird_1/Bird_99"),
        (IMAGES_OF_BIRDS, "001.Bird_1/Bird_0001", "../../../secret", "images/../../../secret.jpg"),
    ],
)
def test_lists_of_birds_that_are_not_the_official_ones(tmp_path, member, old, new, message, capsys) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    root = tmp_path / "root"
    for place, kind in ((put_archives, "archives"), (put_unpacked, "folders")):
        small_set = place(root / kind, "cub", changed(birds()[0], member, old, new))
        assert message in refused(small_set, root / kind, capsys)


@pytest.mark.parametrize(
    ("member", "old", "new", "message"),
    [
        (TEST_PRODUCTS, "25 5 1", "25 6 1", "the lists have 6 classes; expected 5"),
        (TEST_PRODUCTS, "13 4 1", "13 1 1", "test has 13 images of 3 classes; expected 13 images of 2 classes"),
        (TRAIN_PRODUCTS, "1 1 1 bicycle_final/0_0.JPG\n", "", "train has 11 images of 3 classes; expected 12"),
        (TRAIN_PRODUCTS, "1 1 1 bicycle", "1 1 bicycle", "expected 4 fields"),
        (TRAIN_PRODUCTS, "1 1 1 ", "1 one 1 ", "has 'one' where a whole number is expected"),
    ],
)
def test_lists_of_products_that_are_not_the_official_ones(tmp_path, member, old, new, message, capsys) -> None:
    files = changed(products()[0], member, old, new)
    assert message in refused(put_archives(tmp_path, "sop", files), tmp_path, capsys)


def test_as_many_classes_of_products_with_a_number_too_high(tmp_path: Path, capsys) -> None:
    files = products()[0]
    files[TEST_PRODUCTS] = files[TEST_PRODUCTS].replace(b" 5 1 ", b" 6 1 ")
    said = refused(put_archives(tmp_path, "sop", files), tmp_path, capsys)
    assert "class number 6 for coffee_maker_final/18_0.JPG; expected 1 to 5" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no MATLAB file", "'annotations' cannot be read"),
        (mat(class_names=class_names_of_cars()), "'annotations' cannot be read"),
        (mat(annotations=annotations(fname=["00001.jpg"])), "expected 'class' among them"),
        (mat(annotations=annotations(fname=["00001.jpg"], **{"class": [1]})), "train has"),
        (
            mat(annotations=annotations(fname=["1.jpg"] * 12, **{"class": [6] * 12})),
            "class number 6 for cars_test/1.jpg",
        ),
    ],
)
def test_lists_of_cars_that_are_not_the_official_ones(tmp_path: Path, content: bytes, message: str, capsys) -> None:
    files = cars_in_halves()[0] | {"cars_test_annos_withlabels.mat": content}
    assert message in refused(put_unpacked(tmp_path, "cars in halves", files), tmp_path, capsys)


def test_cars_outside_their_folder_are_not_looked_for(tmp_path: Path, capsys) -> None:
    files, names = cars_in_one_folder()
    outside = ["/etc/passwd", *names[1:]]
    listed = annotations(relative_im_path=outside, **{"class": NUMBERS})
    files["cars_annos.mat"] = mat(annotations=listed, class_names=class_names_of_cars())
    said = refused(put_unpacked(tmp_path, "cars in one folder", files), tmp_path, capsys)
    assert "the lists name the file '/etc/passwd', which is not in cars_annos.mat or car_ims" in said


@pytest.mark.parametrize("form", SETS)
def test_what_is_no_photograph_is_named(tmp_path: Path, form: str, capsys) -> None:
    files, _ = MADE[form]()
    name = next(name for name in files if name.lower().endswith(".jpg"))
    for content in (b"no JPEG file", files[name][:200]):
        said = refused(put_unpacked(tmp_path, form, files | {name: content}), tmp_path, capsys)
        assert f"{name} is no photograph that can be read" in said


def test_nothing_of_an_archive_is_unpacked(tmp_path: Path) -> None:
    """Members that would land outside, links and all, are never asked for."""
    root = tmp_path / "deep" / "root"
    files = birds()[0] | {"../outside.txt": b"written outside", f"{tmp_path}/absolute.txt": b"too"}
    assert run(put_archives(root, "cub", files), root) == 0
    assert below_root(tmp_path) == {"deep/root/CUB_200_2011.tgz", "deep/root/cub.npz"}


# --- the network ----------------------------------------------------------------------------------


class Host:
    """Stands in for `urlopen`: serves one file, by ranges or not, and breaks off after some bytes, or with an error."""

    def __init__(self, content: bytes, ranges: bool = True, breaks_after: int | None = None, error=None) -> None:
        self.content, self.ranges, self.breaks_after, self.error = content, ranges, breaks_after, error
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, request, timeout: float):
        assert timeout == official_files.NETWORK_TIMEOUT
        asked = request.get_header("Range")
        self.asked.append((request.full_url, asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        stream, given = io.BytesIO(self.content[start:]), 0

        def read(size: int) -> bytes:
            nonlocal given
            if self.breaks_after is not None:
                size = min(size, self.breaks_after - given)
                if size == 0 and self.error:
                    raise self.error
            chunk = stream.read(size)
            given += len(chunk)
            return chunk

        headers = {"Content-Length": str(len(self.content) - start)}
        response = SimpleNamespace(status=206 if asked and self.ranges else 200, headers=headers, read=read)
        return ResponseContext(response)


class ResponseContext:
    def __init__(self, response) -> None:
        self.response = response

    def __enter__(self):
        return self.response

    def __exit__(self, *error) -> None:
        pass


@pytest.fixture
def offered() -> tuple[bytes, official.OfficialSet]:
    """The archive of the products, and the set with two hosts that offer it."""
    archives = ARCHIVES["sop"](products()[0])
    return archives["Stanford_Online_Products.zip"], small("sop", archives)


@pytest.fixture
def serve(monkeypatch) -> Callable[[Host], Host]:
    def serving(host: Host) -> Host:
        monkeypatch.setattr(official_files, "urlopen", host)
        return host

    return serving


def test_what_is_not_there_is_fetched_and_kept(tmp_path: Path, offered, serve) -> None:
    content, small_set = offered
    host = serve(Host(content))
    root = tmp_path / "new"
    assert run(small_set, root) == 0
    assert below_root(root) == {"sop.npz", "Stanford_Online_Products.zip"}
    assert host.asked == [(small_set.layouts[0].pieces[0].urls[0], None)]


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset"), TimeoutError("silent")])
def test_a_download_that_broke_off_goes_on_where_it_was(tmp_path: Path, offered, serve, capsys, error) -> None:
    content, small_set = offered
    serve(Host(content, breaks_after=3000, error=error))
    said = refused(small_set, tmp_path, capsys)
    assert str(error) in said if error else "broke off after 3,000 of" in said
    assert below_root(tmp_path) == {"Stanford_Online_Products.zip.part"}
    received = (tmp_path / "Stanford_Online_Products.zip.part").read_bytes()
    assert received == content[: len(received)] and len(received) in (3000, 6000)  # of one host or of both
    host = serve(Host(content))
    assert run(small_set, tmp_path) == 0
    assert host.asked == [(small_set.layouts[0].pieces[0].urls[0], f"bytes={len(received)}-")]
    assert (tmp_path / "Stanford_Online_Products.zip").read_bytes() == content


def test_a_host_that_only_gives_whole_files_begins_anew(tmp_path: Path, offered, serve) -> None:
    content, small_set = offered
    (tmp_path / "Stanford_Online_Products.zip.part").write_bytes(b"x" * 5000)
    serve(Host(content, ranges=False))
    assert run(small_set, tmp_path) == 0
    assert (tmp_path / "Stanford_Online_Products.zip").read_bytes() == content


def test_a_part_that_is_whole_is_not_fetched_again(tmp_path: Path, offered) -> None:
    content, small_set = offered
    (tmp_path / "Stanford_Online_Products.zip.part").write_bytes(content)
    assert run(small_set, tmp_path) == 0


def test_a_web_page_in_place_of_the_file_is_refused_unread(tmp_path: Path, offered, serve, capsys) -> None:
    content, small_set = offered
    host = serve(Host(b"<html>Sorry, this file is too large to be scanned for viruses</html>"))
    said = refused(small_set, tmp_path, capsys)
    assert f"offers 68 bytes, expected {len(content):,}" in said
    assert len(host.asked) == 2 and below_root(tmp_path) == set()


def test_an_altered_download_is_thrown_away(tmp_path: Path, offered, serve, capsys) -> None:
    content, small_set = offered
    host = serve(Host(content[:-1] + b"x"))
    assert "is altered or another file: sha256" in refused(small_set, tmp_path, capsys)
    assert [asked for _, asked in host.asked] == [None, None] and below_root(tmp_path) == set()


def test_a_damaged_archive_is_fetched_again(tmp_path: Path, offered, serve) -> None:
    content, small_set = offered
    (tmp_path / "Stanford_Online_Products.zip").write_bytes(content[:-100])
    serve(Host(content))
    assert run(small_set, tmp_path) == 0
    assert (tmp_path / "Stanford_Online_Products.zip").read_bytes() == content


# --- the scripts ----------------------------------------------------------------------------------


def test_the_official_counts_and_checksums() -> None:
    images = {s.name: s.train.images + s.test.images for s in (cub.CUB, cars.CARS, sop.SOP)}
    classes = {s.name: s.train.classes + s.test.classes for s in (cub.CUB, cars.CARS, sop.SOP)}
    assert images == {"cub": 11_788, "cars": 16_185, "sop": 120_053}
    assert classes == {"cub": 200, "cars": 196, "sop": 22_634}
    for official_set in (cub.CUB, cars.CARS, sop.SOP):
        for piece in (piece for layout in official_set.layouts for piece in layout.pieces):
            algorithm, _, digits = piece.checksum.partition(":")
            assert len(bytes.fromhex(digits)) == hashlib.new(algorithm).digest_size
            assert piece.size is not None or not piece.urls


def test_the_official_lists_of_birds_have_the_published_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = SHARED / "cub200_2011_annotations.zip"
    if not archive.exists():
        pytest.skip(f"../shared/data/{archive.name} is not here")
    monkeypatch.undo()
    listing = cub.listing(dict(official_files.read_zip(archive, cub.CUB.layouts[0].lists)))
    official.check_listing(listing.photographs, listing.class_names, cub.CUB)
    assert listing.class_names[100] == "101.White_Pelican"
    assert [photograph.split for photograph in listing.photographs].index("test") == 5_864


def test_a_script_imports_the_library_of_its_own_checkout(tmp_path: Path) -> None:
    (tmp_path / "robret_lib").mkdir()
    (tmp_path / "robret_lib" / "__init__.py").write_text("raise SystemExit('another library')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, SCRIPTS / "cub.py", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "CUB-200-2011, as cub.npz" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cub", "cars", "sop"])
def test_a_script_without_a_network_ends_in_words(tmp_path: Path, name: str) -> None:
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy"), "http://127.0.0.1:9")
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    command = [sys.executable, SCRIPTS / f"{name}.py", "--root", tmp_path]
    done = subprocess.run(command, env=kept | unreachable, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1 and "To get it by hand:" in done.stderr


def test_load_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="'cub', 'cars', 'sop', .*`make data DATASET=cub`"):
        data.load("cub")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("name", ["cub", "cars", "sop", "fashion-mnist"])
def test_make_data_runs_the_script(name: str) -> None:
    command = ["make", "--dry-run", "-C", SCRIPTS.parent, "data", f"DATASET={name}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (script,) = (word for word in shown.split() if word.startswith("data_scripts/"))
    assert (SCRIPTS.parent / script).is_file() and script.endswith(f"/{name.replace('-', '_')}.py")


def test_full_scale_as_published_crops_what_was_squeezed(tmp_path: Path, official_side) -> None:
    """Random crops of 224 from 256 to train on, center crops to search in."""
    run(put_archives(tmp_path, "cub", birds()[0]), tmp_path)
    loaded = data.center_cropped(data.load("cub", "full", size=256), 224)
    assert loaded.train.images.shape == (12, 3, 256, 256) and loaded.query.images.shape == (13, 3, 224, 224)
    crops = random_crop_and_flip(loaded.train.images, 224, torch.Generator().manual_seed(0))
    assert crops.shape == (12, 3, 224, 224) and crops.dtype == torch.uint8
