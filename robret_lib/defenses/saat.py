"""Semantic-aware adversarial training: center-guided, with the mainstay code for a center."""

from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.defenses.cgat import CenterGuided
from robret_lib.hashing import HashObjective


class MainstayGuided(CenterGuided):
    """SAAT: `CenterGuided` by the mainstay code, where codes that share more labels count more.

    How alike labels are is the cosine of their vectors; of single labels, the mainstay code is the center code. And
    attacked codes shall be near binary ones. (Yuan et al., "Semantic-Aware Adversarial Training for Reliable Deep
    Hashing Retrieval", IEEE TIFS 2023; the authors' code.)

    Args:
        search, clean, settings: See `CenterGuided`. In mode "reference" a bit on which there is a draw is 0; an image
            without a label has the negative of the mean code in both. (In the authors' code the batch's own codes are
            binary in the outer loss; here they are relaxed in "reference".)
        quantization: 1e-4 as published.
    """

    def __init__(self, search: Search, clean: HashObjective, *, quantization: float = 1e-4, **settings: object) -> None:
        super().__init__(search, clean, "cosine", quantization=quantization, **settings)

    def has_both_sides(self, shared: Tensor) -> Tensor:
        """Not asked for: where one side is empty, the other decides."""
        return shared.new_ones(len(shared), 1)
