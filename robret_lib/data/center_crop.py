"""The middle of the images that are searched, as published for models that train on random crops."""

from dataclasses import replace
from functools import partial

from robret_lib.data.errors import DataError
from robret_lib.data.retrieval_data import RetrievalData, Split


def center_cropped(dataset: RetrievalData, size: int) -> RetrievalData:
    """The data set with query and gallery cut to their middle, and train as it is.

    Where the middle falls between two pixels, it is rounded as by torchvision's ``CenterCrop``. The crops are views of
    the images given, which takes no memory.

    Args:
        dataset: of any sizes from ``size`` on, as 256 for 224.
        size: side of the squares in pixels.

    Returns:
        Query and gallery ``[N, C, size, size]``, one object if they were one.

    Raises:
        DataError: if an image is smaller than that.
    """
    return dataset.with_searched(partial(center_crop, size=size))


def center_crop(split: Split, size: int) -> Split:
    """The images cut to their middle, ``[N, C, size, size]``. Errors as of `center_cropped`."""
    height, width = split.images.shape[2:]
    if not 1 <= size <= min(height, width):
        raise DataError(f"size={size} of images of {height} x {width} pixels: expected 1 to {min(height, width)}")
    top, left = (round((side - size) / 2) for side in (height, width))
    return replace(split, images=split.images[:, :, top : top + size, left : left + size])
