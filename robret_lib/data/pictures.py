"""An image as it looks: RGB of eight bits, upright, on white.

What Pillow opens are the stored pixels, and they can look otherwise. A phone stores a photograph as its sensor lay and
notes how to turn it; a transparent picture has a color where nothing is seen; 16-bit and float gray have a white of
their own, at which Pillow's own conversion to eight bits does not look.
"""

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from robret_lib.data.errors import DataError

# As in ImageOps.exif_transpose, which also writes the EXIF data anew and fails where any other entry is damaged.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_STEPS = {"1": 255, "L;2": 85, "L;4": 17}  # between two grays, of pixels of 1, 2 and 4 bits


def as_shown(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it. Color profiles are not applied.

    Args:
        image: a Pillow image of any mode, open or loaded; of several frames, the one it stands at, at first the first.

    Returns:
        Mode RGB, turned as the EXIF orientation says, transparency laid on white, 16-bit gray divided by 257 and float
        gray multiplied by 255. The image itself, where that changes nothing.

    Raises:
        DataError: if float gray leaves [0, 1], gray of 32 bits is not evidently of 16, or the file behind the image
            was closed before its pixels were read.
        Exception: of many types, if that file is damaged.
    """
    _check_open(image)
    image = _upright(_with_key_in_eight_bits(image))
    if image.mode == "F" or image.mode.startswith("I"):  # I, I;16, I;16B, ...
        image = _gray_in_eight_bits(image)
    if image.has_transparency_data and image.mode != "LAB":
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_open(image: Image.Image) -> None:
    if getattr(image, "tile", None) and image.fp is None:  # Pillow itself would fail an assertion, without a word
        raise DataError("its file was closed before the pixels were read; call its load() before, or open it again")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # some formats tell their orientation behind the pixels, and TIFF files are turned by this already
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of damaged EXIF data, in any type; viewers ignore it too
        return image
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion of this mode that there is
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _with_key_in_eight_bits(image: Image.Image) -> Image.Image:
    """A PNG file may name one color that is transparent. Pillow brings the pixels to eight bits, but not that color."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        scaled = tuple(value >> 8 for value in key)
    elif isinstance(key, int) and (step := _STEPS.get(_layout(image))):
        scaled = min(255, key * step)  # newer Pillow brings that of one bit
    else:
        return image
    image = image.copy()
    image.info["transparency"] = scaled
    return image


def _layout(image: Image.Image) -> str | None:
    """How the pixels lie in the file, in Pillow's words; unknown once they are loaded."""
    tiles = getattr(image, "tile", None)
    return tiles[0][3] if tiles and isinstance(tiles[0][3], str) else None


def _gray_in_eight_bits(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})  # of TIFF files
    if image.mode == "F":
        gray = _from_float(np.asarray(image))
    else:
        white = 2**12 - 1 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 2**16 - 1
        gray = _from_16_bits(np.asarray(image), white, image.info.get("transparency"))
    white_is_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # Pillow looks at it up to eight bits only
    return Image.fromarray(255 - gray if white_is_zero else gray)


def _from_float(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # in this direction NaN is refused too
        raise DataError(f"float gray reaches from {low:g} to {high:g}; expected [0, 1]")
    return np.rint(values * 255).astype(np.uint8)


def _from_16_bits(values: np.ndarray, white: int, transparent: int | None) -> np.ndarray:
    if values.dtype == np.int32:
        _check_16_bits(int(values.min()), int(values.max()))
    shown = np.rint(np.arange(2**16) * (255 / white)).clip(max=255).astype(np.uint8)
    if transparent is not None:
        shown[transparent] = 255
    return shown[values]


def _check_16_bits(low: int, high: int) -> None:
    """Pillow holds 16-bit gray of some formats in 32 bits; but also 8-bit gray, converted, which would turn black."""
    if low < 0 or high >= 2**16 or 0 < high < 2**8:
        raise DataError(
            f"32-bit gray reaches from {low} to {high}; expected that of 16 bits, up to 65535 and not below 256 "
            "(8-bit gray is mode 'L')"
        )
