"""Data sets: what exists is usable, what is damaged or contradicts itself is refused in words."""

import contextlib
import hashlib
import io
import pwd
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop

from robret_lib import data
from robret_lib.data import DataError, Protocol, RetrievalData, Split
from robret_lib.data.packed import read_packed
from robret_lib.data.packed_splits import first_in_turn, load_packed
from robret_lib.data.packed_writing import write_jpeg_files

SHARED = Path(__file__).parents[2] / "shared" / "data"
ITSELF = Protocol("itself", "", self_excluded=True, class_disjoint=False)
OTHERS = Protocol("others", "", self_excluded=False, class_disjoint=False)
DISJOINT = Protocol("disjoint", "", self_excluded=True, class_disjoint=True)


def split_of(*labels: int, classes: int | None = None) -> Split:
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    if classes is None:
        return Split(images, torch.tensor(labels, dtype=torch.int64))
    return Split(images, torch.nn.functional.one_hot(torch.tensor(labels), classes).to(torch.uint8))


def gray(height: int, width: int) -> Split:
    return Split(torch.zeros(1, 1, height, width, dtype=torch.uint8), torch.zeros(1).long())


# --- the types ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), "expected \\[N, channels, height, width\\]"),
        (torch.zeros(2, 3, 0, 4), torch.zeros(2).long(), "images have shape"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0).long(), "no images"),
        (torch.zeros(2, 3, 4, 4).int(), torch.zeros(2).long(), "expected uint8"),
        (torch.full((2, 3, 4, 4), 255.0), torch.zeros(2).long(), "from 255 to 255.*divide by 255"),
        (torch.full((2, 3, 4, 4), -0.1), torch.zeros(2).long(), "expected \\[0, 1\\]"),
        (torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2).long(), "expected \\[0, 1\\]"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3).long(), "2 images have 3 labels"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 0.5]), "2 labels with fractions: expected whole numbers \\[N\\]"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, torch.nan]), "NaN or infinity"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, torch.inf]), "NaN or infinity"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.complex64), "labels are torch.complex64"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.complex64), "labels are torch.complex64"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1).long(), "shape \\(2, 1\\): expected .* C of at least 2"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 0).long(), "shape \\(2, 0\\): expected"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 2).long(), "shape \\(2, 2, 2\\): expected"),
        (torch.zeros(2, 3, 4, 4), torch.tensor(0), "shape \\(\\): expected"),
        (torch.zeros(2, 3, 4, 4), [0, 1], "labels are a list: expected a tensor"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0.0, -1.0]), "-1 is negative"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, -1]), "-1 is negative"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), 2, dtype=torch.uint8), "other values than 0 and 1"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), 0.5), "other values than 0 and 1"),
        (torch.zeros(2, 3, 4, 4), torch.full((2, 5), torch.nan), "other values than 0 and 1"),
    ],
)
def test_a_split_refuses(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(images, labels)


NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", [torch.bool, *NUMBERS])
def test_a_split_takes_labels_of_any_dtype(dtype: torch.dtype) -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert torch.equal(Split(images, torch.tensor([1, 0]).to(dtype)).labels, torch.tensor([1, 0]))
    several = Split(images, torch.tensor([[1, 0, 1], [0, 0, 0]]).to(dtype)).labels
    assert torch.equal(several, torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.uint8))


def test_relevance_is_a_shared_class() -> None:
    classes, several = torch.tensor([0, 1, 0]), torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0]])
    assert data.relevance(classes, classes[:2]).tolist() == [[True, False], [False, True], [True, False]]
    assert data.relevance(several.bool(), several[1:].double()).tolist() == [[True, True], [True, False], [False, True]]
    for others in (several, several[:, :2]):
        with pytest.raises(DataError, match="expected both int \\[N\\], or both multi-hot"):
            data.relevance(classes if others is several else several, others)


def test_a_split_refuses_texts_of_another_length() -> None:
    with pytest.raises(DataError, match="2 images have 1 texts"):
        Split(torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), texts=("a bird",))


