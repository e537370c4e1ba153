"""DCH: a Cauchy distribution over the distances of a batch, so that similar codes end within a small Hamming radius."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch, balanced

NEAREST = 0.99
"""The largest cosine that counts: beyond it the logarithm of a distance would have no bound."""


class DCH(nn.Module):
    """``mean w (S log(d / gamma) + log(1 + gamma / d))`` over pairs of the batch, plus lambda times that to the code.

    ``d = (1 - min(cos, 0.99)) K / 2``; the second part is ``mean log(1 + d(|u|, 1) / gamma)`` (Cao et al., CVPR 2018;
    DeepHash-pytorch).

    Args:
        gamma: Scale of the distribution, in bits.
        quantization: lambda.
    """

    def __init__(self, gamma: float = 20.0, quantization: float = 0.1) -> None:
        super().__init__()
        check_number("gamma", gamma, above=0)
        check_number("quantization", quantization, least=0)
        self.gamma, self.quantization = gamma, quantization

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        codes, similar = normalize(batch.codes), batch.similar_within
        apart = _distance(codes @ codes.T, batch.bits) / self.gamma
        pairs = balanced(similar) * (similar * apart.log() + torch.log1p(1 / apart))
        uneven = _distance(codes.abs().sum(1) / batch.bits**0.5, batch.bits) / self.gamma
        return pairs.mean() + self.quantization * torch.log1p(uneven).mean()


def _distance(cosine: Tensor, bits: int) -> Tensor:
    return (1 - cosine.clamp(max=NEAREST)) * bits / 2
