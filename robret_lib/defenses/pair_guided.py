"""Min-max on pairs: attacked codes, compared one by one with the known codes of the training set."""

from torch import Tensor

from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.data import relevance
from robret_lib.defenses.attacked_codes import AttackedCodes


class PairGuided(AttackedCodes):
    """An attacked code costs ``mean_j (h~ . U_j / K - s_j)^2``, the loss of DPH, with s in {-1, +1} of its true labels.

    The attack makes it large, the training small: what `CenterGuided` is without a center. ATRDH has this price for
    another attack (`PrototypeTargeted`). Arguments: see `AttackedCodes`.
    """

    def price(self, asked: Tensor) -> CodeLoss:
        codes, labels = self.known
        wanted = 2 * relevance(asked, labels).to(codes) - 1
        return lambda attacked: (attacked @ codes.T / codes.shape[1] - wanted).square().mean(1)