@pytest.mark.parametrize(
    ("train", "query", "gallery", "protocol", "message"),
    [
        (split_of(0, 3), split_of(0), split_of(0), OTHERS, "train: label 3 has no name; there are 3"),
        (split_of(0), split_of(0), split_of(0, 1), ITSELF, "labels differ"),
        (split_of(0, 1), split_of(1, 2), split_of(1, 2), DISJOINT, "class 'b' is trained on and searched"),
        (split_of(0, classes=2), *[split_of(0, classes=2)] * 2, OTHERS, "2 columns for 3 class names"),
        (split_of(0), split_of(0, classes=3), split_of(0), OTHERS, "query has label type"),
        (split_of(0, classes=3), *[split_of(1, classes=3)] * 2, DISJOINT, "multi-hot"),
        (split_of(0), split_of(0), gray(4, 4), OTHERS, "gallery has image channels 1, train 3"),
        (gray(4, 4), gray(4, 4), gray(4, 3), OTHERS, "query has image size \\(4, 4\\), gallery \\(4, 3\\)"),
        (gray(4, 4), gray(4, 5), gray(4, 5), OTHERS, "train has image size \\(4, 4\\), query \\(4, 5\\)"),
        (gray(8, 4), gray(9, 3), gray(9, 3), OTHERS, "expected the same, or larger ones to train on crops of"),
    ],
)
def test_retrieval_data_refuses(train: Split, query: Split, gallery: Split, protocol: Protocol, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RetrievalData("a set", train, query, gallery, ("a", "b", "c"), protocol)


def test_images_to_train_on_may_be_larger() -> None:
    loaded = RetrievalData("a set", gray(9, 8), gray(8, 8), gray(8, 8), ("a",), OTHERS)
    assert loaded.train.images.shape == (1, 1, 9, 8)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (8, 8), (11, 8)])
@pytest.mark.parametrize("apart", [True, False])
def test_center_crops_are_those_of_torchvision(shape: tuple[int, int], apart: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (4, 3, *shape), dtype=torch.uint8, generator=rng) for _ in range(3)]
    train, query, gallery = (Split(some, torch.arange(4), texts=tuple("abcd")) for some in images)
    whole = RetrievalData("a set", train, query, gallery if apart else query, tuple("abcd"), OTHERS)
    cropped = data.center_cropped(whole, 8)
    assert cropped.train is train and (cropped.query is cropped.gallery) == (not apart)
    for part, source in ((cropped.query, whole.query), (cropped.gallery, whole.gallery)):
        assert torch.equal(part.images, CenterCrop(8)(source.images)) and part.images.shape == (4, 3, 8, 8)
        assert torch.equal(part.labels, source.labels) and part.texts == source.texts
    assert (cropped.name, cropped.class_names, cropped.protocol) == ("a set", tuple("abcd"), OTHERS)


@pytest.mark.parametrize("size", [0, -1, 9, 10])
def test_a_center_crop_is_not_larger_than_the_images(size: int) -> None:
    whole = RetrievalData("a set", gray(9, 8), gray(9, 8), gray(9, 8), ("a",), OTHERS)
    with pytest.raises(DataError, match=f"size={size} of images of 9 x 8 pixels: expected 1 to 8"):
        data.center_cropped(whole, size)


@pytest.mark.parametrize("apart", [True, False])
def test_mixed_images_keep_their_labels_and_texts_and_query_i_is_gallery_item_i(apart: bool) -> None:
    labels = torch.arange(5).repeat_interleave(40)
    images = labels[:, None, None, None].to(torch.uint8)
    split = Split(images, labels, texts=tuple(map(str, labels.tolist())))
    gallery = replace(split) if apart else split
    plain = RetrievalData("a set", split, split, gallery, tuple("abcde"), replace(OTHERS, self_excluded=True))
    found = data.mixed(plain)
    assert found.train is split and (found.query is found.gallery) == (not apart)
    for part in (found.query, found.gallery):
        assert torch.equal(part.labels.bincount(), split.labels.bincount())
        assert torch.equal(part.images.flatten().long(), part.labels)
        assert part.texts == tuple(map(str, part.labels.tolist()))
        assert part.labels[:20].unique().tolist() == [0, 1, 2, 3, 4]  # the first ones are of all classes
    assert torch.equal(found.query.labels, data.mixed(plain).query.labels)


