"""Which part of the kept neighborhood matters: `python -m tests.benchmarks.neighborhood [--write]`.

A row changes what its name says; that of the soft margin has a temperature of its own, 0.02, and a
margin of 0.2.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from robret_lib import recipes
from robret_lib.attacks import PGD, AutoPGD
from robret_lib.defenses import DrawnRadius, KeptNeighborhood
from tests.benchmarks.ablations import Ablations, Row
from tests.benchmarks.measuring import write_or_print

RECIPE = recipes.fashion_mnist("quick", defense="neighborhood", steps=750)
SEARCH = PGD(RECIPE.eps, RECIPE.inner_step, RECIPE.inner_steps, random_start=True)
DRAWN = DrawnRadius(SEARCH)


class SoftMargin(KeptNeighborhood):
    """The soft margin of two distances in place of neighborhood components: nearest own less nearest other.

    Cut off where a triplet loss is, by a softplus, so that the attack has a slope where all is well.
    """

    MARGIN = 0.2

    def losses(self, queries: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        distances = torch.cdist(queries, references, compute_mode="donot_use_mm_for_euclid_dist")
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        same = (labels[:, None] == labels) & ~itself
        other = labels[:, None] != labels
        nearest_own, nearest_other = (
            -self.temperature * (-distances / self.temperature).masked_fill(~chosen, -torch.inf).logsumexp(1)
            for chosen in (same, other)
        )
        return softplus(nearest_own - nearest_other + self.MARGIN, beta=20)


def changed(
    search: PGD | DrawnRadius = DRAWN, kind: type[KeptNeighborhood] = KeptNeighborhood, **settings: float
) -> Callable[[int], KeptNeighborhood]:
    """The defense with another inner attack, of another class or with other settings."""
    given = {"temperature": RECIPE.temperature, "clean_weight": RECIPE.clean_weight, "ramp": RECIPE.ramp}
    return lambda steps: kind(search, steps, **given | settings)


def drawn(share: float, inner_steps: int) -> DrawnRadius:
    """So many steps of a share of the radius."""
    return DrawnRadius(replace(SEARCH, step=share * RECIPE.eps, steps=inner_steps))


AUTO = AutoPGD(RECIPE.eps, RECIPE.inner_steps, random_start=True)
STEPS = RECIPE.steps

ROWS = {
    "kept neighborhood": Row(changed(), STEPS),
    "no ramp": Row(changed(ramp=0.0), STEPS),
    "whole radius": Row(changed(SEARCH), STEPS),
    "no ramp, whole radius": Row(changed(SEARCH, ramp=0.0), STEPS),
    "no clean term": Row(changed(clean_weight=0.0), STEPS),
    "twice the clean term": Row(changed(clean_weight=2 * RECIPE.clean_weight), STEPS),
    "neither ramp nor drawn radius nor clean term": Row(changed(SEARCH, ramp=0.0, clean_weight=0.0), STEPS),
    "no random start": Row(changed(DrawnRadius(replace(SEARCH, random_start=False))), STEPS),
    "one inner step": Row(changed(drawn(1.0, 1)), 1170),
    "seven inner steps of a quarter of the radius": Row(changed(drawn(0.25, 7)), 430),
    "temperature 0.05": Row(changed(temperature=0.05), STEPS),
    "temperature 0.2": Row(changed(temperature=0.2), STEPS),
    "AutoPGD inside": Row(changed(DrawnRadius(AUTO)), 705),  # a search of it has a forward pass more
    "soft margin for NCA": Row(changed(kind=SoftMargin, temperature=0.02), STEPS),
    "falling learning rate": Row(changed(), STEPS, decay=0.5),
}
ABLATIONS = Ablations(sys.modules[__name__], RECIPE, ROWS, "What the kept neighborhood is made of")

if __name__ == "__main__":
    write_or_print(ABLATIONS.table, __file__, "which part of the kept neighborhood matters")
