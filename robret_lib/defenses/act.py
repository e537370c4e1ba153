"""Anti-collapse triplets: let an attacker pull positive and negative together, and learn to tell them apart again."""

import torch
from torch import Tensor, nn

from robret_lib import mining
from robret_lib.attacks import Search
from robret_lib.attacks.search.values import ValueSearch
from robret_lib.distances import row_distance
from robret_lib.mining import Mode, Sampler
from robret_lib.models import Distance, embed
from robret_lib.objectives import OFFSET, TripletObjective


class AntiCollapseTriplets(TripletObjective):
    """ACT: the triplet loss of (a, p~, n~), where p~ and n~ were moved until ``d(p~, n~)`` is small.

    The triplets are drawn from the clean images. The inner attack minimizes the distance of each positive to its
    negative over both images; the anchor stays clean, since a perturbed one would teach the wrong direction. Nothing
    but the distance is asked for, and nothing ends the attack early. (Zhou et al., "Adversarial Attack and Defense in
    Deep Ranking", TPAMI 2024; RobRank, `pnp_training_step` and `PositiveNegativePerplexing.pncollapse`.)

    Args:
        search: The inner attack, by gradients, since the loss of a positive depends on its negative as well; published
            as `PGD` with 32 steps, radius 77/255 and step 3/255 on Fashion-MNIST.
        sampler, distance, mode: As in `TripletObjective`.

    Raises:
        TypeError: A search by values, such as `NES`, which moves one image at a time.
    """

    def __init__(
        self, search: Search, sampler: Sampler = mining.random, distance: Distance = "N", mode: Mode = "fixed"
    ) -> None:
        super().__init__(sampler, distance, mode)
        inner = search
        while hasattr(inner, "search"):  # of `Averaged`, or `Transfer`
            inner = inner.search
        if isinstance(inner, ValueSearch):
            raise TypeError(f"ACT with a {type(inner).__name__}: expected a search by gradients, PGD or AutoPGD")
        self.search = search

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        anchor, positive, negative = self.triplets(embed(model, images), labels, generator)
        moved = self.search(model, images[torch.cat([positive, negative])], self._apart, generator)
        return self.loss(*model(torch.cat([images[anchor], moved])).chunk(3))

    def _apart(self, embeddings: Tensor) -> Tensor:
        """For each of P positives, and once more for the P negatives that follow them, the distance of the two."""
        return row_distance(*embeddings.chunk(2), self.distance, OFFSET).repeat(2)