def test_as_float_keeps_the_scale_of_both_kinds() -> None:
    assert torch.equal(data.as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)), torch.tensor([0, 0.2, 1]))
    for dtype, kept in ((torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        image = torch.tensor([1 / 3], dtype=dtype)
        assert data.as_float(image).dtype == kept
        assert torch.equal(data.as_float(image), image.to(kept))
    with pytest.raises(DataError, match="torch.int64"):
        data.as_float(torch.tensor([1]))


# --- Fashion-MNIST --------------------------------------------------------------------------------


def put_fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Writes 30 train and 2,005 test images in the original format, and points the data root to them."""
    rng, folder, pixels = np.random.default_rng(0), data.fashion_mnist_folder(root), {}
    folder.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 2_005)):
        images, labels = (
            rng.integers(0, high, shape, np.uint8) for high, shape in ((256, (count, 28, 28)), (10, count))
        )
        for name, header, array in (
            (f"{part}-images-idx3-ubyte", (0x803, count, 28, 28), images),
            (f"{part}-labels-idx1-ubyte", (0x801, count), labels),
        ):
            content = np.array(header, ">i4").tobytes() + array.tobytes()
            (folder / name).write_bytes(content)
            monkeypatch.setitem(data.FASHION_MNIST_SHA256, name, hashlib.sha256(content).hexdigest())
        pixels[part], pixels[f"{part} labels"] = images, labels
    monkeypatch.setenv("ROBRET_DATA", str(root))
    return pixels


def test_fashion_mnist_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = put_fashion_mnist(tmp_path, monkeypatch)
    full, quick = data.load("fashion-mnist", "full"), data.load("fashion-mnist")
    assert (len(full.train), len(full.gallery), len(quick.train), len(quick.gallery)) == (
        30,
        2_005,
        30,
        2_000,
    )
    assert full.query is full.gallery and full.protocol.self_excluded and not full.protocol.class_disjoint
    assert np.array_equal(full.gallery.images[:, 0].numpy(), pixels["t10k"])
    assert np.array_equal(full.train.labels.numpy(), pixels["train labels"])
    assert torch.equal(quick.gallery.images, full.gallery.images[:2_000])
    assert quick.class_names[9] == "Ankle boot"


def test_fashion_mnist_resized_agrees_with_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = put_fashion_mnist(tmp_path, monkeypatch)
    images = data.load("fashion-mnist", size=32).train.images
    expected = np.asarray(Image.fromarray(pixels["train"][7]).resize((32, 32), Image.BICUBIC))
    assert images.shape == (30, 1, 32, 32) and np.array_equal(images[7, 0].numpy(), expected)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"\x63"])
def test_a_damaged_fashion_mnist_is_refused_and_named(tmp_path: Path, monkeypatch, damage) -> None:
    put_fashion_mnist(tmp_path, monkeypatch)
    victim = data.fashion_mnist_folder(tmp_path) / "t10k-labels-idx1-ubyte"
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is truncated or altered.*make data DATASET=fashion"):
        data.load("fashion-mnist")


def test_an_old_torchvision_copy_beside_the_files_is_not_read(tmp_path: Path, monkeypatch) -> None:
    put_fashion_mnist(tmp_path, monkeypatch)
    processed = tmp_path / "FashionMNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(5, 28, 28), torch.zeros(5)), processed / name)
    assert len(data.load("fashion-mnist").train) == 30


def test_an_absent_fashion_mnist_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing.*make data.*ROBRET_DATA") as caught:
        data.load("fashion-mnist")
    assert str(tmp_path) in str(caught.value)


def test_real_fashion_mnist_is_what_torchvision_reads() -> None:
    from torchvision.datasets import FashionMNIST

    if not data.fashion_mnist_folder(data.data_root()).exists():
        pytest.skip("Fashion-MNIST is not prepared: make data DATASET=fashion-mnist")
    loaded = data.load("fashion-mnist", "full")
    for split, train in ((loaded.train, True), (loaded.gallery, False)):
        theirs = FashionMNIST(data.data_root(), train=train)
        assert torch.equal(split.images[:, 0], theirs.data) and torch.equal(split.labels, theirs.targets)
    assert loaded.class_names == tuple(FashionMNIST.classes)


def test_data_root_is_the_variable_else_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    monkeypatch.setenv("ROBRET_DATA", "")
    assert data.data_root().name == "robret"


def test_data_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROBRET_DATA", "my data")
    assert data.data_root() == tmp_path / "my data"
    monkeypatch.setenv("ROBRET_DATA", "~/data")
    assert data.data_root() == tmp_path / "home" / "data"
    monkeypatch.setenv("ROBRET_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert data.data_root().is_absolute()


def test_a_user_without_a_home_is_told_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "ROBRET_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Set ROBRET_DATA to an absolute path"):
        data.data_root()
    monkeypatch.setenv("ROBRET_DATA", "~/data")
    with pytest.raises(RuntimeError, match="Set ROBRET_DATA to an absolute path"):
        data.data_root()


# --- the packed format ----------------------------------------------------------------------------


def pictures(count: int, side: int = 16) -> torch.Tensor:
    """Smooth pictures, which JPEG keeps nearly as they are: uint8 ``[count, 3, side, side]``."""
    coarse = torch.rand(count, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear").round().to(torch.uint8)


def write(path: Path, labels: list[int], **options: object) -> Path:
    data.write_packed(path, pictures(len(labels)), labels, [f"class {i}" for i in range(max(labels) + 1)], **options)
    return path


def members(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def test_writing_holds_the_compressed_bytes_once(tmp_path: Path) -> None:
    """And an eighth of them, room to grow, and NumPy's buffer of 16 MiB: 120,000 images take little more than 3."""
    files, size = 1_000, 100_000
    tracemalloc.start()
    write_jpeg_files(tmp_path / "large.npz", (b"\xff" * size for _ in range(files)), [0] * files, ["a"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert files * size < peak < 1.13 * files * size + 2**25 < 2 * files * size


def test_what_is_written_is_read(tmp_path: Path) -> None:
    images, labels = pictures(6), torch.tensor([0, 0, 1, 1, 2, 2])
    names = [f"käfer/{i}.jpg" for i in range(6)]
    data.write_packed(tmp_path / "new folder" / "a.npz", images, labels, ["a", "ä", "c"], names)
    packed = read_packed(tmp_path / "new folder" / "a.npz")
    assert torch.equal(packed.labels, labels) and packed.labels.dtype == torch.int64
    assert packed.class_names == ("a", "ä", "c") and packed.names == tuple(names) and packed.split is None
    decoded = packed.decode(range(6), size=16)
    assert (decoded.int() - images.int()).abs().float().mean() < 2
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("dtype", ["bool", "u1", ">i2", "<i4", "i8", "u8", "f2", ">f4", "f8"])
def test_labels_of_any_dtype_are_written_and_read(tmp_path: Path, dtype: str) -> None:
    for labels in ([1, 0], [[1, 0], [0, 1]]):
        given = np.array(labels).astype(dtype)
        given.flags.writeable = False
        data.write_packed(tmp_path / "written.npz", pictures(2), given, ["a", "b"])
        stored = members(tmp_path / "written.npz")
        assert stored["label"].dtype == (np.int16 if given.ndim == 1 else np.uint8)
        np.savez(tmp_path / "elsewhere.npz", **{**stored, "label": given})
        for name in ("written.npz", "elsewhere.npz"):
            kept = read_packed(tmp_path / name).labels
            assert kept.tolist() == labels and kept.dtype == (torch.int64 if given.ndim == 1 else torch.uint8)


def test_the_members_are_those_of_the_format(tmp_path: Path) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1, 2], names=["x", "y", "z"]))
    assert {name: array.dtype.kind for name, array in stored.items()} == {
        "data": "u", "offsets": "i", "label": "i", "class_names": "S", "name": "S",
    }  # fmt: skip
    assert stored["label"].dtype == np.int16 and stored["offsets"].dtype == np.int64
    second = stored["data"][stored["offsets"][1] : stored["offsets"][2]].tobytes()
    assert Image.open(io.BytesIO(second)).format == "JPEG"


def test_pillow_images_of_any_size_and_mode_can_be_written(tmp_path: Path) -> None:
    given = (Image.new(mode, size) for mode, size in (("RGB", (20, 12)), ("L", (9, 30)), ("RGBA", (10, 10))))
    data.write_packed(tmp_path / "a.npz", given, [0, 0, 1], ["a", "b"])
    packed = read_packed(tmp_path / "a.npz")
    assert packed.smallest_side() == 9
    assert data.load(tmp_path / "a.npz").gallery.images.shape == (1, 3, 9, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, "3 images, but 'label' has 2"),
        ({"labels": [0, 1, 2]}, "label 2 has no name"),
        ({"labels": [0, 1, -1]}, "label -1 is negative"),
        ({"labels": [0, 1, 0.5]}, "a.npz: 'label': 3 labels with fractions"),
        ({"labels": [0, 1, np.nan]}, "NaN or infinity"),
        ({"labels": ["a", "b", "b"]}, "'label': <U1 of shape \\(3,\\): expected numbers"),
        ({"labels": [[0], [1], [1]]}, "shape \\(3, 1\\): expected .* C of at least 2"),
        ({"labels": torch.ones(3, 1)}, "shape \\(3, 1\\): expected .* C of at least 2"),
        ({"labels": np.full((3, 2), 2)}, "zeros and ones"),
        ({"labels": np.ones((3, 5), int)}, "5 columns for 2 class names"),
        ({"names": ["x"]}, "'name' has 1"),
        ({"split": ["train"] * 3}, "'split' holds \\['train'\\]"),
        ({"texts": ["x"]}, "3 images, but 'text' has 1"),
        ({"texts": ["x", "a\0b", "z"]}, "'text' 1 is 'a.*; expected a text without NUL characters"),
        ({"texts": ["x", "y", "caf\udce9"]}, "'text' 2 is 'caf.*, which UTF-8 cannot hold"),
        ({"texts": ["x", 7, "z"]}, "'text' 1 is 7, a int; expected a str"),
        ({"images": []}, "holds no images"),
        ({"images": [torch.zeros(3, 4, 4)] * 3}, "expected uint8 \\[3"),
        ({"images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8)}, "expected uint8 \\[3"),
        ({"path": "a.npy"}, "must end in .npz"),
    ],
)
def test_write_packed_refuses_and_leaves_nothing(tmp_path: Path, changes: dict, message: str) -> None:
    arguments = {
        "path": "a.npz",
        "images": pictures(3),
        "labels": [0, 1, 1],
        "class_names": ["a", "b"],
        **changes,
    }
    with pytest.raises(DataError, match=message):
        data.write_packed(tmp_path / arguments.pop("path"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path / "a.npz", [0, 1]).read_bytes()

    def full_disk(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.npz", [0, 1, 2])
    assert (tmp_path / "a.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("member", ["data", "offsets", "label", "class_names"])
def test_a_missing_member_is_named(tmp_path: Path, member: str) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1]))
    del stored[member]
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(DataError, match=f"a.npz: member '{member}' is missing"):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        ("offsets", lambda a: a[[0, 2, 1, 3]], "rise strictly"),
        ("offsets", lambda a: a - 1, "rise strictly"),
        ("offsets", lambda a: a + [0, 0, 0, 1], "rise strictly"),
        ("offsets", lambda a: a[[0, 1, 1, 3]], "rise strictly"),
        ("offsets", lambda a: a.astype(float), "'offsets' is float64"),
        ("offsets", lambda a: a[:1], "holds no images"),
        ("offsets", lambda a: a[[0, 3]], "1 images, but 'label' has 3"),
        ("data", lambda a: a.astype(np.int32), "'data' is int32"),
        ("data", lambda a: a[:-50], "rise strictly"),
        ("label", lambda a: a + 1, "label 3 has no name"),
        ("label", lambda a: a - 1, "label -1 is negative"),
        ("label", lambda a: a[:2], "'label' has 2 entries"),
        ("label", lambda a: a + 0.5, "'label': 3 labels with fractions"),
        ("label", lambda a: a[:, None], "'label': labels of shape \\(3, 1\\)"),
        ("label", lambda a: a.astype("M8[s]"), "'label': datetime64.* expected numbers"),
        ("label", lambda a: np.array(["x", object()], dtype=object), "cannot be read"),
        ("class_names", lambda a: a.astype(str), "'class_names' is <U"),
        ("split", lambda a: np.array([b"train", b"test", b"valid"]), "'split' holds"),
        ("text", lambda a: np.array([b"a bird", b"a fish"]), "3 images, but 'text' has 2 entries"),
        ("text", lambda a: np.array(["a bird"] * 3), "'text' is <U6"),
    ],
)
def test_members_that_do_not_fit_are_refused(tmp_path: Path, member: str, change, message: str) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1, 2]))
    np.savez(tmp_path / "a.npz", **{**stored, member: change(stored.get(member))})
    with pytest.raises(DataError, match=message):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="a.npz cannot be read as a packed .npz"):
        data.load(tmp_path / "a.npz")


