"""Random draws of a search by values: every image has its own, so that batches do not matter."""

import numpy as np
import torch
from torch import Tensor


def seeds_for(count: int, generator: torch.Generator | None) -> Tensor:
    """A seed for each of ``count`` images, int64, drawn one after the other."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).cpu()


class Draws:
    """Random numbers for A images, each from its own generator, in the type and on the device of the images.

    Args:
        seeds: int64 ``[A]``.
        images: float ``[A, C, H, W]``.
    """

    def __init__(self, seeds: Tensor, images: Tensor) -> None:
        self.generators = [np.random.default_rng(seed) for seed in seeds.tolist()]
        self.like = images

    def uniform(self, *shape: int) -> Tensor:
        """``[A, *shape]`` between 0 and 1."""
        return self._joined([g.random(shape, np.float32) for g in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """``[A, *shape]`` of mean 0 and variance 1."""
        return self._joined([g.standard_normal(shape, np.float32) for g in self.generators])

    def signs(self, *shape: int) -> Tensor:
        """``[A, *shape]`` of -1 and 1."""
        return 2 * self._joined([g.integers(0, 2, shape, np.int8) for g in self.generators]) - 1

    def beta(self, a: Tensor, b: Tensor, size: int) -> Tensor:
        """``[A, size, *]`` from Beta(a, b), float64, for parameters ``[A, *]``."""
        pairs = zip(self.generators, a.cpu().numpy(), b.cpu().numpy(), strict=True)
        drawn = [g.beta(some, others, (size, *some.shape)) for g, some, others in pairs]
        return torch.from_numpy(np.stack(drawn)).to(self.like.device)

    def _joined(self, drawn: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(drawn)).to(self.like)
