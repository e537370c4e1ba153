"""Photographs go into a packed file as they look; what cannot is refused with its position and name."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from robret_lib import data
from robret_lib.data import DataError
from robret_lib.data.packed import read_packed
from robret_lib.data.pictures import as_shown
from robret_lib.metrics import recall_at_k

WHITE, RED = (255, 255, 255), (255, 0, 0)


def shown(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels of a picture as it looks, row by row."""
    looked = as_shown(image)
    assert looked.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(looked).reshape(-1, 3).tolist()]


def reopened(image: Image.Image, format: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


def write(path: Path, images: object, **options: object) -> Path:
    """Packs one image of class 0, or several of the classes 0, 1, 0, 1, ..."""
    images = [images] if isinstance(images, Image.Image) else images
    data.write_packed(path, images, options.pop("labels", [0]), ["a", "b"], **options)
    return path


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Pictures that JPEG keeps nearly as they are: uint8 ``[count, height, width, 3]``."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(0)) * 255
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# --- which side is up -----------------------------------------------------------------------------

AS_HELD: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # from the EXIF standard, in NumPy's words
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [*AS_HELD, 0, 9])
def test_the_orientation_is_applied(format: str, orientation: int) -> None:
    stored = smooth(1, 12, 20)[0]
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    photograph = reopened(Image.fromarray(stored), format, exif=exif(orientation), **options)
    difference = np.asarray(as_shown(photograph)).astype(int) - AS_HELD.get(orientation, AS_HELD[1])(stored)
    assert np.abs(difference).mean() < 2


def test_an_avif_photograph_is_turned_once() -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow knows no AVIF")
    assert as_shown(reopened(Image.new("RGB", (6, 4)), "AVIF", exif=exif(6))).size == (4, 6)


def test_an_orientation_in_xmp_is_applied() -> None:
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    assert as_shown(reopened(Image.new("RGB", (6, 4)), "PNG", pnginfo=xmp)).size == (4, 6)


def test_gray_and_transparent_pictures_are_turned_too() -> None:
    gray = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    assert shown(reopened(Image.fromarray(gray), "PNG", exif=exif(6))) == [(i,) * 3 for i in (3, 0, 4, 1, 5, 2)]
    clear = Image.new("RGBA", (2, 1), (*RED, 255))
    clear.putpixel((1, 0), (*RED, 0))
    turned = as_shown(reopened(clear, "PNG", exif=exif(6)))
    assert turned.size == (1, 2) and shown(turned) == [RED, WHITE]


@pytest.mark.parametrize("kept", [lambda photograph: photograph.copy(), lambda photograph: photograph.resize((6, 4))])
def test_a_photograph_edited_in_memory_is_turned(kept: Callable[[Image.Image], Image.Image]) -> None:
    width, height = kept(photograph := reopened(Image.new("RGB", (6, 4)), "JPEG", exif=exif(6))).size
    assert as_shown(kept(photograph)).size == (height, width)


def test_it_is_turned_once_and_left_as_it_was() -> None:
    photograph = reopened(Image.new("RGB", (6, 4)), "PNG", exif=exif(6))
    assert as_shown(photograph).size == as_shown(photograph).size == (4, 6)
    assert photograph.size == (6, 4) and photograph.getexif()[0x0112] == 6


def test_pairs_of_upright_and_sideways_photographs_find_each_other(tmp_path: Path) -> None:
    paths, pictures = [], smooth(22, 24, 32)
    for i, picture in enumerate(pictures):
        for name, stored, orientation in ((f"{i}.jpg", picture, 1), (f"{i}-phone.jpg", np.rot90(picture), 6)):
            Image.fromarray(stored).save(tmp_path / name, exif=exif(orientation))
            paths.append(tmp_path / name)
    labels, split = torch.arange(22).repeat_interleave(2), ["train"] * 4 + ["test"] * 40
    images = (Image.open(path) for path in paths)
    data.write_packed(tmp_path / "a.npz", images, labels, [str(i) for i in range(22)], split=split)
    searched = data.load(tmp_path / "a.npz").gallery
    embeddings = torch.nn.functional.normalize(data.as_float(searched.images).flatten(1) - 0.5)
    assert recall_at_k(embeddings, embeddings, searched.labels, searched.labels, (1,), self_excluded=True) == {1: 100}