@pytest.fixture(scope="module")
def packed_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "a.npz"
    return write(path, [0, 1, 0, 1], names=list("wxyz"), split=["train", "test"] * 2).read_bytes()


@settings(max_examples=60)
@given(portion=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(packed_bytes: bytes, tmp_path_factory, portion: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.npz"
    path.write_bytes(packed_bytes[: int(portion * len(packed_bytes))])
    with pytest.raises(DataError, match="cannot be read"):
        data.load(path)


@settings(max_examples=150)
@given(position=st.floats(0, 0.999), flipped=st.integers(1, 255))
def test_an_altered_byte_is_refused_or_changes_nothing(packed_bytes, tmp_path_factory, position, flipped) -> None:
    folder = tmp_path_factory.mktemp("altered")
    (folder / "whole.npz").write_bytes(packed_bytes)
    altered = bytearray(packed_bytes)
    altered[int(position * len(altered))] ^= flipped
    (folder / "a.npz").write_bytes(altered)
    expected = data.load(folder / "whole.npz")
    try:
        loaded = data.load(folder / "a.npz")
    except DataError:
        return
    assert torch.equal(loaded.train.images, expected.train.images)
    assert torch.equal(loaded.gallery.labels, expected.gallery.labels)


def test_a_damaged_directory_does_not_hide_the_split(packed_bytes: bytes, tmp_path: Path) -> None:
    path, directory = tmp_path / "a.npz", packed_bytes.index(b"PK\x01\x02")
    for position in range(directory, len(packed_bytes)):
        for flipped in (1, 128, 255):
            altered = bytearray(packed_bytes)
            altered[position] ^= flipped
            path.write_bytes(altered)
            with contextlib.suppress(DataError):
                assert read_packed(path).split is not None, position


@pytest.mark.parametrize("size", [None, 8])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, size: int | None) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1, 2], names=["x.jpg", "y.jpg", "z.jpg"]))
    stored["data"][stored["offsets"][1] : stored["offsets"][1] + 300] = 0
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(DataError, match="image 1 \\(y.jpg\\) is not a usable JPEG"):
        data.load(tmp_path / "a.npz", size=size)


