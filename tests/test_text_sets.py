"""The scripts of the official sets with texts, on small sets of the same layouts: what is kept, and what it says."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import numpy as np
import pytest

import coco
import coco_captions
import flickr25k
import flickr25k_tags
import nus_wide
import nus_wide_tags
import official
import official_files
from robret_lib import data
from robret_lib.data.bag_of_words import Vocabulary
from robret_lib.data.names import OFFICIAL
from robret_lib.data.packed import read_packed
from robret_lib.recipes.named_image_text import OFFICIAL_PAIRS
from split_lists import Sizes
from tests.test_hashing_sets import Files, flickr, in_lines, jpeg, lines, nus, objects, put, zipped

SCRIPTS = Path(__file__).parents[1] / "data_scripts"
SETS = {
    "flickr25k_tags": flickr25k_tags.FLICKR25K_TAGS,
    "nus_wide_tags": nus_wide_tags.NUS_WIDE_TAGS,
    "coco_captions": coco_captions.COCO_CAPTIONS,
}
SIZES = {
    "flickr25k_tags": Sizes(images=21, query=4, train=9, distinct_train=9),
    "nus_wide_tags": Sizes(images=28, query=4, train=12, distinct_train=12),
    "coco_captions": Sizes(images=36, query=6, train=10, distinct_train=10),
}
CLASSES = {"flickr25k_tags": 24, "nus_wide_tags": 2, "coco_captions": 4}
OF_PICTURES = {"flickr25k_tags": "flickr25k", "nus_wide_tags": "nus_wide", "coco_captions": "coco"}
OFFICIAL_TAGS = flickr25k_tags.TAGS
WORDS = ("sky", "canon", "été", "d80", "sea", "sun")
RARE = "myholidays2007"


class Expected(NamedTuple):
    """What the packed file of a small set holds."""

    names: list[str]
    labels: np.ndarray
    texts: list[str]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and sets of some small squares."""

    def gone(request, timeout):
        raise URLError("no network in tests")

    monkeypatch.setattr(official_files, "urlopen", gone)
    monkeypatch.setattr(official, "SIDE", 16)
    monkeypatch.setattr(flickr25k, "PHOTOGRAPHS", 30)
    monkeypatch.setattr(flickr25k_tags, "TAGS", len(WORDS))
    monkeypatch.setattr(nus_wide, "FREQUENT", 2)
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))


# --- small sets of the official layouts -----------------------------------------------------------


def marks(image: int) -> list[bool]:
    """Which of the words an image has: others than any other image, none in images 0 and 10."""
    return [image != 10 and bool(image >> place & 1) for place in range(len(WORDS))]


def words_of(image: int) -> list[str]:
    return [word for word, marked in zip(WORDS, marks(image), strict=True) if marked]


def flickr_with_tags() -> tuple[Files, Expected]:
    """The images 4, 9, ... have no label and 8 a stricter one only; 0 has a rare tag only and 10 an empty file."""
    files, names, labels = flickr()
    labels[8] = [name == "baby_r1" for name in flickr25k.CLASSES]
    for column, name in enumerate(flickr25k.CLASSES):
        files[f"{flickr25k.ANNOTATIONS}/{name}.txt"] = lines(np.flatnonzero(labels[:, column]) + 1)
    for image in range(30):
        tags = [] if image == 10 else [RARE, *words_of(image)]
        files[f"mirflickr/meta/tags/tags{image + 1}.txt"] = lines(tags)
    files["mirflickr/doc/common_tags.txt"] = lines(f"{word} {20 + place}" for place, word in enumerate(WORDS))
    files["mirflickr/meta/license/license1.txt"] = b"not read"
    kept = [image for image in range(30) if image not in (0, 8, 10) and image % 5 != 4]
    concepts = [flickr25k.CLASSES.index(name) for name in flickr25k.CONCEPTS]
    texts = [" ".join(words_of(image)) for image in kept]
    return files, Expected([names[image] for image in kept], labels[kept][:, concepts], texts)


