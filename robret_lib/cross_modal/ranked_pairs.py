"""EQB2A's way to learn from answers: of some items, the order of their distances is to be kept."""

import torch
from torch import Tensor

from robret_lib.cross_modal.oracle import Answers
from robret_lib.cross_modal.surrogates import OfAnswers
from robret_lib.fields import check_number
from robret_lib.hamming import hamming_distance

RANKED = 5
"""Items of which an anchor's order is learned, ten ordered pairs of them."""


class RankedPairs(OfAnswers):
    """Ordered pairs of ranked items, balanced bits, and a distance to binary codes (EQB2A, its public code).

    For each anchor five items of the other kind are drawn and put in the order of its answered distances; a pair of
    them costs ``max(0, 0.1 - (d_k - d_j))`` of distances divided by the bits, where j is the nearer one; ties cost
    nothing. Bits that are flipped or exchanged in both kinds alike cost the same, so surrogates need not give the bits
    of the engine.

    The authors' code differs. It asks for all codes of a training set besides; here it gets as many answers as every
    other attack. Its five items stand at even steps from the first rank to the last, equals apart by chance, and
    ``d_k - d_j`` is divided by the steps between the two. Items are encoded anew, with their gradients; here they are
    as last seen (`OfAnswers`). The ten pairs are a mean, and the sums over bits are divided by their number. And a
    generator makes its queries, at last, of a loss that is none of ours (`attacks.cross_modal.TripletReversal`).
    With items and steps as theirs the attack left no less in our tries, of DCMH at full scale, asked 1,000 pairs (a new
    head, two seeds, 25 steps of `AutoPGD`, three words): 0.3 ± 0.7 points of MAP more of images, 2.4 ± 1.3 of texts.

    Args:
        answers: See `OfAnswers`.
        margin: Of distances divided by the bits.
        balance, quantization: Weights of the squared mean of each bit, and of the distance to the sign.
    """

    same_bits = False

    def __init__(
        self, answers: Answers, margin: float = 0.1, balance: float = 0.01, quantization: float = 0.001
    ) -> None:
        super().__init__(answers)
        for name, value in (("margin", margin), ("balance", balance), ("quantization", quantization)):
            check_number(name, value, least=0)
        self.margin, self.balance, self.quantization = margin, balance, quantization

    def of_kind(
        self, codes: Tensor, answered: Tensor, others: Tensor, others_answered: Tensor, generator: torch.Generator
    ) -> Tensor:
        items = torch.randint(len(others), (len(codes), RANKED), generator=generator, device=codes.device)
        told = hamming_distance(answered, others_answered).to(codes).gather(1, items)
        found = (1 - (codes[:, None] * others[items]).mean(2)) / 2
        farther = told[:, :, None] - told[:, None, :]  # of k than j
        apart = found[:, :, None] - found[:, None, :]
        ranked = (torch.relu(self.margin - apart) * (farther > 0)).sum((1, 2)).mean()
        balanced = codes.mean(0).square().sum()
        far = (codes - codes.detach().sign()).square().sum(1).mean()
        return ranked + self.balance * balanced + self.quantization * far
