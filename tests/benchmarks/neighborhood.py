"""Which part of the kept neighborhood matters: `python -m tests.benchmarks.neighborhood [--write]`.

A row changes what its name says. *Similarities* stand in the place of minus the distances, with a temperature of their
own, 0.1; *NCA* is the loss as it is known, of similarities and without a margin. The loss of the first row is the
softplus of (a margin of soft minima) / T, the minima with the same T; *soft margin* has 0.02 for the minima.
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

RECIPE = recipes.fashion_mnist("quick", defense="neighborhood", steps=430)
SEARCH = PGD(RECIPE.eps, RECIPE.inner_step, RECIPE.inner_steps, random_start=True)
DRAWN = DrawnRadius(SEARCH)


class Similarities(KeptNeighborhood):
    """Of cosines, as in neighborhood components of unit vectors (Wu et al. 2018), in place of distances."""

    def apart(self, queries: Tensor, references: Tensor) -> Tensor:
        return -queries @ references.T


class SoftMargin(KeptNeighborhood):
    """Nearest own less nearest other, each a soft minimum; with the temperature of the defense it is the defense."""

    NEAREST = 0.02

    def losses(self, queries: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        apart = self.apart(queries, references)
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        other = labels[:, None] != labels
        own, others = (self._nearest(apart, left_out) for left_out in (other | itself, ~other))
        return softplus((own - others + self.margin) / self.temperature)

    def _nearest(self, apart: Tensor, left_out: Tensor) -> Tensor:
        return -self.NEAREST * (-apart / self.NEAREST).masked_fill(left_out, -torch.inf).logsumexp(1)


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
    "three inner steps of half the radius": Row(changed(drawn(0.5, 3)), 750),
    "no margin": Row(changed(margin=0.0), STEPS),
    "margin 0.4": Row(changed(margin=0.4), STEPS),
    "similarities": Row(changed(kind=Similarities, temperature=0.1), STEPS),
    "NCA": Row(changed(kind=Similarities, temperature=0.1, margin=0.0), STEPS),
    "soft margin": Row(changed(kind=SoftMargin), STEPS),
    "temperature 0.025": Row(changed(temperature=0.025), STEPS),
    "temperature 0.1": Row(changed(temperature=0.1), STEPS),
    "AutoPGD inside": Row(changed(DrawnRadius(AUTO)), 415),  # a search of it has a forward pass more
    "falling learning rate": Row(changed(), STEPS, decay=0.5),
}
ABLATIONS = Ablations(sys.modules[__name__], RECIPE, ROWS, "What the kept neighborhood is made of")

if __name__ == "__main__":
    write_or_print(ABLATIONS.table, __file__, "which part of the kept neighborhood matters")