def nus_with_tags() -> tuple[Files, Expected]:
    """Of the images 10 and 21 no word is marked, and no photograph is there; rows end in a tab, as official ones do."""
    files, names, labels = nus()
    every = {int(name.rpartition("/")[2][:4]): (name, row) for name, row in zip(names, labels, strict=True)}
    kept = [image for image in every if image not in (10, 21)]
    rows = [[0] * len(WORDS) if image == 21 else [int(marked) for marked in marks(image)] for image in range(40)]
    files["NUS_WID_Tags/AllTags1k.txt"] = lines("".join(f"{mark}\t" for mark in row) for row in rows)
    files["NUS_WID_Tags/TagList1k.txt"] = lines(WORDS)
    for image in (10, 21):
        del files[f"Flickr/{every[image][0]}"]
    texts = [" ".join(words_of(image)) for image in kept]
    return files, Expected([every[image][0] for image in kept], np.array([every[image][1] for image in kept]), texts)


def caption(image: int, view: int) -> str:
    return f"Photograph {image}, view {view}."


def objects_with_captions() -> tuple[Files, Expected]:
    """Captions stand in an order that is not that of their numbers; the images 2 and 30 have a sixth one."""
    files, shown, rows = objects()
    labels = dict(zip(shown, rows, strict=True))
    names = []
    for part, images in (("train2014", range(24)), ("val2014", range(24, 36))):
        own = {image: f"COCO_{part}_{image:012}.jpg" for image in images}
        said = [
            {"id": 100 * view + image, "image_id": image, "caption": f" {caption(image, view)}".replace(", ", ",\n ")}
            for view in range(6)
            for image in images
            if view < 5 or image in (2, 30)
        ]
        listed = [{"id": image, "file_name": name} for image, name in own.items()]
        files[f"annotations/captions_{part}.json"] = json.dumps({"images": listed, "annotations": said[::-1]}).encode()
        files |= {f"{part}/{name}": jpeg(image) for image, name in own.items()}
        names += [f"{part}/{name}" for name in own.values()]
    texts = [" ".join(caption(image, view) for view in range(5)) for image in range(36)]
    return files, Expected(names, np.array([labels.get(name, [0] * 4) for name in names], np.uint8), texts)


MADE = {"flickr25k_tags": flickr_with_tags, "nus_wide_tags": nus_with_tags, "coco_captions": objects_with_captions}


def archives(name: str, files: Files) -> Files:
    """As the set is published: annotations of FLICKR-25K without a top folder, photographs of NUS-WIDE unpacked."""
    packed = {}
    for piece in SETS[name].layouts[0].pieces:
        own = {file: content for file, content in files.items() if file.startswith(f"{piece.unpacked}/")}
        if piece.unpacked == flickr25k.ANNOTATIONS:
            own = {file.partition("/")[2]: content for file, content in own.items()}
        packed |= {piece.file: zipped(own)} if piece.file.endswith(".zip") else own
    return packed


