"""Min-max on pairs: attacked codes, compared one by one with the known codes of the training set."""

from torch import Tensor

from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.data import relevance
from robret_lib.defenses.attacked_codes import AttackedCodes


class PairGuided(AttackedCodes):
    """An attacked code costs ``mean_j (u~ . U_j / K - s_j)^2``, the loss of DPH, with s in {-1, +1} of its true labels.

    The attack makes it large, the training small: what `CenterGuided` is without a center. ATRDH has this price for
    another attack (`PrototypeTargeted`); with this one, nobody has published it. Arguments: see `AttackedCodes`.
    """

    def price(self, information: Tensor) -> CodeLoss:
        """Written out, of each code a square and a linear form, so that pairs are gone through once, not in each call.

        ``u~ G u~ - 2 u~ . v + 1`` with ``G = U^T U / (N K^2)`` and ``v_i = sum_j s_ij U_j / (N K)``.
        """
        codes, labels = self.known
        scaled = codes / codes.shape[1]
        wanted = (2 * relevance(information, labels).to(codes) - 1) @ scaled / len(codes)
        products = scaled.T @ scaled / len(codes)
        return lambda attacked: (attacked * (attacked @ products - 2 * wanted)).sum(1) + 1
