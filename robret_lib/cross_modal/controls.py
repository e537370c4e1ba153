"""Controls: what an attack is compared with, and what a surrogate is compared with."""

import torch
from torch import Tensor

from robret_lib.data import as_float
from robret_lib.fields import check_count, check_share
from robret_lib.hamming import codes_of


def random_signs(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Noise of an attack's full size: each entry moves by ``eps`` up or down, and is cut to [0, 1].

    Args:
        images: ``[B, C, H, W]``, uint8 or in [0, 1].
        eps: Of pixels in [0, 1].
        generator: On the CPU.
    """
    check_share("eps", eps)
    images = as_float(images)
    signs = 2 * torch.randint(2, images.shape, generator=generator) - 1
    return (images + eps * signs.to(images)).clamp(0, 1)


def random_words(bags: Tensor, words: int, generator: torch.Generator) -> Tensor:
    """As many entries of each bag ``[B, 1, 1, V]`` flipped, drawn without repetition on the CPU.

    Raises:
        ValueError: Fewer entries than are to be flipped.
    """
    check_count("words", words, least=0)
    entries = bags[0].numel()
    if words > entries:
        raise ValueError(f"words={words} of bags with {entries} entries: expected no more than there are")
    order = torch.rand(len(bags), entries, generator=generator).argsort(1)
    flipped = torch.zeros(len(bags), entries).scatter(1, order[:, :words], 1).view_as(bags).to(bags)
    return (bags - flipped).abs()


def equal_bits(codes: Tensor, others: Tensor) -> Tensor:
    """How many bits of each code ``[B, bits]`` are the other's, in percent, ``[B]``."""
    return 100 * (codes == others).double().mean(1)


def commonest_bits(codes: Tensor) -> Tensor:
    """How many bits of each code ``[B, bits]`` have the value that the bit mostly has, in percent, ``[B]``.

    As many gets right who has learned nothing else.
    """
    return equal_bits(codes, codes_of(codes.double().mean(0)))