DAMAGED_EXIF = [
    b"Exif\0\0nonsense",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06",
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("damaged", DAMAGED_EXIF)
def test_damaged_exif_is_ignored(damaged: bytes) -> None:
    assert as_shown(reopened(Image.new("RGB", (6, 4)), "JPEG", exif=damaged)).size == (6, 4)


def test_exif_that_cannot_be_read_at_all_is_ignored() -> None:
    image = Image.new("RGB", (6, 4))
    image.info["Raw profile type exif"] = "\nexif\n4\nno hexadecimal"
    assert as_shown(image).size == (6, 4)


def test_an_orientation_beside_damage_is_applied() -> None:
    """The letters of a text are declared to be a number: Pillow reads that, but cannot write it again."""
    tags = exif(6)
    tags[0x010F] = "Maker"
    damaged = tags.tobytes().replace(struct.pack("<HH", 0x010F, 2), struct.pack("<HH", 0x010F, 2 << 8))
    damaged = damaged.replace(struct.pack(">HH", 0x010F, 2), struct.pack(">HH", 0x010F, 2 << 8))
    assert as_shown(reopened(Image.new("RGB", (6, 4)), "JPEG", exif=damaged)).size == (4, 6)


# --- every mode -----------------------------------------------------------------------------------

GRAY = [(0, 0, 0), (128, 128, 128), WHITE]


def of(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def with_palette(mode: str, colors: list[int], *pixels: object) -> Image.Image:
    image = Image.new("P", (len(pixels), 1))
    image.putpalette(colors)
    image = image.convert(mode)
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (of("1", 0, 255), [(0, 0, 0), WHITE]),
        (of("L", 0, 128, 255), GRAY),
        (of("RGB", RED, (1, 2, 3)), [RED, (1, 2, 3)]),
        (of("RGBX", (*RED, 0), (1, 2, 3, 9)), [RED, (1, 2, 3)]),
        (with_palette("P", [*RED, 1, 2, 3], 0, 1), [RED, (1, 2, 3)]),
        (of("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), [RED, WHITE]),
        (of("YCbCr", (255, 128, 128), (128, 128, 128)), [WHITE, GRAY[1]]),
        (of("HSV", (0, 255, 255), (0, 0, 128)), [RED, GRAY[1]]),
        (of("I;16", 0, 128 * 257, 65_535), GRAY),
        (of("I;16", 128, 129, 385, 386), [(0,) * 3, (1,) * 3, (1,) * 3, (2,) * 3]),
        (of("I", 0, 128 * 257, 65_535), GRAY),
        (of("I", 0, 0), [(0, 0, 0)] * 2),
        (of("F", 0.0, 0.5, 1.0), GRAY),
        (of("LA", (9, 0), (128, 255), (0, 51)), [WHITE, GRAY[1], (204,) * 3]),
        (of("LA", (9, 0), (0, 255), (0, 51)).convert("La"), [WHITE, GRAY[0], (204,) * 3]),
        (of("RGBA", (*RED, 0), (*RED, 255), (*RED, 51)), [WHITE, RED, (255, 204, 204)]),
        (of("RGBA", (*RED, 0), (*RED, 255), (*RED, 51)).convert("RGBa"), [WHITE, RED, (255, 204, 204)]),
        (with_palette("PA", [*RED, 1, 2, 3], (0, 0), (1, 255)), [WHITE, (1, 2, 3)]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_a_picture_of_any_mode_is_stored_as_it_looks(image: Image.Image, expected: list, tmp_path: Path) -> None:
    assert shown(image) == expected
    wide = image.resize((16 * len(expected), 16), Image.Resampling.NEAREST)
    stored = read_packed(write(tmp_path / "a.npz", wide)).decode([0], size=16 * len(expected))[0]
    centers = stored[:, 8, 8::16].T
    assert (centers.int() - torch.tensor(expected).int()).abs().max() <= 6  # as good as JPEG


def test_lab_is_white_where_it_is_light() -> None:
    assert all(min(pixel) >= 253 for pixel in shown(of("LAB", (255, 128, 128))))


def test_big_endian_16_bit_gray() -> None:
    values = np.array([[0, 128 * 257, 65_535]], dtype=">u2")
    stored = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert shown(stored) == shown(reopened(stored, "TIFF")) == GRAY


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_files_are_divided_by_257(tmp_path: Path, format: str) -> None:
    gray = np.linspace(0, 65_535, 256).round().astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"scan.{format.lower()}"
    Image.fromarray(gray).save(path)
    stored = read_packed(write(tmp_path / "a.npz", [Image.open(path)])).decode([0], size=16)[0]
    assert (stored.int() - torch.arange(256).reshape(16, 16)).abs().max() <= 6


def test_16_bit_gray_that_pillow_holds_in_32_bits() -> None:
    file = b"P5 3 1 65535\n" + np.array([0, 128 * 257, 65_535], ">u2").tobytes()
    image = Image.open(io.BytesIO(file))
    assert image.mode == "I" and shown(image) == GRAY


def test_a_float_picture_is_multiplied_by_255() -> None:
    image = Image.fromarray(np.array([[0, 128 / 255, 1]], dtype=np.float32))
    assert image.mode == "F" and shown(image) == shown(reopened(image, "TIFF")) == GRAY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 255]], np.float32), "float gray reaches from 0 to 255; expected \\[0, 1\\]"),
        (np.array([[-0.5, 1]], np.float32), "float gray reaches from -0.5 to 1"),
        (np.array([[0, np.nan]], np.float32), "float gray reaches from nan to nan"),
        (np.array([[0, np.inf]], np.float32), "float gray reaches from 0 to inf"),
        (np.array([[0, 65_536]], np.int32), "32-bit gray reaches from 0 to 65536; expected that of 16 bits"),
        (np.array([[-1, 300]], np.int32), "32-bit gray reaches from -1 to 300"),
        (np.array([[0, 255]], np.int32), "32-bit gray reaches from 0 to 255.*8-bit gray is mode 'L'"),
    ],
)
def test_gray_of_another_range_is_refused_by_name(tmp_path: Path, values: np.ndarray, message: str) -> None:
    images = [Image.new("L", (2, 1)), Image.fromarray(values)]
    with pytest.raises(DataError, match=f"a.npz: image 1 \\(scan.tif\\) cannot be stored: {message}"):
        write(tmp_path / "a.npz", images, labels=[0, 0], names=["photo.jpg", "scan.tif"])
    assert not list(tmp_path.iterdir())


