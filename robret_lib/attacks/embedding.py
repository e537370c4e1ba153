"""Attacks on what a search is judged by: push the embedding away, or make the first answer wrong.

Both measure ``recall_at_1``, 100 where the first answer has a class of the image and 0 where not, so that its mean
is the R@1 in percent that is left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.ranking_losses import ItemSets, SoftMargin
from robret_lib.distances import row_distance
from robret_lib.metrics import hits_at_k, relevance

HAIR = 1e-3
"""How far from the benign embedding the point lies from which `EmbeddingShift` flees, in lengths of an embedding."""

TWIN = 1e-2
"""An item nearer than this share of `Gallery.spread` is the image itself, or a copy of it."""


@dataclass(frozen=True)
class EmbeddingShift:
    """ES: move the embedding of each image as far as possible from where it was.

    Maximizes ``d(phi(q~), phi(q))`` (Zhou et al., ECCV 2020). At the start that distance has no slope, so it is
    measured from a point a hair's breadth towards the nearest gallery item: the first step flees from that item.
    (RobRank's first step is the same for every image, the direction of PyTorch's 1e-6 inside the norm.)

    Measures ``shift``, the distance from the benign embedding, and ``recall_at_1`` where labels are known.
    """

    rows = 1

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        gallery = benign.gallery
        flown = _a_hair_aside(benign)

        def loss(embeddings: Tensor) -> Tensor:
            return -row_distance(embeddings, flown, gallery.distance)

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            shift = row_distance(embeddings, benign.embeddings, gallery.distance)
            answers = _first_answers(embeddings, benign) if _has_classes(benign) else {}
            return {"shift": shift} | answers

        return Plan(loss, measures)


@dataclass(frozen=True)
class Margin:
    """The R@1 margin: bring the nearest item of another class nearer than the nearest item of the own class.

    Minimizes ``min_x d(q~, x) - min_y d(q~, y)`` over the gallery items x that share no class with the image and the
    items y that do, the image itself left out. Where it is negative, the first answer is wrong, so it is R@1 itself
    that is attacked. The minima may be soft (`ranking_losses.SoftMargin`): then all items that are nearly the
    nearest ones are moved, not the nearest alone.

    Distances are Euclidean, for "C" as well, where unit vectors rank alike: among near neighbors the cosine distance
    hardly changes, and a temperature would mean something else.

    An image without any item of its class is not right to begin with, and one without any of another class cannot
    be wrong; what is missing counts as a constant.

    Args:
        temperature: Of the soft minima, in units of the `Gallery.spread` of Euclidean distances, so that it means the
            same for every model and distance; 0 takes hard minima. Small radii want hard ones, large radii soft ones;
            the default does well at all of them (measured: tests/benchmarks/temperatures.md).
    """

    temperature: float = 0.02

    rows = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < torch.inf:
            raise ValueError(f"temperature={self.temperature}: expected a finite number of at least 0")

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        if not _has_classes(benign):
            raise ValueError("Margin needs classes: give labels to Gallery.of, and to run for images from outside")
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        gallery = benign.gallery.euclidean
        others, own = _others_and_own(benign)
        temperature = self.temperature * gallery.spread  # 0, too, where all embeddings are alike

        def hard(embeddings: Tensor) -> Tensor:
            with torch.no_grad():
                distances = gallery.distances_from(embeddings)
            return _nearest(distances, others, embeddings, gallery) - _nearest(distances, own, embeddings, gallery)

        def soft(embeddings: Tensor) -> Tensor:
            return SoftMargin.apply(embeddings, gallery, others, own, temperature)

        return Plan(soft if temperature else hard, lambda embeddings: _first_answers(embeddings, benign))


def _a_hair_aside(benign: Benign) -> Tensor:
    """Points ``[B, D]`` beside the benign embeddings, towards the nearest item that is no twin of the image."""
    gallery = benign.gallery
    distances = gallery.distances_from(benign.embeddings)
    others = distances > TWIN * gallery.spread
    nearest = gallery.embeddings[distances.masked_fill(~others, torch.inf).argmin(1)]
    towards = nearest - benign.embeddings
    if not others.any(1).all():  # where all embeddings are alike, any direction will do
        towards = torch.where(others.any(1, keepdim=True), towards, torch.ones_like(towards))
    return benign.embeddings + HAIR * gallery.length.clamp(min=1e-6) * normalize(towards, dim=1)


def _others_and_own(benign: Benign) -> tuple[ItemSets, ItemSets]:
    """The items that share no class with each image, and those that do, the image itself in neither."""
    gallery = benign.gallery
    own = relevance(benign.labels, gallery.labels.to(gallery.embeddings.device))
    others = ~own
    if benign.own is not None:
        own.scatter_(1, benign.own[:, None], False)
        others.scatter_(1, benign.own[:, None], False)
    return ItemSets(others), ItemSets(own)


def _nearest(distances: Tensor, items: ItemSets, embeddings: Tensor, gallery: Gallery) -> Tensor:
    """Distance ``[B]`` to the nearest of a set, with its gradient; a constant 0 where the set is empty."""
    position = distances.masked_fill(items.left_out, torch.inf).argmin(1)
    found = row_distance(embeddings, gallery.embeddings[position], gallery.distance)
    return found if items.empty is None else torch.where(items.empty, 0.0, found)


def _has_classes(benign: Benign) -> bool:
    return benign.labels is not None and benign.gallery.labels is not None


def _first_answers(embeddings: Tensor, benign: Benign) -> dict[str, Tensor]:
    gallery = benign.gallery
    own = False if benign.own is None else benign.own
    hits = hits_at_k(embeddings, gallery.embeddings, benign.labels, gallery.labels, (1,), own)[1]
    return {"recall_at_1": 100 * hits.double()}