def test_a_jpeg_cut_short_is_named(tmp_path: Path) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1]))
    stored["data"] = stored["data"][:-100]
    stored["offsets"][-1] -= 100
    np.savez(tmp_path / "a.npz", **stored)
    with pytest.raises(DataError, match="image 1 does not decode.*truncated"):
        data.load(tmp_path / "a.npz")


# --- texts of a packed file -----------------------------------------------------------------------


def some_texts(count: int) -> list[str]:
    """A text for each image like no other; some are longer, one is empty."""
    return [f"ein Käfer, {position} " * position for position in range(count)]


def test_texts_are_written_and_read(tmp_path: Path) -> None:
    texts = ["", "a  bird, 鸟 ", "two\nlines", "ends in a blank "]
    assert read_packed(write(tmp_path / "a.npz", [0, 1, 0, 1], texts=texts)).texts == tuple(texts)
    assert members(tmp_path / "a.npz")["text"].dtype.kind == "S"
    assert read_packed(write(tmp_path / "b.npz", [0, 1], texts=["", ""])).texts == ("", "")
    assert read_packed(write(tmp_path / "c.npz", [0, 1])).texts is None


def test_bytes_in_texts_that_are_no_utf_8_are_replaced(tmp_path: Path) -> None:
    stored = members(write(tmp_path / "a.npz", [0, 1], texts=["x", "y"]))
    np.savez(tmp_path / "a.npz", **{**stored, "text": np.array([b"caf\xe9", b"caf\xc3\xa9"])})
    assert read_packed(tmp_path / "a.npz").texts == ("caf\ufffd", "café")


