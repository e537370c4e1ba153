"""Embedding-shifted triplets: move every image as far as it goes, and learn the order of what was moved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robret_lib.defenses.inner import AttackedTriplets, Shift
from robret_lib.models import embed, has_batch_statistics
from robret_lib.objectives import MARGIN


class EmbeddingShiftedTriplets(AttackedTriplets):
    """EST: the triplet loss of (a*, p*, n*), where every image was moved far from its clean embedding.

    Each image is attacked for itself; the triplets are drawn afterwards, from the moved embeddings. (Zhou et al.,
    "Adversarial Ranking Attack and Defense", ECCV 2020; RobRank, `est_training_step`.)

    The published code trains EST, and EST alone, with live batch norm, whose running statistics see the clean batch
    before the attack, and the moved one after it. Mode "reference" does so, too; "fixed" leaves batch norm as it is in
    the model.

    Published with one step, too (`PGD.fgsm`). Arguments: see `AttackedTriplets`.
    """

    published_sampling_margin = MARGIN

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of an SPC-2 batch: images ``[2P, C, H, W]`` in [0, 1], labels int ``[2P]``."""
        self.check(model)
        if self.mode == "reference" and any(map(has_batch_statistics, model.modules())):
            with torch.no_grad():
                self._embedded(model, images)  # what the published code logs, and what its statistics see
        away = Shift(embed(model, images), self.distance, self.mode, generator)
        embeddings = self._embedded(model, self.search(model, images, away, generator))
        triplets = self.triplets(embeddings.detach(), labels, generator)
        return self.loss(*(embeddings[role] for role in triplets))

    def _embedded(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.mode == "fixed":
            return model(images)
        with live_batch_norm(model):
            return model(images)


@contextmanager
def live_batch_norm(model: nn.Module) -> Iterator[None]:
    """Every batch norm normalizes by its batch inside, and takes part of it into its running statistics."""
    modes = {module: module.training for module in model.modules() if has_batch_statistics(module)}
    for module in modes:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
