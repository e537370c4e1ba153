"""What training minimizes where codes are learned: a hashing loss of the batch and of the training set as last seen."""

import torch
from torch import Tensor, nn

from robret_lib.data import multi_hot
from robret_lib.fields import check_number
from robret_lib.hashing.batch import Batch
from robret_lib.hashing.continuation import Continuation, constant
from robret_lib.hashing.known_codes import KnownCodes
from robret_lib.hashing.swd import sliced_wasserstein


class HashObjective(nn.Module):
    """A hashing loss, for `training.train`, which tells it the rows of each batch.

    Args:
        loss: One of this package, called with a `Batch`.
        known: The codes of the training set.
        continuation: See `Continuation`.
        quantizer: Weight of `swd.sliced_wasserstein` beside the loss: 0.1 in SAAT's HSWD, CSQ-C and DSDH-C.

    Raises:
        ValueError: The weight is no finite number of at least 0.
    """

    epoch: Tensor
    steps: Tensor

    def __init__(
        self, loss: nn.Module, known: KnownCodes, continuation: Continuation = constant, quantizer: float = 0.0
    ) -> None:
        super().__init__()
        check_number("quantizer", quantizer, least=0)
        self.loss, self.known, self.continuation, self.quantizer = loss, known, continuation, quantizer
        self._rows: Tensor | None = None
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def hold(self, rows: Tensor, epoch: int) -> None:
        """Called before each step; see `training.train`."""
        self._rows = rows.to(self.known.codes.device)
        if epoch != self.epoch and hasattr(self.loss, "between_epochs"):
            self.loss.between_epochs(self.known.all())
        self.epoch.fill_(epoch)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch: images ``[n, C, H, W]`` in [0, 1], labels int ``[n]`` or multi-hot ``[n, C]``.

        Raises:
            RuntimeError: Nobody has said which images of the training set they are.
        """
        return self.of_outputs(model(images), labels, generator)

    def of_outputs(self, outputs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The same of what the network says of a batch, ``[n, bits]``; its codes are known from here on."""
        if self._rows is None or len(self._rows) != len(outputs):
            raise RuntimeError(f"a batch of {len(outputs)} images: expected hold(rows, epoch) to be called before")
        if self.known.labels.ndim == 2:
            labels = multi_hot(labels, self.known.labels.shape[1])
        sharpness = self.continuation(self.steps.item(), self.epoch.item())
        known = self.known.with_batch(self._rows, torch.tanh(sharpness * outputs))
        batch = Batch(outputs, labels, known, sharpness)
        loss = self.loss(batch)
        if self.quantizer:
            loss = loss + self.quantizer * sliced_wasserstein(batch.codes, generator)
        self.steps += self.training
        return loss
