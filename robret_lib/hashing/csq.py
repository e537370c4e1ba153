"""CSQ: every class has a code of its own, drawn before training, and each image is to have that of its class."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch
from robret_lib.hashing.centers import center_of_labels, hadamard_centers, random_centers


class CSQ(nn.Module):
    """Cross-entropy of each bit against the center of the labels, plus lambda times ``mean (|u| - 1)^2``.

    (Yuan et al., CVPR 2020.) Since ``(tanh f + 1) / 2`` is the logistic function of 2 f, the outputs are taken as they
    come, and no logarithm meets a zero.

    Args:
        classes, bits: Of the data and the codes; see `centers.hadamard_centers`.
        quantization: lambda; 1e-4 in CgAT and DeepHash-pytorch, 0.05 in SAAT.
        seed: Of random centers, and of the bits on which several labels are even.

    Raises:
        ValueError: An impossible number, or more classes than there are codes.
    """

    centers: Tensor
    undecided: Tensor

    def __init__(self, classes: int, bits: int, quantization: float = 1e-4, seed: int = 0) -> None:
        super().__init__()
        check_number("quantization", quantization, least=0)
        self.quantization, self.seed = quantization, seed
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("centers", hadamard_centers(classes, bits, generator))
        self.register_buffer("undecided", random_centers(1, bits, generator)[0])

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        wanted = center_of_labels(batch.labels, self.centers, self.undecided)
        logits = 2 * batch.sharpness * batch.outputs
        entropy = binary_cross_entropy_with_logits(logits, ((wanted + 1) / 2).to(logits))
        return entropy + self.quantization * (batch.codes.abs() - 1).square().mean()