def run(name: str, root: Path, known: Files | None = None) -> int:
    """Runs the script with the counts of the small set, and with the checksums of the archives that are known."""

    def known_piece(piece):
        content = (known or {}).get(piece.file)
        if content is None:
            return piece
        return replace(piece, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", size=len(content))

    layouts = tuple(replace(form, pieces=tuple(map(known_piece, form.pieces))) for form in SETS[name].layouts)
    small = replace(SETS[name], layouts=layouts, sizes=SIZES[name], classes=CLASSES[name])
    return official.main(small, ["--root", str(root)])


def made(name: str, root: Path):
    """The packed file of the small set, from its folders."""
    put(root, MADE[name]()[0])
    assert run(name, root) == 0
    return read_packed(root / f"{name}.npz")


def refused(name: str, root: Path, capsys) -> str:
    """Why a run makes nothing."""
    assert run(name, root) == 1
    assert not (root / f"{name}.npz").exists() and not list(root.rglob("*.tmp"))
    return capsys.readouterr().out


# --- what is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_what_is_made_is_the_set(tmp_path: Path, name: str) -> None:
    packed, (_, expected) = made(name, tmp_path), MADE[name]()
    assert packed.names == tuple(expected.names) and packed.texts == tuple(expected.texts)
    assert np.array_equal(packed.labels.numpy(), expected.labels) and expected.labels.any()
    sizes = SIZES[name]
    assert len(packed) == sizes.images
    assert [(packed.split == role).sum() for role in ("query", "train")] == [sizes.query, sizes.train]


@pytest.mark.parametrize("name", SETS)
def test_texts_come_back_with_their_labels_in_every_role(tmp_path: Path, name: str) -> None:
    packed, (_, expected) = made(name, tmp_path), MADE[name]()
    loaded = data.load(name, "full")
    for part, chosen in (
        (loaded.query, packed.split == "query"),
        (loaded.train, packed.split == "train"),
        (loaded.gallery, packed.split != "query"),
    ):
        positions = np.flatnonzero(chosen)
        assert part.texts == tuple(expected.texts[position] for position in positions)
        assert np.array_equal(part.labels.numpy(), expected.labels[positions])
    assert set(loaded.train.texts) < set(loaded.gallery.texts)
    assert set(loaded.query.texts).isdisjoint(loaded.gallery.texts)


def test_photographs_without_a_common_tag_or_without_a_label_are_left_out(tmp_path: Path) -> None:
    packed = made("flickr25k_tags", tmp_path)
    kept = {int(name.removeprefix("mirflickr/im").removesuffix(".jpg")) - 1 for name in packed.names}
    only_rare, only_stricter, no_tag, no_label = {0}, {8}, {10}, {4, 9, 14, 19, 24, 29}
    assert set(range(30)) - kept == only_rare | only_stricter | no_tag | no_label
    assert packed.class_names == flickr25k.CONCEPTS == tuple(sorted(flickr25k.CONCEPTS))
    assert RARE not in " ".join(packed.texts) and "été" in " ".join(packed.texts)


def test_photographs_of_nus_wide_without_a_tag_are_left_out_and_not_looked_for(tmp_path: Path) -> None:
    pictures = nus()[1]
    packed = made("nus_wide_tags", tmp_path)
    assert [name for name in pictures if name not in packed.names] == ["actor/0010_7010.jpg", "zoo/0021_7021.jpg"]
    assert packed.class_names == ("cat", "sky")
    assert all(packed.texts) and packed.labels.any(dim=1).all()


def test_concepts_are_counted_before_photographs_without_a_tag_are_left_out(tmp_path: Path) -> None:
    """As in published work; here cats without a tag make cats frequent."""
    files, _ = nus_with_tags()
    untagged = [image for image in range(40) if image % 4 == 1]
    rows = files["NUS_WID_Tags/AllTags1k.txt"].splitlines(keepends=True)
    rows = [b"0\t" * len(WORDS) + b"\r\n" if image in untagged else row for image, row in enumerate(rows)]
    files["NUS_WID_Tags/AllTags1k.txt"] = b"".join(rows)
    files["Groundtruth/AllLabels/Labels_fox.txt"] = lines(int(image % 4 > 1 and image < 38) for image in range(40))
    put(tmp_path, files)
    form = nus_wide_tags.NUS_WIDE_TAGS.layouts[0]
    found = form.annotations(official.reader(form, [tmp_path]))
    assert found.class_names == ["cat", "sky"]  # 20 cats and 20 skies, 18 foxes; of those with a tag 10 cats


def test_photographs_that_show_nothing_stay_and_are_counted(tmp_path: Path, capsys) -> None:
    packed = made("coco_captions", tmp_path)
    without = packed.labels.sum(dim=1).numpy() == 0
    assert np.flatnonzero(without).tolist() == [0, 1, 2, 24, 25, 26]
    said = capsys.readouterr().out
    assert f"6 images have none, of these {(without & (packed.split == 'query')).sum()} queries" in said
    assert "query 6, train 10, gallery 30 with train in it; 4 labels" in said


def test_captions_are_joined_in_the_order_of_their_numbers_up_to_five(tmp_path: Path) -> None:
    texts = made("coco_captions", tmp_path).texts
    assert texts[2] == " ".join(f"Photograph 2, view {view}." for view in range(5))
    assert not any("view 5" in text or "\n" in text or "  " in text for text in texts)


@pytest.mark.parametrize("name", ["flickr25k_tags", "nus_wide_tags"])
def test_a_vocabulary_of_the_tags_has_the_tags(tmp_path: Path, name: str) -> None:
    texts = made(name, tmp_path).texts
    vocabulary = Vocabulary.of(texts, 100, tokens="tags")
    assert set(vocabulary.words) == set(" ".join(texts).split()) <= set(WORDS)
    assert [set(vocabulary.words_of(bag)) for bag in vocabulary.bags(texts)] == [set(text.split()) for text in texts]


@pytest.mark.parametrize("name", SETS)
def test_archives_and_folders_give_the_same_file(tmp_path: Path, name: str) -> None:
    files, _ = MADE[name]()
    published, contents = archives(name, files), []
    for kind, content in (("archives", published), ("folders", files)):
        put(tmp_path / kind, content)
        assert run(name, tmp_path / kind, published) == 0
        with np.load(tmp_path / kind / f"{name}.npz") as members:
            contents.append({member: members[member].tobytes() for member in members.files})
    assert contents[0] == contents[1] and "text" in contents[0]


def test_photographs_of_nus_wide_in_one_folder_give_the_same_file(tmp_path: Path) -> None:
    packed, (files, _) = made("nus_wide_tags", tmp_path / "folders"), nus_with_tags()
    moved = {f"images/{name.rpartition('/')[2]}" if name.startswith("Flickr/") else name: files[name] for name in files}
    put(tmp_path / "one", moved)
    assert run("nus_wide_tags", tmp_path / "one") == 0
    other = read_packed(tmp_path / "one" / "nus_wide_tags.npz")
    assert (other.names, other.texts) == (packed.names, packed.texts) and np.array_equal(other.data, packed.data)


@pytest.mark.parametrize("name", SETS)
def test_a_second_run_does_nothing(tmp_path: Path, name: str, capsys) -> None:
    made(name, tmp_path)
    before = (tmp_path / f"{name}.npz").stat().st_mtime_ns
    assert run(name, tmp_path) == 0
    assert "source: already there" in capsys.readouterr().out
    assert (tmp_path / f"{name}.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", SETS)
def test_a_file_of_that_name_without_texts_is_refused(tmp_path: Path, name: str, capsys) -> None:
    made(name, tmp_path)
    with np.load(tmp_path / f"{name}.npz") as archive:
        members = {member: archive[member] for member in archive.files if member != "text"}
    np.savez(tmp_path / f"{name}.npz", **members)
    assert run(name, tmp_path) == 1
    error = capsys.readouterr().err
    assert "is not what this script writes (it has no texts)" in error and "Move it away" in error


# --- where files and lists lie --------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_files_may_lie_beside_those_of_the_pictures_alone_and_their_lists_are_left_alone(
    tmp_path: Path, name: str, capsys
) -> None:
    """Lists of the pictures alone are of other images, some with other labels."""
    put(tmp_path / OF_PICTURES[name], MADE[name]()[0])
    put(tmp_path / OF_PICTURES[name], {"train.txt": b"im1.jpg 0 1 0\n", "test.txt": b"im2.jpg 0 1 0\n"})
    assert run(name, tmp_path) == 0
    assert "split: drawn by this script (seed 0)" in capsys.readouterr().out


