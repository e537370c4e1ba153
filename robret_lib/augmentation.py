"""Random changes of training images, as published for photographs: a random crop, and a mirror image half of the time.

The published training code of deep metric learning, from Roth et al., "Revisiting training strategies and
generalization performance in deep metric learning" (ICML 2020), to RobRank (github cdluminate/robrank), squeezes a
photograph to 256 x 256 pixels, then trains on a random crop of 224 x 224, mirrored with probability 1/2, and searches
in center crops of that size::

    def augment(images, generator):
        return random_crop_and_flip(images, 224, generator)

    training.train(model, dataset.train, objective, schedule, augment=augment)
    searched = data.center_cropped(dataset, 224)
"""

import torch
from torch import Tensor


def random_crop_and_flip(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A square cut out of each image at a place of its own, mirrored left to right with probability 1/2.

    Args:
        images: ``[B, C, H, W]`` of any dtype.
        size: Side of the squares in pixels, at most H and W; every place is as likely.
        generator: Draws both, and is the only source of randomness.

    Returns:
        ``[B, C, size, size]``, of the dtype and on the device of the images.

    Raises:
        ValueError: The images have another shape, or are smaller than ``size``.
    """
    if images.ndim != 4 or not 1 <= size <= min(images.shape[2:]):
        raise ValueError(f"images {tuple(images.shape)}, size={size}: expected [B, C, H, W], size from 1 to H and W")
    batch, channels, height, width = images.shape
    top, left = (_drawn(side - size + 1, batch, generator) for side in (height, width))
    mirrored = _drawn(2, batch, generator)
    place = torch.arange(size, device=generator.device)
    rows = top[:, None] + place
    columns = left[:, None] + torch.where(mirrored[:, None] == 1, size - 1 - place, place)
    rows, columns = rows.to(images.device), columns.to(images.device)
    return images[
        torch.arange(batch, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _drawn(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device)
