"""DSDH: the likelihood of DPSH; beside it, binary codes and a linear classifier of them are fitted by turns."""

import torch
from torch import Tensor, nn

from robret_lib.data import multi_hot
from robret_lib.fields import check_count, check_number
from robret_lib.hashing.batch import Batch, Known, likelihood

ROUNDS = 10
"""Fits of classifier and codes between two epochs."""


class DSDH(nn.Module):
    """``mean_ij (log(1 + e^t) - S_ij t)``, plus mu times the error of the classifier, plus nu times its weights.

    Between epochs the classifier W and the codes B of the training set are fitted to the labels, the codes bit by bit
    (Li et al., NeurIPS 2017; CgAT and DeepHash-pytorch). As in both codes, W and B are constants, so that of the three
    terms the first alone trains the network.

    Args:
        size, classes, bits: Of the training set and its codes.
        mu, nu, eta: Weights of the classifier, of its size, and of the relaxed codes where B is fitted.
    """

    binary: Tensor
    classifier: Tensor

    def __init__(self, size: int, classes: int, bits: int, mu: float = 1.0, nu: float = 1.0, eta: float = 55.0) -> None:
        super().__init__()
        for name, count in (("size", size), ("classes", classes), ("bits", bits)):
            check_count(name, count)
        for name, value in (("mu", mu), ("nu", nu), ("eta", eta)):
            check_number(name, value, above=0)
        self.mu, self.nu, self.eta = mu, nu, eta
        self.register_buffer("binary", torch.ones(bits, size))
        self.register_buffer("classifier", torch.zeros(bits, classes))

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        pairs = likelihood(batch.codes @ batch.known.codes.T / 2, batch.similar).mean()
        wrong = (batch.multi_hot - batch.codes.detach().sign() @ self.classifier).square().mean()
        return pairs + self.mu * wrong + self.nu * self.classifier.square().mean()

    @torch.no_grad()
    def between_epochs(self, known: Known) -> None:
        """Fit W and B to the training set.

        All images take part, since B has a code for each: one that no batch has held yet with a code of zeros and no
        label, as in the published codes (`KnownCodes` with unseen="zeros"; its "left out" will not do before that).

        Raises:
            ValueError: Not as many codes as images, or of another length.
            DataError: Labels of other classes.
        """
        bits, size = self.binary.shape
        if known.codes.shape != (size, bits):
            given = f"{len(known.codes)} known codes of {known.codes.shape[1]} bits"
            raise ValueError(f"{given}: expected {size} of {bits}; KnownCodes(unseen='zeros') has all from the start")
        labels = multi_hot(known.labels, self.classifier.shape[1])
        labels, codes = labels.T.to(self.binary), known.codes.T.to(self.binary)
        for _ in range(ROUNDS):
            gram = self.binary @ self.binary.T + self.nu / self.mu * torch.eye(len(codes)).to(codes)
            self.classifier.copy_(torch.linalg.solve(gram, self.binary @ labels.T))
            self._fit_codes(self.classifier @ labels + self.eta / self.mu * codes)

    def _fit_codes(self, wanted: Tensor) -> None:
        """One bit after the other, the best of its two values where the others stay."""
        for bit, weights in enumerate(self.classifier):
            others = torch.arange(len(self.binary), device=self.binary.device) != bit
            rest = self.binary[others].T @ (self.classifier[others] @ weights)
            self.binary[bit] = torch.where(wanted[bit] < rest, -1.0, 1.0)
