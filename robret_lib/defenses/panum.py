"""One role of every triplet attacked, with the other two as fixed points: no image depends on its batch."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robret_lib import mining
from robret_lib.attacks import Search
from robret_lib.defenses.inner import AttackedTriplets
from robret_lib.fields import check_share
from robret_lib.mining import Mode, Sampler
from robret_lib.models import Distance
from robret_lib.objectives import MARGIN, triplet_loss

Role = Literal["anchor", "positive", "negative"]


class PanumTriplets(AttackedTriplets):
    """Panum's: the triplet loss where one role was moved against the fixed clean embeddings of the other two.

    The positive is driven away from its anchor, the negative towards it, or the anchor is moved until it is further
    from the positive than from the negative. (Panum et al., "Exploring Adversarial Robustness of Deep Metric Learning",
    2021; the anonymous public code of that work.) There the triplets come from the distance-weighted miner of
    pytorch-metric-learning with cutoffs at 0.5 and 1.4, one for each image of the batch; here they come from a sampler
    of `mining`, one for each pair. The loss is a mean over the triplets that have one, as there. Its second loss, the
    contrastive one, is left out.

    Args:
        search: The inner attack; published as ``PGD(0.01, 0.004, steps=5, random_start=True)``, the step two fifths of
            the radius.
        sampler, distance: As in `AttackedTriplets`.
        mode: "fixed": the published miner is not reproduced.
        role: Which one is moved; "positive" as published.
        attack_rate: In which share of the triplets, drawn anew in every step.

    Raises:
        TypeError: As `AttackedTriplets`.
        ValueError: As `AttackedTriplets`; mode "reference"; another role; a rate that is no share.
    """

    published_sampling_margin = MARGIN

    def __init__(
        self,
        search: Search,
        sampler: Sampler = mining.distance,
        distance: Distance = "N",
        mode: Mode = "fixed",
        role: Role = "positive",
        attack_rate: float = 1.0,
    ) -> None:
        super().__init__(search, sampler, distance, mode)
        if mode == "reference":
            raise ValueError('mode="reference": expected "fixed", the published miner of Panum\'s is not reproduced')
        if role not in get_args(Role):
            raise ValueError(f"role={role!r}: expected one of {get_args(Role)}")
        check_share("attack_rate", attack_rate)
        self.role, self.attack_rate = role, attack_rate

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        clean, triplets = self.clean_triplets(model, images, labels, generator)
        shown = {name: images[at] for name, at in triplets._asdict().items()}
        chosen = self._chosen(len(triplets.anchor), generator, images.device)
        fixed = {name: clean[at[chosen]] for name, at in triplets._asdict().items()}

        def loss(embeddings: Tensor) -> Tensor:
            return -self._reached(**fixed | {self.role: embeddings})

        if len(chosen):
            moved = self.search(model, shown[self.role][chosen], loss, generator)
            shown[self.role] = shown[self.role].index_copy(0, chosen, moved)
        return self.loss(*model(torch.cat([shown[name] for name in triplets._fields])).chunk(3))

    def loss(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Triplet loss, a scalar, of embeddings ``[P, D]``: the mean of those above zero; zero if none is."""
        losses = triplet_loss(anchor, positive, negative, MARGIN[self.distance], self.distance)
        return losses.sum() / (losses > 0).sum().clamp(min=1)

    def _chosen(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Which of the triplets are attacked."""
        if self.attack_rate == 1:
            return torch.arange(count, device=device)
        drawn = torch.rand(count, generator=generator, device=device)
        return (drawn < self.attack_rate).nonzero()[:, 0]

    def _reached(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """What the attack on the role makes large ``[P]``."""
        if self.role == "positive":
            return self.apart(anchor, positive)
        if self.role == "negative":
            return -self.apart(anchor, negative)
        return self.hardness(anchor, positive, negative)
