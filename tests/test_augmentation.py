"""Random crops and flips: each is a crop of its own image, every place and both sides are drawn, all from a seed."""

import pytest
import torch

from robret_lib.augmentation import random_crop_and_flip
from robret_lib.training import seeded


def numbered(batch, height=7, width=6, dtype=torch.int64):
    """Images in which no two pixels are equal."""
    return torch.arange(batch * 3 * height * width).view(batch, 3, height, width).to(dtype)


def drawn(images, size, seed=0):
    return random_crop_and_flip(images, size, torch.Generator().manual_seed(seed))


def place_of(crop, image, size):
    """Where a crop was taken, and whether it was mirrored, by trying all."""
    found = [
        (top, left, mirrored)
        for top in range(image.shape[1] - size + 1)
        for left in range(image.shape[2] - size + 1)
        for mirrored in (False, True)
        if torch.equal(crop, image[:, top : top + size, left : left + size].flip(2 if mirrored else ()))
    ]
    (place,) = found
    return place


def test_each_is_a_crop_of_its_own_image_and_every_place_is_as_likely():
    images = numbered(6_000)
    places = [place_of(crop, image, 5) for crop, image in zip(drawn(images, 5), images, strict=True)]
    counts = {place: places.count(place) for place in set(places)}
    assert len(counts) == 3 * 2 * 2
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())  # five standard deviations


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_the_type_stays_and_the_shape_is_square(dtype):
    images = torch.rand(5, 2, 9, 8).mul(255).to(dtype)
    before = images.clone()
    crops = drawn(images, 4)
    assert crops.dtype == dtype and crops.shape == (5, 2, 4, 4) and crops.is_contiguous()
    assert torch.equal(images, before)
    assert torch.equal(crops.double(), drawn(images.double(), 4))  # the draws are not a matter of type


def test_images_of_the_size_are_only_mirrored():
    images = numbered(20, 6, 6)
    mirrored = [torch.equal(crop, image.flip(2)) for crop, image in zip(drawn(images, 6), images, strict=True)]
    kept = [torch.equal(crop, image) for crop, image in zip(drawn(images, 6), images, strict=True)]
    assert any(mirrored) and any(kept) and all(a != b for a, b in zip(mirrored, kept, strict=True))


def test_the_generator_is_the_only_randomness():
    images = numbered(50)
    torch.manual_seed(0)
    first, state = drawn(images, 5), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.manual_seed(1)
    assert torch.equal(drawn(images, 5), first)
    assert not torch.equal(drawn(images, 5, seed=1), first)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 7, 6), 7), ((2, 3, 6, 7), 7), ((2, 3, 7, 6), 0), ((2, 3, 7, 6), -1), ((3, 7, 6), 5)]
)
def test_what_cannot_be_cropped_is_refused(shape, size):
    with pytest.raises(ValueError, match=f"size={size}: expected .B, C, H, W., size from 1 to H and W"):
        drawn(torch.zeros(shape), size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_stays_there():
    images = numbered(500).cuda()
    crops = random_crop_and_flip(images, 5, seeded(images.device, 0))
    assert crops.device == images.device
    for crop, image in zip(crops.cpu(), images.cpu(), strict=True):
        place_of(crop, image, 5)
    from_the_cpu = drawn(images, 5)
    assert torch.equal(from_the_cpu.cpu(), drawn(images.cpu(), 5))
