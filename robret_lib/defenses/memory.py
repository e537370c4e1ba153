"""What a defense remembers from step to step, as buffers: a checkpoint holds it, and processes agree on it.

Nothing is remembered in evaluation mode: a loss can be looked at without changing the training.
"""

from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robret_lib.fields import check_count


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

    def begin(self, steps: int, done: int) -> None:
        """Called by `training.train` before its first step.

        Args:
            steps: Of the training.
            done: How many of them were made before, by the checkpoint.

        Raises:
            ValueError: This one was told of another number of steps, or has counted another.
        """
        if self.steps != steps:
            raise ValueError(f"an objective of {self.steps} steps in a training of {steps}: expected as many")
        if self.done != done:
            own = self.done.item()
            raise ValueError(f"an objective that has made {own} steps, in a training of {done} so far: make a new one")

    def advance(self) -> Fraction:
        """Count a step; gives the share of the training before it, in [0, 1), or 1 where it goes on beyond its end.

        Exactly, so that a step at which an epoch begins is not counted to the one before it.
        """
        share = min(Fraction(1), Fraction(self.done.item(), self.steps))
        self.done += self.training
        return share


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
