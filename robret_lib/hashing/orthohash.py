"""OrthoHash: a classifier whose weights are fixed codes, with a margin on the cosine; nothing else."""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, normalize

from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch
from robret_lib.hashing.centers import check_one_each, each_once


class OrthoHash(nn.Module):
    """Cross-entropy of scaled cosines between outputs, batch-normalized, and random codes (Hoe et al., NeurIPS 2021).

    The margin is taken off the cosines of the true classes, and the target is ``y / |y|``; an image without labels,
    for which SAAT's code gives NaN, adds nothing.

    Args:
        classes, bits: Of the codes, no two of which are the same (see `centers.each_once`).
        margin, scale: Of the cosines (SAAT's values).
        seed: Of the codes.

    Raises:
        ValueError: An impossible number, or more classes than there are codes.
    """

    centers: Tensor

    def __init__(self, classes: int, bits: int, margin: float = 0.2, scale: float = 8.0, seed: int = 0) -> None:
        super().__init__()
        check_one_each(classes, bits)
        check_number("margin", margin, least=0)
        check_number("scale", scale, above=0)
        self.margin, self.scale, self.seed = margin, scale, seed
        self.normalization = nn.BatchNorm1d(bits)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(0, 2, (classes, bits), generator=generator)
        self.register_buffer("centers", normalize(each_once(2.0 * drawn - 1, generator)))

    def forward(self, batch: Batch) -> Tensor:
        """Scalar."""
        cosines = normalize(self._normalized(batch.outputs)) @ self.centers.T.to(batch.outputs)
        present = batch.multi_hot
        logs = (self.scale * (cosines - self.margin * present)).log_softmax(1)
        return -(present / present.sum(1, keepdim=True).clamp(min=1) * logs).sum(1).mean()

    def _normalized(self, outputs: Tensor) -> Tensor:
        """By the batch; a lone image, the remainder of a pass, has no statistics: by those of the batches before it."""
        if len(outputs) > 1:
            return self.normalization(outputs)
        layer = self.normalization
        return batch_norm(outputs, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
