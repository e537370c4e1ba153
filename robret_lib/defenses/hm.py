"""Hardness manipulation: make a triplet as hard as wanted, and no harder."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib import mining
from robret_lib.attacks import Search
from robret_lib.defenses.inner import AttackedTriplets
from robret_lib.defenses.memory import LastLoss
from robret_lib.fields import check_number
from robret_lib.mining import Mode, Sampler
from robret_lib.models import Distance
from robret_lib.objectives import MARGIN, TripletObjective


@dataclass(frozen=True)
class Benign:
    """H_D is the hardness of clean triplets that another sampler draws for the same anchors.

    Args:
        sampler: One of `mining`'s.
        boost: g_B adds ``boost (1 - l)``, which grows as the loss falls; published with 0.1, and 0 leaves it out.

    Raises:
        ValueError: A boost that is no finite number.
    """

    sampler: Sampler = mining.semihard
    boost: float = 0.0

    def __post_init__(self) -> None:
        check_number("boost", self.boost)


@dataclass(frozen=True)
class Constant:
    """H_D is one number. With 0 the network collapses, with -margin / 2 or -margin it need not.

    Args:
        hardness: The number.

    Raises:
        ValueError: It is not finite.
    """

    hardness: float

    def __post_init__(self) -> None:
        check_number("hardness", self.hardness)


@dataclass(frozen=True)
class Gradual:
    """H_D = ``-margin l^power``, where l in [0, 1] is the loss of the step before, cut off at the margin.

    The adversary grows as the network learns. g_LGA (linear gradual adversary) has power 1, g_2 and g_1/2 the other
    two.

    Args:
        power: 1, 2 or 1/2 in the paper.
        sampler: Is drawn from and thrown away in mode "reference" (RobRank, where it is part of the method's name).

    Raises:
        ValueError: A power that is not above zero.
    """

    power: float = 1.0
    sampler: Sampler = mining.semihard

    def __post_init__(self) -> None:
        check_number("power", self.power, above=0)


Destination = Benign | Constant | Gradual
"""What hardness the adversary makes for."""


class HardnessManipulation(AttackedTriplets):
    """HM[H_S, H_D]: the triplet loss of (a~, p~, n~), moved until their hardness is H_D.

    Hardness is ``H = d(a, p) - d(a, n)``. The inner attack minimizes ``[H_D - H(a~, p~, n~)]_+^2`` over all three
    images: while a triplet is too easy a step by the sign of the gradient makes it harder as fast as it can, and where
    it is hard enough the gradient is zero and it stays. With ``invariance`` the outer loss has the term of intra-class
    structure (ICS) as well: ``[d(a, a~) - d(a, p)]_+``, with a and p clean. (Zhou and Patel, "Enhancing Adversarial
    Robustness for Deep Metric Learning", CVPR 2022, section 3; RobRank, `hm_training_step`.)

    In mode "reference" nothing is attacked where the destination's sampler is that of the source, whatever else the
    destination says, as in the published code; and only distance "N" is known. The published code also ends the attack
    where the loss of the batch stands still; that saves time and changes nothing that could be seen. And each of its
    processes goes by the loss of its own, where ours take the mean of all.

    Args:
        search: The inner attack; published with `PGD`, in 8 (paper) or 32 (code) steps.
        sampler: H_S, of the triplets that are attacked; published as `mining.softhard`.
        destination: H_D, see `Destination`.
        invariance: lambda of ICS; 0.5 in the paper (0.05 for SOP), and 0 leaves it out.
        distance, mode: As in `AttackedTriplets`.

    Raises:
        TypeError: As `AttackedTriplets`; a destination that is none.
        ValueError: As `AttackedTriplets`; a distance other than "N" in mode "reference"; an invariance below zero.
    """

    published_sampling_margin = MARGIN

    def __init__(
        self,
        search: Search,
        sampler: Sampler = mining.softhard,
        destination: Destination = Gradual(),  # noqa: B008
        invariance: float = 0.0,
        distance: Distance = "N",
        mode: Mode = "fixed",
    ) -> None:
        super().__init__(search, sampler, distance, mode)
        if mode == "reference" and distance != "N":
            raise ValueError(f'distance={distance!r}: the published code knows "N" alone; use mode="fixed"')
        if not isinstance(destination, Destination):
            raise TypeError(f"destination={destination!r}: expected a Benign, Constant or Gradual")
        check_number("invariance", invariance, least=0)
        self.destination, self.invariance = destination, invariance
        named = None if isinstance(destination, Constant) else destination.sampler
        self.destined = None if named is None else TripletObjective(named, distance, mode)
        self.left_alone = mode == "reference" and named is sampler
        self.last_loss = LastLoss(2.0)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        clean, triplets = self.clean_triplets(model, images, labels, generator)
        wanted = self.wanted_hardness(clean, labels, generator)
        moved = images[torch.cat(triplets)]
        if not self.left_alone:
            moved = self.search(model, moved, self._too_easy(wanted), generator)
        anchor, positive, negative = model(moved).chunk(3)
        loss = self.loss(anchor, positive, negative)
        self.last_loss.note(loss)
        if not self.invariance:
            return loss
        clean_anchor, clean_positive = model(images[torch.cat(triplets[:2])]).chunk(2)
        too_far = self.apart(clean_anchor, anchor) - self.apart(clean_anchor, clean_positive)
        return loss + self.invariance * too_far.relu().mean()

    def wanted_hardness(self, clean: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """H_D, one for each triplet ``[P]`` or one for all ``[]``, given the clean embeddings ``[2P, D]``."""
        margin, destination = MARGIN[self.distance], self.destination
        level = self.last_loss.value.to(clean).clamp(max=margin) / margin
        if isinstance(destination, Constant):
            return clean.new_full((), destination.hardness)
        if isinstance(destination, Gradual):
            if self.mode == "reference":
                self.destined.triplets(clean, labels, generator)
            return -margin * level**destination.power
        triplets = self.destined.triplets(clean, labels, generator)
        return self.hardness(*(clean[role] for role in triplets)) + destination.boost * (1 - level)

    def _too_easy(self, wanted: Tensor) -> Callable[[Tensor], Tensor]:
        def loss(embeddings: Tensor) -> Tensor:
            return (wanted - self.hardness(*embeddings.chunk(3))).relu().square().repeat(3)

        return loss
