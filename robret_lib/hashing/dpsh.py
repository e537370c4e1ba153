"""DPSH: the likelihood that similar images have codes with a large product."""

from typing import Literal

from torch import Tensor, nn

from robret_lib.hashing.batch import Batch, likelihood, quantization

Source = Literal["cgat", "deephash", "saat"]
"""Whose settings a loss has: the codes of CgAT, of DeepHash-pytorch, or of SAAT."""

WEIGHT: dict[Source, float] = {"cgat": 0.001, "deephash": 0.1, "saat": 50.0}
"""Of the distance to the binary code, in three published codes; "saat" is that of THA and ProS-GAN as well."""


class DPSH(nn.Module):
    """``mean_ij (log(1 + e^t) - S_ij t)`` with ``t = u_i . U_j / 2``, plus eta times the distance to the binary code.

    (Li et al., IJCAI 2016.) The published codes differ in eta, and in what it multiplies: a mean over the batch's bits;
    in "saat" their sum over the n N pairs.

    Args:
        source: Whose eta, see `WEIGHT`.
    """

    def __init__(self, source: Source = "cgat") -> None:
        super().__init__()
        if source not in WEIGHT:
            raise ValueError(f"source={source!r}: expected one of {tuple(WEIGHT)}")
        self.source = source

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        pairs = likelihood(batch.codes @ batch.known.codes.T / 2, batch.similar)
        bits = quantization(batch.codes)
        far = bits.sum() / pairs.numel() if self.source == "saat" else bits.mean()
        return pairs.mean() + WEIGHT[self.source] * far
