"""Collapse-aware triplet decoupling: attack candidates and anchor in turn, and stop before the network collapses."""

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.attacks.search import Loss
from robret_lib.defenses.collapse import collapseness, smallest_half
from robret_lib.defenses.inner import AttackedTriplets, a_hair_aside
from robret_lib.defenses.memory import Progress
from robret_lib.fields import check_count, check_number
from robret_lib.mining import Mode
from robret_lib.models import Distance
from robret_lib.objectives import MARGIN

ENOUGH = 1e-5
"""Below this loss an attack ends."""


def until_enough(loss: Tensor) -> Tensor:
    """The loss, or a constant once it is so small that the attack ends: images without a slope stay."""
    return torch.where(loss < ENOUGH, loss.detach(), loss)


class CandidatePerturbation:
    """CAP makes the batch look as if it had begun to collapse, by its positives and negatives.

    Here and for the anchors, d(p, a) and d(a, n) are written as in the published code: `OFFSET` makes d(a, p) another
    number, and decides where an image goes that is its own partner.

    Args:
        objective: Has the distance and the sharpness.
        clean: Embeddings ``[2P, D]`` of the batch, without gradients.
        triplets: Of the batch.
    """

    def __init__(self, objective: "CollapseAwareTriplets", clean: Tensor, triplets: mining.Triplets) -> None:
        self.objective, self.anchor = objective, clean[triplets.anchor]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """The same loss for each of the embeddings ``[2P, D]`` of what moves."""
        positive, negative = embeddings.chunk(2)
        d_ap, d_an = self.objective.apart(positive, self.anchor), self.objective.apart(self.anchor, negative)
        healthy = (-collapseness(d_ap, d_an, self.objective.sharpness)).relu()
        return until_enough(healthy).expand(len(embeddings))


class AnchorPerturbation:
    """ANP drives the anchors to their nearer negatives, as long as the batch does not look collapsed.

    Args:
        objective, clean, triplets: As in `CandidatePerturbation`.
        generator: Of the points from which the ways from home are measured.
    """

    def __init__(
        self, objective: "CollapseAwareTriplets", clean: Tensor, triplets: mining.Triplets, generator: torch.Generator
    ) -> None:
        self.objective = objective
        anchor, self.positive, negative = (clean[role] for role in triplets)
        origin = a_hair_aside(anchor, generator) if objective.mode == "fixed" else anchor
        self.negative_and_origin = torch.stack([negative, origin])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """The same loss for each of the embeddings ``[P, D]`` of what moves."""
        d_ap = self.objective.apart(self.positive, embeddings)
        d_an, shift = self.objective.apart(embeddings, self.negative_and_origin)
        collapsed = collapseness(d_ap, d_an, self.objective.sharpness)
        to_negatives = smallest_half(d_an) - shift.mean()
        weight = collapsed.detach().clamp(max=0).exp()
        return until_enough(collapsed.relu() + weight * to_negatives.relu()).expand(len(embeddings))


class CollapseAwareTriplets(AttackedTriplets):
    """CA-TRIDE: the triplet loss of (a, p~, n~) in one step of training and of (a~, p, n) in the next, and so on.

    The candidate perturbation (CAP) moves p and n until the collapseness C of the batch is no longer negative, and no
    further: it minimizes ``[-C]_+``. The anchor perturbation (ANP) moves a towards the nearer half of the negatives and
    away from where it was, and back where C is positive: it minimizes
    ``[C]_+ + exp(-[-C]_+) [m(d_an) - mean d(a~, a)]_+``, with m the mean of the smaller half. See
    `collapse.collapseness`. (Tian et al., "Collapse-Aware Triplet Decoupling for Adversarially Robust Image Retrieval",
    ICML 2024.)

    Known from the public code alone, which does not run as it was released (github.com/michaeltian108/CA-TRIDE,
    `defenses/pnp.py`, `losses/miner.py`, `losses/triplet.py`), and not from the paper, whose full text was not at hand:
    the 16 steps; that their length rises from 0 in the first epoch towards the full one, while the radius stays; the
    margin of the sampler, which falls towards a quarter; the outer term ``[m(d_ap) - m(d_an) + 0.04]_+ / 2``; and the
    factor ``exp(-[-C]_+)``. The attack ends below a loss of 1e-5.

    Args:
        search: The inner attack towards which training goes; published as ``PGD(8 / 255, 1 / 255, steps=16)``.
        steps: Of the whole training.
        epochs: In how many equal stairs step length and sampling margin change; published as 75 passes over the data.
            In the first there is no attack, in the last it has (epochs - 1) / epochs of its full step.
        sharpness: lambda of the collapseness; published as 10 for CUB, 9.5 for CARS and 2 for SOP.
        distance: As in `AttackedTriplets`.
        mode: In mode "reference" the anchor perturbation measures the way from home from home itself, where it has
            hardly a slope; in "fixed", see `inner.a_hair_aside`.

    Raises:
        TypeError: A search that is no `PGD`: the length of its steps has to rise.
        ValueError: No steps; fewer than two epochs; a sharpness below zero; a distance other than "N" in mode
            "reference".
    """

    def __init__(
        self,
        search: PGD,
        steps: int,
        epochs: int = 75,
        sharpness: float = 10.0,
        distance: Distance = "N",
        mode: Mode = "fixed",
    ) -> None:
        if not isinstance(search, PGD):
            raise TypeError(f"CA-TRIDE with {search!r}: expected PGD(eps, step, steps), whose step can rise")
        check_count("epochs", epochs, least=2)
        check_number("sharpness", sharpness, least=0)
        super().__init__(search, mining.semihard, distance, mode)
        if mode == "reference" and distance != "N":
            raise ValueError(
                f'distance={distance!r}: the margins of the published code are those of "N"; use mode="fixed"'
            )
        self.epochs, self.sharpness = epochs, sharpness
        self.progress = Progress(steps)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        step, share = self.progress.done.item(), self.stair(self.progress.advance())
        search = replace(self.search, step=share * self.search.step) if share else replace(self.search, eps=0.0)
        margin = MARGIN[self.distance] * (1 - share / 2) ** 2
        clean, triplets = self.clean_triplets(model, images, labels, generator, margin)
        shown = [images[role] for role in triplets]
        loss, moved = self.perturbation(step, clean, triplets, generator)
        shown[moved] = search(model, torch.cat(shown[moved]), loss, generator).chunk(len(shown[moved]))
        return self.outer(*model(torch.cat(shown)).chunk(3))

    def perturbation(
        self, step: int, clean: Tensor, triplets: mining.Triplets, generator: torch.Generator
    ) -> tuple[Loss, slice]:
        """What an attack minimizes in a step of the training, counted from 0, and which roles it moves."""
        if step % 2 == 0:
            return CandidatePerturbation(self, clean, triplets), slice(1, 3)
        return AnchorPerturbation(self, clean, triplets, generator), slice(0, 1)

    def stair(self, done: Fraction) -> float:
        """On which stair a training is of which a share is done, as a share of the whole staircase."""
        return int(done * self.epochs) / self.epochs

    def outer(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of what is shown, a scalar, of embeddings ``[P, D]``."""
        d_ap, d_an = self.apart(anchor, positive), self.apart(anchor, negative)
        nearer_halves = smallest_half(d_ap) - smallest_half(d_an) + MARGIN[self.distance] / 5
        return self.loss(anchor, positive, negative) + nearer_halves.relu() / 2