def tiff(pixels: bytes, width: int, bits: int, photometric: int) -> Image.Image:
    """A TIFF file of one row, as Pillow writes none."""
    fields = ((256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (278, 1), (279, len(pixels)))
    pixels += b"\0" * (len(pixels) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in fields)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    return Image.open(io.BytesIO(head + pixels + struct.pack("<H", len(fields)) + directory + struct.pack("<I", 0)))


def test_a_16_bit_negative_is_shown_as_a_positive() -> None:
    pixels = np.array([65_535, 127 * 257, 0], "<u2").tobytes()
    assert shown(tiff(pixels, 3, bits=16, photometric=0)) == GRAY
    assert shown(tiff(pixels, 3, bits=16, photometric=1)) == [WHITE, (127,) * 3, (0, 0, 0)]


def test_white_of_12_bits_is_white() -> None:
    assert shown(tiff(bytes([0x00, 0x0F, 0xFF]), 2, bits=12, photometric=1)) == [(0, 0, 0), WHITE]


# --- transparency ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "format", "key"),
    [
        (with_palette("P", [*RED, 1, 2, 3], 0, 1), "PNG", 0),
        (with_palette("P", [*RED, 1, 2, 3], 0, 1), "PNG", b"\x00\xff"),
        (with_palette("P", [*RED, 1, 2, 3], 0, 1), "GIF", 0),
        (of("RGB", RED, (1, 2, 3)), "PNG", RED),
        (of("L", 9, 77), "PNG", 9),
        (of("1", 0, 255), "PNG", 0),
        (of("I;16", 9, 77 * 257), "PNG", 9),
    ],
)
def test_a_transparent_color_is_white(image: Image.Image, format: str, key: object) -> None:
    visible = shown(image)[1]
    assert shown(reopened(image, format, transparency=key)) == [WHITE, visible]
    loaded = reopened(image, format, transparency=key)
    loaded.load()
    assert shown(loaded) == [WHITE, visible]


