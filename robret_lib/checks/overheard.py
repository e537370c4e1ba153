"""What a loss was at each step of a search, whatever the search."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robret_lib.attacks import Attack, Benign, Plan


@dataclass(frozen=True, eq=False)
class Overheard:
    """An attack whose losses are written down while it is searched for.

    Args:
        attack: The same to a search as this one.
    """

    attack: Attack
    batches: list[list[Tensor]] = field(default_factory=list, init=False)

    @property
    def rows(self) -> int:
        return self.attack.rows

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor | None:
        return self.attack.targets(benign, generator)

    def plan(self, benign: Benign, targets: Tensor | None) -> Plan:
        plan, looks = self.attack.plan(benign, targets), []
        self.batches.append(looks)

        def loss(embeddings: Tensor) -> Tensor:
            losses = plan.loss(embeddings)
            looks.append(losses.detach())
            return losses

        return plan._replace(loss=loss)

    @property
    def losses(self) -> Tensor | None:
        """``[looks, B]`` of all images, look after look.

        None where they were not all looked at equally often, or not at all: by searches that see values only, or
        answers, or a surrogate.
        """
        often = {len(looks) for looks in self.batches}
        if len(often) != 1 or 0 in often:
            return None
        return torch.cat([torch.stack(looks) for looks in self.batches], dim=1).cpu()
