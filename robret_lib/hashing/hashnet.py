"""HashNet: the likelihood of DPSH, with as much weight on the few similar pairs as on the many others."""

from torch import Tensor, nn

from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch, balanced, likelihood


class HashNet(nn.Module):
    """``mean_ij w_ij (log(1 + e^d) - S_ij d)`` with ``d = alpha u_i . U_j`` (Cao et al., ICCV 2017).

    What else belongs to the method, the tanh that grows sharper, is `continuation`.

    Args:
        alpha: 0.1 in DeepHash-pytorch, CgAT, THA and ProS-GAN; SAAT has ten over the number of bits.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        check_number("alpha", alpha, above=0)
        self.alpha = alpha

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        pairs = likelihood(self.alpha * batch.codes @ batch.known.codes.T, batch.similar)
        return (balanced(batch.similar) * pairs).mean()