def assert_texts_are_with_their_images(part: Split, positions: list[int], texts: list[str]) -> None:
    assert part.texts == tuple(texts[position] for position in positions)
    assert (part.images.int() - pictures(len(texts))[positions].int()).abs().float().mean() < 2


@pytest.mark.parametrize(
    ("split", "train", "query", "gallery"),
    [
        (["query", "train", "database", "train", "query"], [1, 3], [0, 4], [1, 2, 3]),
        (["test", "train", "test", "train", "test"], [1, 3], [0, 2, 4], [0, 2, 4]),
        (None, [1, 4], [0, 2, 3], [0, 2, 3]),  # half of the classes
    ],
)
def test_texts_come_back_with_their_images_in_every_role(tmp_path: Path, split, train, query, gallery) -> None:
    labels = [1, 0, 2, 2, 0]
    texts = some_texts(len(labels))
    loaded = data.load(write(tmp_path / "a.npz", labels, split=split, texts=texts))
    for part, positions in ((loaded.train, train), (loaded.query, query), (loaded.gallery, gallery)):
        assert_texts_are_with_their_images(part, positions, texts)


def test_texts_of_a_pair_of_files_come_back_with_their_images(tmp_path: Path) -> None:
    texts = {"train": some_texts(3), "test": some_texts(4)}
    for side, labels in (("train", [0, 0, 1]), ("test", [2, 3, 3, 2])):
        data.write_packed(tmp_path / f"a_{side}.npz", pictures(len(labels)), labels, list("abcd"), texts=texts[side])
    loaded = data.load(tmp_path / "a_train.npz")
    assert_texts_are_with_their_images(loaded.train, [0, 1, 2], texts["train"])
    assert_texts_are_with_their_images(loaded.gallery, [0, 1, 2, 3], texts["test"])


