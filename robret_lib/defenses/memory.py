"""What a defense remembers from step to step, as buffers: a checkpoint holds it, and processes agree on it.

Nothing is remembered in evaluation mode: a loss can be looked at without changing the training.
"""

from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robret_lib.attacks.fields import check_count


class Progress(nn.Module):
    """How far a training is.

    Args:
        steps: Of the whole training.

    Raises:
        ValueError: No whole number of them, or none.
    """

    done: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_count("steps", steps)
        self.steps = steps
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def advance(self) -> Fraction:
        """Count a step; gives the share of the training before it, in [0, 1), or 1 where it goes on beyond its end.

        Exactly, so that a step at which an epoch begins is not counted to the one before it.
        """
        share = min(Fraction(1), Fraction(self.done.item(), self.steps))
        self.done += self.training
        return share


def check_schedule(objective: nn.Module, steps: int, done: int) -> None:
    """Raise a ValueError unless an objective remembers what it should at a step of a training.

    Args:
        objective: Whatever is minimized, such as one with a `Progress` inside.
        steps: Of the whole training.
        done: How many of them are.
    """
    for part in objective.modules():
        if isinstance(part, Progress) and part.steps != steps:
            raise ValueError(f"an objective of {part.steps} steps in a training of {steps}: expected as many")
        if isinstance(part, Progress) and part.done != done:
            raise ValueError(
                f"an objective that has made {part.done.item()} steps, in a training that has made {done}: "
                "make a new one"
            )


class LastLoss(nn.Module):
    """The loss of the step before.

    Args:
        initial: What it is before the first.
    """

    value: Tensor

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(initial, dtype=torch.float64))

    def note(self, loss: Tensor) -> None:
        """The loss of this step, a scalar; of several processes, their mean."""
        if not self.training:
            return
        mean = loss.detach().to(self.value)
        if dist.is_initialized():
            mean = mean.clone()
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.value.copy_(mean)
