"""An image as the JPEG file that a packed set holds."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.pictures import as_shown

# What is written must be readable. Pillow refuses to open files of more than twice Image.MAX_IMAGE_PIXELS, since they
# may be bombs, and readers should keep that protection. So such pictures are refused here already; and by its default
# also where a program has lifted the limit, because the one that reads the file will not have.
PILLOWS_LIMIT = 2**30 // 4 // 3
LONGEST_SIDE = 65_500  # of a JPEG file, by libjpeg


def jpeg_file(image: Tensor | Image.Image, quality: int, side: int | None = None) -> bytes:
    """The image as it looks, see `robret_lib.data.pictures.as_shown`, with color at full resolution.

    Args:
        image: uint8 ``[3, H, W]``, or a Pillow image of any mode.
        quality: 1 to 100.
        side: what the shorter side is reduced to, in pixels (bicubic, the aspect kept); None keeps the size. What is
            smaller is never enlarged.

    Raises:
        DataError: if it is neither, or has no pixels, or too many to be read again.
        Exception: of many types, if it comes from a damaged file.
    """
    buffer = io.BytesIO()
    # Without a comment of ours Pillow writes that of the file the image was opened from, and fails over a long one.
    reduced(_picture(image), side).save(buffer, "JPEG", quality=quality, subsampling=0, comment=b"")
    return buffer.getvalue()


def reduced(image: Image.Image, side: int | None) -> Image.Image:
    """The image with a shorter side of at most ``side`` pixels; the image itself, where it is so small already."""
    if side is None or min(image.size) <= side:
        return image
    width, height = (round(length * side / min(image.size)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _picture(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Image.Image):
        _check_size(*image.size)
        return as_shown(image)
    if not isinstance(image, Tensor):
        given = f" of type {image.dtype} and shape {image.shape}" if isinstance(image, np.ndarray) else f" {image!a}"
        raise DataError(
            f"a {type(image).__name__}{given:.200}; expected uint8 [3, height, width] or a Pillow image "
            "(Image.open makes one of a path, Image.fromarray of an array)"
        )
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise DataError(
            f"a tensor of type {image.dtype} and shape {tuple(image.shape)}; expected uint8 [3, height, width] "
            "(from [0, 1]: (255 * image).round().to(torch.uint8))"
        )
    _check_size(image.shape[2], image.shape[1])
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise DataError(f"{width} x {height} pixels; expected at least one")
    most = 2 * min(PILLOWS_LIMIT, Image.MAX_IMAGE_PIXELS or PILLOWS_LIMIT)
    if width * height > most or max(width, height) > LONGEST_SIDE:
        raise DataError(
            f"{width} x {height} pixels; expected at most {most:,} in all and {LONGEST_SIDE:,} a side, else it could "
            "not be read again. Make it smaller first, for example by image.thumbnail((4096, 4096))"
        )