def test_texts_of_fewer_images_are_those_of_these_images(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 1, 2, 2]
    texts = some_texts(len(labels))
    write(tmp_path / "a.npz", labels, split=["train"] + ["test"] * 7, texts=texts)
    assert_texts_are_with_their_images(load_packed(tmp_path / "a.npz", limit=4).gallery, [1, 2, 3, 4], texts)


def test_texts_stay_with_their_images_when_they_are_mixed(tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1, 2, 0]
    texts = some_texts(len(labels))
    plain = data.load(write(tmp_path / "a.npz", labels, split=["query", "train"] + ["database"] * 5, texts=texts))
    mixed = data.mixed(plain)
    positions = [texts.index(text) for text in mixed.gallery.texts]
    assert sorted(positions) == [1, 2, 3, 4, 5, 6] and positions != sorted(positions)
    assert_texts_are_with_their_images(mixed.gallery, positions, texts)
    assert mixed.gallery.labels.tolist() == [labels[position] for position in positions]


# --- roles of a packed file -----------------------------------------------------------------------


def test_halves_of_the_classes_when_nothing_else_is_known(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path / "birds.npz", [4, 0, 1, 4, 2, 0, 1, 2]))
    assert loaded.name == "birds" and loaded.train.labels.tolist() == [0, 1, 0, 1]
    assert loaded.gallery.labels.tolist() == [4, 4, 2, 2] and loaded.query is loaded.gallery
    assert loaded.protocol.class_disjoint and loaded.protocol.self_excluded
    assert (loaded.train.images[0].int() - pictures(8)[1].int()).abs().float().mean() < 2


@pytest.mark.parametrize("asked", ["birds_train_16px.npz", "birds_test_16px.npz"])
def test_a_pair_of_files_is_train_and_test(tmp_path: Path, asked: str) -> None:
    for name, labels in (("birds_train_16px.npz", [0, 0, 1]), ("birds_test_16px.npz", [2, 3, 3, 2])):
        data.write_packed(tmp_path / name, pictures(len(labels)), labels, list("abcd"))
    loaded = data.load(tmp_path / asked)
    assert (loaded.name, len(loaded.train), len(loaded.gallery)) == ("birds_16px", 3, 4)
    assert loaded.protocol.class_disjoint and loaded.protocol.self_excluded


def test_a_pair_with_different_class_names_is_refused(tmp_path: Path) -> None:
    for name in ("x_train.npz", "x_test.npz"):
        data.write_packed(tmp_path / name, pictures(2), [0, 1], ["a", name])
    with pytest.raises(DataError, match="different class names"):
        data.load(tmp_path / "x_train.npz")


def test_one_file_of_a_pair_alone_is_halved(tmp_path: Path) -> None:
    assert data.load(write(tmp_path / "x_train.npz", [0, 1, 1])).train.labels.tolist() == [0]


def test_a_stored_split_of_train_and_test(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path / "a.npz", [0, 1, 0, 1], split=["test", "train", "test", "test"]))
    assert loaded.train.labels.tolist() == [1] and loaded.gallery.labels.tolist() == [0, 0, 1]
    assert loaded.protocol.self_excluded and not loaded.protocol.class_disjoint


def test_a_stored_split_with_queries_searches_all_other_images(tmp_path: Path) -> None:
    labels, split = np.eye(5, dtype=np.uint8)[:, :4], ["query", "train", "database", "train", "query"]
    data.write_packed(tmp_path / "a.npz", pictures(5), labels, list("abcd"), split=split)
    loaded = data.load(tmp_path / "a.npz")
    assert torch.equal(loaded.query.labels, torch.tensor(labels[[0, 4]]))
    assert torch.equal(loaded.train.labels, torch.tensor(labels[[1, 3]]))
    assert torch.equal(loaded.gallery.labels, torch.tensor(labels[[1, 2, 3]]))
    assert not loaded.protocol.self_excluded


def test_classes_that_cannot_be_halved_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class"):
        data.load(write(tmp_path / "a.npz", [0, 0]))