@pytest.mark.parametrize("name", SETS)
def test_lists_in_the_folder_of_the_set_are_taken(tmp_path: Path, name: str, capsys) -> None:
    files, expected = MADE[name]()
    sizes = SIZES[name]
    queries, train = list(range(sizes.query)), list(range(sizes.query, sizes.query + sizes.train))
    put(tmp_path, files)
    put(tmp_path / name, in_lines(expected.names, expected.labels, {"test": queries, "train": train}))
    assert run(name, tmp_path) == 0
    packed = read_packed(tmp_path / f"{name}.npz")
    assert np.flatnonzero(packed.split == "query").tolist() == queries
    assert np.flatnonzero(packed.split == "train").tolist() == train
    assert packed.texts == tuple(expected.texts)
    assert "drawn by" not in capsys.readouterr().out


# --- what is refused ------------------------------------------------------------------------------


COMMON, TAGS_OF_3 = "mirflickr/doc/common_tags.txt", "mirflickr/meta/tags/tags3.txt"
ALL_TAGS, TAG_LIST = "NUS_WID_Tags/AllTags1k.txt", "NUS_WID_Tags/TagList1k.txt"
CAPTIONS = "annotations/captions_val2014.json"


@pytest.mark.parametrize(
    ("name", "member", "change", "message"),
    [
        ("flickr25k_tags", COMMON, lambda c: c.replace(b"sea 24\r\n", b""), f"{COMMON} has 5 tags; expected 6"),
        ("flickr25k_tags", COMMON, lambda c: c.replace(b"sky 20", b"sky"), f"{COMMON} has the line 'sky'; expected 2"),
        ("flickr25k_tags", COMMON, None, f"lacks 1 of 1 files, the first is {COMMON}"),
        ("flickr25k_tags", TAGS_OF_3, None, f"lacks 1 of 30 files, the first is {TAGS_OF_3}"),
        (
            "flickr25k_tags",
            TAGS_OF_3,
            lambda c: b"",
            "the annotations have 20 images with 24 labels; expected 21 images with 24 labels",
        ),
        ("nus_wide_tags", ALL_TAGS, lambda c: c[2:], f"row 1 of {ALL_TAGS} has 5 marks; expected 6, each 0 or 1"),
        ("nus_wide_tags", ALL_TAGS, lambda c: c.replace(b"1", b"2", 1), f"row 2 of {ALL_TAGS} has 6 marks; expected 6"),
        ("nus_wide_tags", ALL_TAGS, lambda c: c[14:], f"{ALL_TAGS} has 39 rows; expected 40, as ImageList/Imagelist"),
        ("nus_wide_tags", ALL_TAGS, None, f"lacks 1 of 1 files, the first is {ALL_TAGS}"),
        ("nus_wide_tags", TAG_LIST, lambda c: c + b"zebra\r\n", f"row 1 of {ALL_TAGS} has 6 marks; expected 7"),
        (
            "nus_wide_tags",
            ALL_TAGS,
            lambda c: c.replace(c[14:28], c[:14], 1),
            "the annotations have 27 images with 2 labels; expected 28 images with 2 labels",
        ),
        ("coco_captions", CAPTIONS, lambda c: c[:-10], f"{CAPTIONS} cannot be understood (JSONDecodeError"),
        (
            "coco_captions",
            CAPTIONS,
            lambda c: c.replace(b'"image_id": 35', b'"image_id": 77', 1),
            f"{CAPTIONS} cannot be understood (KeyError: 77)",
        ),
        (
            "coco_captions",
            CAPTIONS,
            lambda c: c.replace(b'"image_id": 35', b'"image_id": 34'),
            "1 photographs have no caption, the first is val2014/COCO_val2014_000000000035.jpg",
        ),
        ("coco_captions", CAPTIONS, lambda c: b'{"images": []}', "cannot be understood (KeyError: 'annotations')"),
        ("coco_captions", CAPTIONS, None, f"the first is {CAPTIONS}"),
    ],
)
def test_texts_that_are_not_the_official_ones(tmp_path: Path, name, member, change, message, capsys) -> None:
    files, _ = MADE[name]()
    content = files.pop(member)
    if change is not None:
        files[member] = change(content)
        assert files[member] != content
    put(tmp_path, files)
    assert message in refused(name, tmp_path, capsys)


