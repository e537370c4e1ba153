"""HashNet's continuation: a tanh that grows sharper while one trains, towards the sign that a search engine takes."""

from collections.abc import Callable
from math import sqrt

Continuation = Callable[[int, int], float]
"""Sharpness beta, from the number of steps and of passes before this one."""


def constant(step: int, epoch: int) -> float:
    """No continuation: ``tanh(f)``."""
    return 1.0


def by_step(step: int, epoch: int) -> float:
    """``sqrt(1 + 0.005 t)``, t the step, refreshed every 200 (SAAT, and the fully connected nets of CgAT's kit)."""
    return sqrt(1 + 0.005 * (step // 200 * 200))


def by_epoch(step: int, epoch: int) -> float:
    """``sqrt(floor(epoch / 20) + 1)`` (DeepHash-pytorch)."""
    return sqrt(epoch // 20 + 1)
