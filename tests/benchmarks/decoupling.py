"""Which part of CA-TRIDE matters: `python -m tests.benchmarks.decoupling [--write]`.

*All three at once*: anchors, positives and negatives move together by the objective of the candidates. *Blind to
collapse*: the attacks go on where the batch looks collapsed, those on anchors with their full weight. *No stairs*: the
length of the inner steps and the margin of the sampler are from the first step on what they are at the end.
"""

import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robret_lib import recipes
from robret_lib.attacks import PGD
from robret_lib.attacks.search import Loss
from robret_lib.defenses import CollapseAwareTriplets
from robret_lib.defenses.ca_tride import AnchorPerturbation, CandidatePerturbation, until_enough
from robret_lib.defenses.collapse import collapseness, smallest_half
from robret_lib.mining import Triplets
from tests.benchmarks.ablations import Ablations, Row
from tests.benchmarks.measuring import write_or_print

RECIPE = recipes.fashion_mnist("quick", defense="ca_tride", steps=480)
SEARCH = PGD(RECIPE.eps, RECIPE.inner_step, RECIPE.inner_steps)


class CandidatesAlone(CollapseAwareTriplets):
    def perturbation(self, step: int, *batch: Any) -> tuple[Loss, slice]:
        return super().perturbation(0, *batch)


class AnchorsAlone(CollapseAwareTriplets):
    def perturbation(self, step: int, *batch: Any) -> tuple[Loss, slice]:
        return super().perturbation(1, *batch)


class AllAtOnce(CollapseAwareTriplets):
    """All three images move until the batch looks collapsed."""

    def perturbation(self, step: int, *batch: Any) -> tuple[Loss, slice]:
        def loss(embeddings: Tensor) -> Tensor:
            anchor, positive, negative = embeddings.chunk(3)
            apart = self.apart(positive, anchor), self.apart(anchor, negative)
            healthy = (-collapseness(*apart, self.sharpness)).relu()
            return until_enough(healthy).expand(len(embeddings))

        return loss, slice(0, 3)


class BlindCandidates(CandidatePerturbation):
    def __call__(self, embeddings: Tensor) -> Tensor:
        positive, negative = embeddings.chunk(2)
        apart = self.objective.apart(positive, self.anchor), self.objective.apart(self.anchor, negative)
        return -collapseness(*apart, self.objective.sharpness).expand(len(embeddings))


class BlindAnchors(AnchorPerturbation):
    def __call__(self, embeddings: Tensor) -> Tensor:
        d_an, shift = self.objective.apart(embeddings, self.negative_and_origin)
        return (smallest_half(d_an) - shift.mean()).relu().expand(len(embeddings))


class Blind(CollapseAwareTriplets):
    """The attacks go on where the batch looks collapsed."""

    def perturbation(
        self, step: int, clean: Tensor, triplets: Triplets, generator: torch.Generator
    ) -> tuple[Loss, slice]:
        if step % 2 == 0:
            return BlindCandidates(self, clean, triplets), slice(1, 3)
        return BlindAnchors(self, clean, triplets, generator), slice(0, 1)


class NoOuterTerm(CollapseAwareTriplets):
    def outer(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return self.loss(anchor, positive, negative)


class NoStairs(CollapseAwareTriplets):
    """Steps and sampling margin are from the first step on what they are at the end."""

    def stair(self, done: Fraction) -> float:
        return 1.0


def of(
    kind: type[CollapseAwareTriplets], sharpness: float = RECIPE.sharpness
) -> Callable[[int], CollapseAwareTriplets]:
    return lambda steps: kind(SEARCH, steps, sharpness=sharpness)


STEPS = RECIPE.steps

ROWS = {  # a step that moves candidates costs 1.7 times one that moves anchors, one that moves all 2.4 times
    "CA-TRIDE": Row(of(CollapseAwareTriplets), STEPS),
    "candidates alone": Row(of(CandidatesAlone), 380),
    "anchors alone": Row(of(AnchorsAlone), 655),
    "all three at once": Row(of(AllAtOnce), 276),
    "blind to collapse": Row(of(Blind), STEPS),
    "no outer term": Row(of(NoOuterTerm), STEPS),
    "no stairs": Row(of(NoStairs), STEPS),
    "sharpness 0": Row(of(CollapseAwareTriplets, 0.0), STEPS),
    "sharpness 2": Row(of(CollapseAwareTriplets, 2.0), STEPS),
    "sharpness 50": Row(of(CollapseAwareTriplets, 50.0), STEPS),
}
ABLATIONS = Ablations(sys.modules[__name__], RECIPE, ROWS, "What CA-TRIDE is made of")

if __name__ == "__main__":
    write_or_print(ABLATIONS.table, __file__, "which part of CA-TRIDE matters")
