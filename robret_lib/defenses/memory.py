"""What a defense remembers from step to step, as buffers: a checkpoint holds it, and processes agree on it."""

from fractions import Fraction

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Progress(nn.Module):
    """How far a training is.

    Args:
        steps: Of the whole training.
    """

    done: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps}: expected at least one")
        self.steps = steps
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def advance(self) -> Fraction:
        """Count a step; gives the share of the training before it, in [0, 1), or 1 where it goes on beyond its end.

        Exactly, so that a step at which an epoch begins is not counted to the one before it.
        """
        share = min(Fraction(1), Fraction(self.done.item(), self.steps))
        self.done += 1
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
        mean = loss.detach().to(self.value)
        if dist.is_initialized():
            mean = mean.clone()
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self.value.copy_(mean)
