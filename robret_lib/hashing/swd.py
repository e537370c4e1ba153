"""A quantizer of distributions: each bit's values, sorted, go to those of as many fair coins."""

import torch
from torch import Tensor


def sliced_wasserstein(codes: Tensor, generator: torch.Generator) -> Tensor:
    """``(1 / nK) sum_k |sort u_k - sort r_k|^2`` with r a fresh random code; a scalar (SAAT, `SWDC`).

    Args:
        codes: Relaxed codes ``[n, bits]``.
        generator: On the device of the codes.
    """
    coins = torch.randint(0, 2, codes.shape, generator=generator, device=codes.device) * 2.0 - 1
    return (codes.sort(0).values - coins.to(codes).sort(0).values).square().mean()
