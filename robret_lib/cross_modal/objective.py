"""What training minimizes where images and texts learn together: a loss of pairs, through `training.train`."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from robret_lib.cross_modal.networks import ImageTextModel
from robret_lib.data import multi_hot, relevance
from robret_lib.hashing.batch import Known


@dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of n images, their texts, and which of the training set they are.

    Args:
        model: The networks.
        images: ``[n, C, H, W]`` in [0, 1].
        bags: Their texts, ``[n, 1, 1, V]``.
        labels: Multi-hot ``[n, C]``.
        rows: Positions in the training set, int64 ``[n]``.
    """

    model: ImageTextModel
    images: Tensor
    bags: Tensor
    labels: Tensor
    rows: Tensor

    @cached_property
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Of both branches, ``[n, bits]`` each."""
        return self.model(self.images, self.bags)


class ImagesAndTexts(nn.Module):
    """The objective of a loss of pairs. It keeps the texts, which `training.train` does not know of.

    Args:
        loss: Called with `Pairs` and a generator; one of this package.
        bags: Texts of the whole training set, float ``[N, 1, 1, V]``, in its order.
        labels: Its labels, multi-hot ``[N, C]``.

    Raises:
        ValueError: Not one bag for each row of labels.
    """

    def __init__(self, loss: nn.Module, bags: Tensor, labels: Tensor) -> None:
        super().__init__()
        if bags.ndim != 4 or not bags.is_floating_point() or len(bags) != len(labels):
            given = f"bags {bags.dtype} {tuple(bags.shape)}, labels {tuple(labels.shape)}"
            raise ValueError(f"{given}: expected float [N, 1, 1, V], one for each row of labels")
        self.loss, self.classes = loss, labels.shape[1]
        told = bags.cpu().contiguous().numpy()
        self.texts = hashlib.sha256(told).hexdigest()[:16]  # so that a checkpoint tells them from others
        self._rows: Tensor | None = None
        self.register_buffer("bags", bags, persistent=False)

    def hold(self, rows: Tensor, epoch: int) -> None:
        """Called before each step; see `training.train`."""
        self._rows = rows.to(self.bags.device)

    def forward(self, model: ImageTextModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch: images ``[n, C, H, W]`` in [0, 1], labels int ``[n]`` or multi-hot ``[n, C]``.

        Raises:
            RuntimeError: Nobody has said which images of the training set they are.
        """
        if self._rows is None or len(self._rows) != len(images):
            raise RuntimeError(f"a batch of {len(images)} images: expected hold(rows, epoch) to be called before")
        given = images, self.bags[self._rows], multi_hot(labels, self.classes), self._rows
        return self.loss(Pairs(model, *given), generator)


def similar_to(labels: Tensor, known: Known) -> Tensor:
    """S ``[n, N]``: 1.0 where two items share a label, else 0.0."""
    return relevance(labels, known.labels).to(known.codes)
