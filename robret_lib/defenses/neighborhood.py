"""Neighbors kept: whatever is done to an image, most of its neighborhood in the batch shall be of its class."""

import torch
from torch import Tensor, nn

from robret_lib.attacks import PGD, AutoPGD
from robret_lib.defenses.inner import check_inner
from robret_lib.defenses.memory import Progress
from robret_lib.defenses.radius import DrawnRadius, shrunk
from robret_lib.fields import check_number, check_share
from robret_lib.models import distance_of


class KeptNeighborhood(nn.Module):
    """Adversarial training on neighborhood components (NCA) with a margin: attacked images among the clean ones.

    The probability that an image finds its class is a softmax over minus its distances to all others, summed over those
    of its class; those of other classes count as nearer by the margin. The loss is minus its logarithm: a soft margin
    between the nearest of the own class and the nearest of another. An inner attack makes it large for each image,
    against the clean embeddings as fixed points, so that no image depends on what happens to another. The outer loss is
    that of the attacked images, with a gradient through both sides, plus ``clean_weight`` times that of the clean ones.
    The radius rises from zero to its full size over the first part of the training; with `radius.DrawnRadius`, as the
    book judges it, every image has a radius of its own. What each part is worth: tests/benchmarks/neighborhood.py.

    Known before: neighborhood components (Goldberger et al. 2005), with a temperature and unit vectors (Wu et al.
    2018), a margin between nearest neighbors (Weinberger and Saul 2009) and in a softmax (Wang et al. 2018), min-max
    training (Madry et al. 2018), a radius drawn for each image (Kurakin et al. 2017) and one that rises (Cai et al.
    2018). No exhaustive search says that nobody has joined them before.

    The fixed points are the embeddings of the training step: a network with dropout or stochastic depth would be
    attacked around another point than its own. No network of the book has them.

    An image that is drawn twice in a batch has its own copy for a neighbor, which is no lesson in classes; batches of
    `mining.spc2_epoch` have such pairs where a class has few images.

    Args:
        search: The inner attack at full size; as judged, ``DrawnRadius(PGD(eps, eps / 4, 7, random_start=True))``.
        steps: Of the whole training.
        temperature: Of the softmax, in units of distance.
        margin: By how much other classes count as nearer than they are; 0 is plain NCA.
        clean_weight: Of the clean loss.
        ramp: Over which share of the training the radius rises; 0 begins at full size.

    Raises:
        TypeError: Another search than these, whose radius can shrink; a network that does not say its distance, see
            `models.EmbeddingModel`.
        ValueError: An impossible number; a model whose embeddings are no unit vectors.
    """

    def __init__(
        self,
        search: PGD | AutoPGD | DrawnRadius,
        steps: int,
        temperature: float = 0.05,
        margin: float = 0.2,
        clean_weight: float = 0.5,
        ramp: float = 0.5,
    ) -> None:
        super().__init__()
        check_inner(self, search)
        if not isinstance(search, PGD | AutoPGD | DrawnRadius):
            raise TypeError(f"search={search!r}: expected PGD, AutoPGD or DrawnRadius, whose radius can shrink")
        check_number("temperature", temperature, above=0)
        check_number("margin", margin, least=0)
        check_number("clean_weight", clean_weight, least=0)
        check_share("ramp", ramp)
        self.search, self.temperature, self.margin = search, temperature, margin
        self.clean_weight, self.ramp = clean_weight, ramp
        self.progress = Progress(steps)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch: images ``[B, C, H, W]`` in [0, 1], labels int ``[B]``, each class at least twice."""
        _check_classes(labels)
        if distance_of(model) == "E":
            raise ValueError('a model with distance "E": expected "N" or "C", the margin is one of unit vectors')
        done = self.progress.advance()
        search = shrunk(self.search, min(1.0, done / self.ramp)) if self.ramp else self.search
        clean = model(images)
        fixed = clean.detach()

        def stays(embeddings: Tensor) -> Tensor:
            return -self.losses(embeddings, fixed, labels)

        attacked = model(search(model, images, stays, generator))
        loss = self.losses(attacked, clean, labels).mean()
        return loss + self.clean_weight * self.losses(clean, clean, labels).mean()

    def losses(self, queries: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        """Minus the log-probability ``[B]`` that each query finds its class among the references, itself left out.

        Args:
            queries, references: Unit vectors ``[B, D]``, of the same images in the same order.
            labels: int ``[B]``; each class at least twice.
        """
        itself = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        other = labels[:, None] != labels
        logits = (self.margin * other - self.apart(queries, references)) / self.temperature
        logits = logits.masked_fill(itself, -torch.inf)
        return logits.logsumexp(1) - logits.masked_fill(other, -torch.inf).logsumexp(1)

    def apart(self, queries: Tensor, references: Tensor) -> Tensor:
        """Distances ``[A, B]`` of unit vectors ``[A, D]`` and ``[B, D]``, without a slope where they are equal."""
        return (2 - 2 * queries @ references.T).clamp(min=1e-12).sqrt()  # the slope of the root at 0 is infinite


def _check_classes(labels: Tensor) -> None:
    """Raise a ValueError unless every image has company of its own class and of another."""
    company = (labels[:, None] == labels).sum(1)
    if company.min() < 2:
        raise ValueError(f"a batch where class {labels[company.argmin()].item()} has one image: expected two or more")
    if company.max() == len(labels):
        raise ValueError("a batch of a single class has no negatives: expected at least two classes in every batch")
