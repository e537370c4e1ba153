"""DPN: as CSQ, but a bit that is right by a margin is left alone."""

import torch
from torch import Tensor, nn

from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch
from robret_lib.hashing.centers import center_of_labels, check_one_each, each_once, random_centers


class DPN(nn.Module):
    """``mean [m - u c]_+`` with c the center of the labels (Fan et al., IJCAI 2020; SAAT, `DPN`).

    Args:
        classes, bits: Of the data and the codes; the centers are random, and no two the same (see `centers.each_once`).
        margin: m.
        seed: Of the centers.

    Raises:
        ValueError: An impossible number, or more classes than there are codes.
    """

    centers: Tensor
    undecided: Tensor

    def __init__(self, classes: int, bits: int, margin: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        check_one_each(classes, bits)
        check_number("margin", margin, above=0)
        self.margin, self.seed = margin, seed
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("centers", each_once(random_centers(classes, bits, generator), generator))
        self.register_buffer("undecided", random_centers(1, bits, generator)[0])

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        wanted = center_of_labels(batch.labels, self.centers, self.undecided)
        return (self.margin - batch.codes * wanted).relu().mean()
