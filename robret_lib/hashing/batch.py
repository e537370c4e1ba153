"""What a hashing loss looks at: a batch of relaxed codes, and those of the whole training set as last seen."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from robret_lib.data import relevance


class Known(NamedTuple):
    """The training set as last seen, the rows of the batch filled in, without gradients.

    Args:
        codes: Relaxed codes ``[N, bits]``, U in the papers.
        labels: int ``[N]`` or multi-hot ``[N, C]``.
    """

    codes: Tensor
    labels: Tensor


class Batch:
    """A batch of n images.

    Args:
        outputs: What the network says, f, ``[n, bits]``.
        labels: int ``[n]`` or multi-hot ``[n, C]``.
        known: The training set.
        sharpness: beta in ``u = tanh(beta f)``.
    """

    def __init__(self, outputs: Tensor, labels: Tensor, known: Known, sharpness: float = 1.0) -> None:
        self.outputs, self.labels, self.known, self.sharpness = outputs, labels, known, sharpness

    @cached_property
    def codes(self) -> Tensor:
        """Relaxed codes u ``[n, bits]`` in (-1, 1)."""
        return torch.tanh(self.sharpness * self.outputs)

    @property
    def bits(self) -> int:
        return self.outputs.shape[1]

    @cached_property
    def similar(self) -> Tensor:
        """S ``[n, N]``: 1.0 where two images share a label, else 0.0."""
        return relevance(self.labels, self.known.labels).to(self.outputs)

    @cached_property
    def similar_within(self) -> Tensor:
        """S ``[n, n]`` among the batch."""
        return relevance(self.labels, self.labels).to(self.outputs)

    @cached_property
    def multi_hot(self) -> Tensor:
        """Labels ``[n, C]`` as zeros and ones in the type of the outputs.

        Raises:
            ValueError: Labels are int, and how many classes there are is not known.
        """
        if self.labels.ndim == 1:
            raise ValueError("labels int [n]: expected multi-hot [n, C]; see torch.nn.functional.one_hot")
        return self.labels.to(self.outputs)


def balanced(similar: Tensor) -> Tensor:
    """Weights of pairs that give similar and dissimilar ones the same say: all pairs over those of the kind.

    Where there are none of a kind, its weight, which no pair has, is 0.
    """
    ones = similar.sum()
    positive, negative = (similar.numel() / count.clamp(min=1) for count in (ones, similar.numel() - ones))
    return torch.where(similar > 0, positive, negative)


def likelihood(logits: Tensor, similar: Tensor) -> Tensor:
    """``log(1 + e^t) - S t`` of each pair, safe for large t."""
    return torch.nn.functional.softplus(logits) - similar * logits


def quantization(codes: Tensor) -> Tensor:
    """``(u - sign u)^2`` of each bit."""
    return (codes - codes.detach().sign()).square()