def test_quick_keeps_train_whole_and_2000_of_the_gallery(tmp_path: Path) -> None:
    labels = [0] * 5 + [1] * 1_500 + [2] * 600 + [3] * 5
    image = Image.new("RGB", (8, 8))
    data.write_packed(
        tmp_path / "a.npz",
        (image for _ in labels),
        labels,
        list("abcd"),
        split=(["train"] * 5 + ["test"] * 2_105),
    )
    quick, full = data.load(tmp_path / "a.npz", size=2), data.load(tmp_path / "a.npz", "full", size=2)
    assert (len(quick.train), len(quick.gallery), len(full.gallery)) == (5, 2_000, 2_105)
    assert quick.gallery.labels.bincount().tolist() == [0, 1_395, 600, 5]
    assert full.gallery.labels.tolist() == labels[5:]


def slow_first_in_turn(labels: list[int], limit: int) -> list[int]:
    classes = [[i for i, label in enumerate(labels) if label == wanted] for wanted in sorted(set(labels))]
    order = []
    for turn in range(0, len(labels), 2):
        for members_of_class in classes:
            if len(members_of_class) > 1:
                order += members_of_class[turn : turn + 2]
    order += [members_of_class[0] for members_of_class in classes if len(members_of_class) == 1]
    return sorted(order[:limit])


@given(labels=st.lists(st.integers(0, 8), min_size=1, max_size=60), half=st.integers(1, 20))
def test_images_in_turn_keep_their_matches(labels: list[int], half: int) -> None:
    kept = first_in_turn(torch.tensor(labels), 2 * half)
    assert kept.tolist() == slow_first_in_turn(labels, 2 * half)
    chosen, available = (torch.tensor(some).bincount(minlength=9) for some in ([labels[i] for i in kept], labels))
    assert not ((chosen == 1) & (available > 1)).any()  # no image lost all of its matches


def test_of_multi_hot_labels_the_first_are_kept() -> None:
    assert first_in_turn(torch.ones(7, 3, dtype=torch.uint8), 4).tolist() == [0, 1, 2, 3]


# --- what may be asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["huge", "", "Quick"])
def test_an_unknown_scale_is_refused(scale: str) -> None:
    with pytest.raises(DataError, match=f"scale '{scale}' is unknown; allowed: 'quick', 'full'"):
        data.load("fashion-mnist", scale)


@pytest.mark.parametrize("size", [0, -1, 8.0, "8", True])
def test_an_impossible_size_is_refused(size: object) -> None:
    with pytest.raises(DataError, match="is not a number of pixels"):
        data.load("fashion-mnist", size=size)


def test_a_bare_name_is_found_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    write(tmp_path / "birds.npz", [0, 0, 1, 1])
    assert data.load("birds").name == "birds"
    with pytest.raises(DataError, match="no data set 'bird'.*make data DATASET=.*now: birds.*ROBRET_DATA"):
        data.load("bird")


@pytest.mark.parametrize("name", ["absent.npz", "."])
def test_a_path_without_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    with pytest.raises(DataError, match="looked for the file"):
        data.load(tmp_path / name)


# --- the real packed sets -------------------------------------------------------------------------


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/data/{name} is not here")
    return SHARED / name


def test_real_grocery() -> None:
    loaded = data.load(shared("grocery24_tiny_64px.npz"))
    assert loaded.train.images.shape == (144, 3, 64, 64) and loaded.gallery.images.shape == (144, 3, 64, 64)
    assert loaded.protocol.class_disjoint and int(loaded.train.labels.max()) == 11
    assert loaded.class_names[0] == "Royal-Gala"
    packed = read_packed(SHARED / "grocery24_tiny_64px.npz")
    expected = Image.open(io.BytesIO(packed.data[: packed.offsets[1]].tobytes())).resize((64, 64), Image.BICUBIC)
    assert np.array_equal(loaded.train.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_real_birds_are_a_pair_of_files() -> None:
    loaded = data.load(shared("cub200_2011_100cls_test_112px.npz"), size=8)
    assert loaded.train.images.shape == (3_428, 3, 8, 8) and loaded.protocol.class_disjoint
    assert len(loaded.gallery) == 2_000 and loaded.gallery.labels.unique().numel() == 42
    assert loaded.name == "cub200_2011_100cls_112px"


def test_real_coco_has_queries_and_several_labels() -> None:
    loaded = data.load(shared("coco18_multilabel_96px.npz"), size=8)
    assert [len(split) for split in (loaded.train, loaded.query, loaded.gallery)] == [4_000, 1_000, 2_000]
    assert loaded.query.labels.shape == (1_000, 18) and not loaded.protocol.self_excluded
