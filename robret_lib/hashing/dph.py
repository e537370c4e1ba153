"""DPH: products of codes go to +1 for similar images and to -1 for others. The target of most published attacks."""

from torch import Tensor, nn

from robret_lib.hashing.batch import Batch


class DPH(nn.Module):
    """``mean_ij (u_i . U_j / K - s_ij)^2`` with s in {-1, +1} (Yang et al., TCYB 2020; CgAT and SAAT, `DPH`)."""

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        products = batch.codes @ batch.known.codes.T / batch.bits
        return (products - (2 * batch.similar - 1)).square().mean()