def test_a_palette_with_half_transparent_colors_is_laid_on_white() -> None:
    image = with_palette("P", [*RED, 1, 2, 3], 0, 1)
    assert shown(reopened(image, "PNG", transparency=b"\x33\xff")) == [(255, 204, 204), (1, 2, 3)]
    image = Image.new("P", (1, 1))
    image.putpalette([*RED, 51], "RGBA")
    assert shown(image) == [(255, 204, 204)]


def png(bits: int, kind: int, row: bytes, width: int, transparent: bytes = b"") -> Image.Image:
    """A PNG file of one row, of bits a sample as Pillow writes none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)), (b"tRNS", transparent)]
    chunks += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    file = b"".join(chunk(name, content) for name, content in chunks if content or name == b"IEND")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + file))


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (1, 0b01000000, 1, [(0, 0, 0), WHITE]),
        (1, 0b01000000, 0, [WHITE, WHITE]),
        (2, 0b01100000, 2, [(85,) * 3, WHITE]),
        (4, 0b01011000, 8, [(85,) * 3, WHITE]),
    ],
)
def test_a_transparent_gray_of_few_bits_is_white(bits: int, row: int, key: int, expected: list) -> None:
    assert shown(png(bits, 0, bytes([row]), 2, struct.pack(">H", key))) == expected


def test_color_of_16_bits() -> None:
    row = struct.pack(">6H", 0x1234, 0x2345, 0x3456, 0xFFFF, 0x0000, 0x0000)
    assert shown(png(16, 2, row, 2)) == [(0x12, 0x23, 0x34), RED]
    assert shown(png(16, 2, row, 2, row[:6])) == [WHITE, RED]
    assert shown(png(16, 6, struct.pack(">8H", *(0x1234,) * 3, 0, *(0xFFFF, 0, 0, 0xFFFF)), 2)) == [WHITE, RED]
    assert shown(png(16, 4, struct.pack(">4H", 0x1234, 0, 0xFFFF, 0xFFFF), 2)) == [WHITE, WHITE]


# --- several frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 255))]
    image = reopened(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert image.n_frames == 2 and set(shown(image)) == {RED}
    image.seek(1)
    assert set(shown(image)) == {(0, 0, 255)}, "unless another one was asked for"


def test_the_comment_of_a_picture_does_not_travel(tmp_path: Path) -> None:
    image = reopened(Image.new("L", (4, 4)), "GIF", comment=b"x" * 70_000)  # longer than a JPEG file can have
    assert "comment" not in read_packed(write(tmp_path / "a.npz", [image]))._open(0).info


# --- what cannot be stored ------------------------------------------------------------------------


def opened(*paths: Path) -> Iterator[Image.Image]:
    return (Image.open(path) for path in paths)


@pytest.mark.parametrize("format", ["jpg", "png", "gif", "tif", "webp"])
@pytest.mark.parametrize("portion", [0.1, 0.5, 0.9])
def test_a_photograph_cut_short_is_named(tmp_path: Path, format: str, portion: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    good, bad = tmp_path / f"good.{format}", tmp_path / f"bad.{format}"
    Image.fromarray(noise).save(good)
    bad.write_bytes(good.read_bytes()[: int(portion * good.stat().st_size)])
    for names, where in (
        (["good", "käfer.jpg"], "image 1 \\(käfer.jpg\\) cannot be stored"),
        (None, "image 1 .*cannot"),
    ):
        with pytest.raises(DataError, match=where):
            write(tmp_path / "a.npz", opened(good, bad), labels=[0, 1], names=names)
    assert not (tmp_path / "a.npz").exists()


def test_without_names_a_damaged_photograph_has_that_of_its_file(tmp_path: Path) -> None:
    Image.fromarray(smooth(1, 32, 32)[0]).save(tmp_path / "bad.jpg", quality=100)
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "bad.jpg").read_bytes()[:-50])
    with pytest.raises(DataError, match="image 0 \\(.*bad.jpg\\) cannot be stored: OSError: image file is truncated"):
        write(tmp_path / "a.npz", opened(tmp_path / "bad.jpg"))


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes | None) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DataError, match="image 1 \\(b\\) cannot be stored: .*Error: .*bad.jpg"):
        write(tmp_path / "a.npz", opened(tmp_path / "good.png", tmp_path / "bad.jpg"), labels=[0, 1], names=["a", "b"])


def test_a_name_is_not_that_of_the_picture_before(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "good.png")

    def images() -> Iterator[Image.Image]:
        yield Image.open(tmp_path / "good.png")
        raise Image.DecompressionBombError("too large")

    with pytest.raises(DataError, match="image 1 cannot be stored: DecompressionBombError: too large"):
        write(tmp_path / "a.npz", images(), labels=[0, 1])


def test_a_closed_picture_is_named(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "closed.png")
    with Image.open(tmp_path / "closed.png") as image:
        pass
    with pytest.raises(DataError, match="image 0 \\(.*closed.png\\) cannot be stored: its file was closed before"):
        write(tmp_path / "a.npz", [image])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos/x.jpg", "a str 'photos/x.jpg'; expected uint8 \\[3, height, width\\] or a Pillow image"),
        (Path("photos/x.jpg"), "a .*Path.*x.jpg.*Image.open makes one of a path"),
        (None, "a NoneType None; expected uint8"),
        (np.zeros((4, 5, 3), np.uint8), "a ndarray of type uint8 and shape \\(4, 5, 3\\).*Image.fromarray"),
        (torch.zeros(3, 4, 5), "a tensor of type torch.float32 and shape \\(3, 4, 5\\); expected uint8.*round"),
        (
            torch.zeros(4, 5, 3, dtype=torch.uint8),
            "a tensor of .* shape \\(4, 5, 3\\); expected uint8 \\[3, height, width\\]",
        ),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), "5 x 0 pixels; expected at least one"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels; expected at least one"),
        (Image.new("F", (5, 0)), "5 x 0 pixels; expected at least one"),
        (Image.new("L", (65_501, 1)), "65501 x 1 pixels; expected at most .* 65,500 a side"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, given: object, message: str) -> None:
    images = [Image.new("RGB", (4, 5)), given]
    for names, where in ((["a.jpg", "b.jpg"], "image 1 \\(b.jpg\\)"), (None, "image 1")):
        with pytest.raises(DataError, match=f"{where} cannot be stored: {message}"):
            write(tmp_path / "a.npz", images, labels=[0, 1], names=names)
    assert not list(tmp_path.iterdir())


def test_a_single_picture_is_no_list_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 0 cannot be stored"):
        data.write_packed(tmp_path / "a.npz", Image.new("RGB", (4, 4)), [0], ["a"])


# --- names ----------------------------------------------------------------------------------------


def test_odd_file_names_come_back(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"k\xe4fer.jpg", "käfer.jpg".encode(), b"", b"a b\n.jpg")]
    images = [Image.new("L", (8, 8))] * 4
    packed = read_packed(write(tmp_path / "a.npz", images, labels=[0, 1, 0, 1], names=names))
    assert packed.names == tuple(names)


def test_an_odd_file_name_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("image 0 (k\\udce4fer.jpg) cannot be stored")) as caught:
        write(tmp_path / "a.npz", ["k\udce4fer.jpg"], names=["k\udce4fer.jpg"])
    str(caught.value).encode()
    stored = dict(np.load(write(tmp_path / "b.npz", Image.new("L", (8, 8)), names=["k\udce4fer.jpg"])))
    np.savez(tmp_path / "b.npz", **{**stored, "data": stored["data"] * 0})
    with pytest.raises(DataError, match=re.escape("image 0 (k\\udce4fer.jpg) is not a usable JPEG")) as caught:
        data.load(write_split(tmp_path / "b.npz"), size=8)
    str(caught.value).encode()


def write_split(path: Path) -> Path:
    """Doubles the only image of a packed file: one to train with, one to search."""
    stored = dict(np.load(path))
    end = stored["offsets"][1]
    twice = {name: np.concatenate([stored[name]] * 2) for name in ("data", "label", "name") if name in stored}
    np.savez(
        path, **{**stored, **twice, "offsets": np.array([0, end, 2 * end]), "split": np.array([b"train", b"test"])}
    )
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x\0.jpg", "'x\\\\x00.jpg'; expected a text without NUL"),
        ("x.jpg\0", "'x.jpg\\\\x00'; expected a text without NUL"),
        ("x\ud800.jpg", "'x\\\\ud800.jpg', which UTF-8 cannot hold"),
        ("\udcc3\udca4", "'\\\\udcc3\\\\udca4', which would come back as '\\\\xe4'"),
        (Path("x.jpg"), "Path.*expected a str"),
        (b"x.jpg", "a bytes; expected a str"),
        (None, "None, a NoneType; expected a str"),
    ],
)
def test_a_name_that_would_not_come_back_is_refused(tmp_path: Path, name: object, message: str) -> None:
    with pytest.raises(DataError, match=f"a.npz: 'name' 1 is .*{message}") as caught:
        write(tmp_path / "a.npz", [Image.new("L", (8, 8))] * 2, labels=[0, 1], names=["a", name])
    str(caught.value).encode()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["b\0", "b\udce4"])
def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a.npz: 'class_names' 1 is 'b"):
        data.write_packed(tmp_path / "a.npz", [Image.new("L", (8, 8))], [0], ["a", name])


# --- large photographs ----------------------------------------------------------------------------


def test_200_megapixels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    photographs = (Image.new("1", size) for size in ((8, 8), (20_000, 10_000)))
    message = "image 1 \\(b.jpg\\) cannot be stored: 20000 x 10000 pixels; expected at most 178,956,970.*thumbnail"
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a.npz", photographs, labels=[0, 1], names=["a.jpg", "b.jpg"])


@pytest.mark.parametrize("limit", [None, 10**12])
def test_a_lifted_limit_does_not_write_what_others_cannot_read(tmp_path: Path, monkeypatch, limit) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="expected at most 178,956,970"):
        write(tmp_path / "a.npz", Image.new("1", (20_000, 10_000)))


@pytest.mark.filterwarnings("error")
def test_all_that_is_written_is_read_without_a_warning(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 128)
    packed = read_packed(write(tmp_path / "a.npz", Image.new("RGB", (16, 16), RED)))
    assert packed.smallest_side() == 16 and packed.decode([0], size=4).shape == (1, 3, 4, 4)
    with pytest.raises(DataError, match="image 0 cannot be stored: 17 x 16 pixels; expected at most 256 in all"):
        write(tmp_path / "b.npz", torch.zeros(1, 3, 16, 17, dtype=torch.uint8))


def test_a_bomb_in_a_file_from_elsewhere_is_refused(tmp_path: Path, monkeypatch) -> None:
    packed = read_packed(write(tmp_path / "a.npz", Image.new("RGB", (16, 16))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 127)
    with pytest.raises(DataError, match="a.npz: image 0 is not a usable JPEG file: .*could be decompression bomb"):
        packed.decode([0], size=4)


# --- files that another program wrote -------------------------------------------------------------


def packed_elsewhere(path: Path, *files: bytes) -> Path:
    offsets = np.cumsum([0, *map(len, files)])
    label, names = np.zeros(len(files), np.int16), np.array([b"a"])
    pixels = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, data=pixels, offsets=offsets, label=label, class_names=names)
    return path


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_an_orientation_in_a_packed_file_is_applied(tmp_path: Path) -> None:
    stored = smooth(1, 16, 16)[0]
    files = [jpeg(Image.fromarray(stored), exif=exif(6)), jpeg(Image.fromarray(np.rot90(stored, -1)))]
    sideways, upright = read_packed(packed_elsewhere(tmp_path / "a.npz", *files)).decode([0, 1], size=16).int()
    assert (sideways - upright).abs().float().mean() < 2


def test_gray_and_cmyk_photographs_in_a_packed_file(tmp_path: Path) -> None:
    files = [jpeg(Image.new("L", (8, 8), 128)), jpeg(Image.new("CMYK", (8, 8), (0, 255, 255, 0)))]
    gray, red = read_packed(packed_elsewhere(tmp_path / "a.npz", *files)).decode([0, 1], size=8).int()
    assert (gray - 128).abs().max() <= 1 and (red[0] - 255).abs().max() <= 2 and red[1:].max() <= 2