@pytest.mark.parametrize("name", SETS)
def test_missing_photographs_are_refused(tmp_path: Path, name: str, capsys) -> None:
    """Also of NUS-WIDE: how many of its reduced copy have a tag is not known."""
    files, expected = MADE[name]()
    prefix = "Flickr/" if name == "nus_wide_tags" else ""
    del files[f"{prefix}{expected.names[-1]}"]
    put(tmp_path, files)
    said = refused(name, tmp_path, capsys)
    assert f"the first is {prefix}{expected.names[-1]}\n" in said and "difference" not in said


# --- the scripts ----------------------------------------------------------------------------------


def test_the_official_counts() -> None:
    sizes = {name: (*hashing_set.sizes, hashing_set.sizes.database) for name, hashing_set in SETS.items()}
    assert sizes == {
        "flickr25k_tags": (20_015, 2_000, 10_000, 10_000, 18_015),
        "nus_wide_tags": (190_421, 2_100, 10_500, 10_500, 188_321),
        "coco_captions": (123_287, 5_000, 10_000, 10_000, 118_287),
    }
    assert {name: hashing_set.classes for name, hashing_set in SETS.items()} == {
        "flickr25k_tags": 24,
        "nus_wide_tags": 21,
        "coco_captions": 80,
    }


def test_the_number_of_common_tags_is_that_of_the_recipe() -> None:
    assert OFFICIAL_TAGS == OFFICIAL_PAIRS["flickr25k_tags"].words == 1_386


def test_the_sets_have_the_names_that_recipes_and_loading_know() -> None:
    assert {hashing_set.name for hashing_set in SETS.values()} == set(SETS) == set(OFFICIAL_PAIRS)
    assert set(SETS) < set(OFFICIAL)


@pytest.mark.parametrize("name", SETS)
def test_archives_are_those_of_the_pictures_alone(name: str) -> None:
    pictures = {"flickr25k": flickr25k.FLICKR25K, "nus_wide": nus_wide.NUS_WIDE, "coco": coco.COCO}[OF_PICTURES[name]]
    for form, other in zip(SETS[name].layouts, pictures.layouts, strict=True):
        added = [piece.file for piece in form.pieces if piece not in other.pieces]
        assert set(other.pieces) <= set(form.pieces)
        assert added == (["NUS_WID_Tags.zip"] if name == "nus_wide_tags" else [])


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
