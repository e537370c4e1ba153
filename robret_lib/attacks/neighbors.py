"""Attacks on a query by its neighbors: away from the nearest of the class, from itself, or towards the furthest.

Three published attacks with fixed points to flee from and to make for, which are chosen once, by the benign
embeddings. `embedding.Margin` chooses anew at every step, and is the stronger for it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.answers import CHUNK, NO_ITEM, first_answer, has_classes, need_classes, others_and_own
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.distances import row_distance
from robret_lib.fields import check_count

HAIR = 1e-3
"""How far from the benign embedding the point lies from which `SelfMetric` flees, in distances to the furthest item."""


@dataclass(frozen=True)
class PanumGlobal:
    """The global attack: drive each query that is answered rightly away from the item that answers it.

    Maximizes the Euclidean distance to the nearest item of the query's class as the benign embedding sees it, which
    for a query whose first answer is right is that answer. The other queries are not attacked: their target is -1,
    their loss constant, and a search without a random start leaves them as they are.

    Source: Panum et al. 2021, public code `GlobalAttack`. That code does not leave out the query when it looks for the
    nearest item of its class, so that where queries are items it flees from the query's own embedding, as `SelfMetric`
    does; here the query is left out. Its search is ``PGD(eps, 2 * eps / 5, steps=5, random_start=True)``, eps = 0.01.

    Measures ``recall_at_1`` over all queries: 100 where the first answer was right and still is, 0 where it was wrong
    before or is now. What is left of those that were right before is the mean divided by the benign mean.

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of another class, to
    a query whose first answer is right. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: R@1, in
    percent of all queries, or of those right before.
    """

    rows = 1

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        need_classes(self, benign)
        right = first_answer(benign.embeddings, benign, benign.own)["recall_at_1"] > 0
        return benign.nearest(1).where(right[:, None], NO_ITEM)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        answer, attacked = benign.gallery.embeddings[targets[:, 0]], targets[:, 0] != NO_ITEM

        def loss(embeddings: Tensor) -> Tensor:
            return -row_distance(embeddings, answer).where(attacked, 0)

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            return {name: values * attacked for name, values in first_answer(embeddings, benign, benign.own).items()}

        return Plan(loss, measures)


@dataclass(frozen=True)
class SelfMetric:
    """SMA: drive the embedding of each image away from where it was, without any guide.

    Maximizes the squared Euclidean distance to the benign embedding (Bouniot et al., CVPR Workshops 2020, public code
    `perturb_queries_self`). At the image itself that has no slope, so a search of its own needs a random start, as the
    published ``PGD(5 / 255, 1 / 255, steps=15, random_start=True)`` has. That other searches can begin at the image,
    the distance is measured from a point a hair's breadth away on the side that faces away from the furthest gallery
    item: the first step makes for that item. From a random start the hair changes nothing. The direction of the
    gradient is that of `embedding.EmbeddingShift`, so the two differ in their starts alone.

    Measures ``shift``, the distance from the benign embedding, and ``recall_at_1`` where classes are known.

    Threat model: *knowledge*, white-box: the network; items of the gallery only break the tie at the start. *Goal*: the
    embedding far from where it was. *Norm* and *budget*: of the search. *What moves*: the query, or a gallery item.
    *Success*: the mean distance over all images; and R@1, in percent of all queries.
    """

    rows = 1

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        gallery, before = benign.gallery, benign.embeddings
        furthest = gallery.embeddings[gallery.distances_from(before).argmax(1)]
        flown = before - HAIR * (furthest - before)

        def loss(embeddings: Tensor) -> Tensor:
            return -(embeddings - flown).square().sum(1)

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            shift = {"shift": row_distance(embeddings, before, gallery.distance)}
            return shift | first_answer(embeddings, benign, benign.own) if has_classes(benign) else shift

        return Plan(loss, measures)


@dataclass(frozen=True)
class FurthestNegative:
    """FNA: pull each query to the furthest item of another class, and push it away from items of its own.

    Minimizes ``|q~ - n|^2 - mean_g |q~ - g|^2`` with n the furthest item that shares no class with the query, and g its
    nearest items that do (the guides), itself left out, all as the benign embeddings see it. A query without guides is
    only pulled, one without an item of another class only pushed.

    Source: Bouniot et al., CVPR Workshops 2020, public code `perturb_queries_hardest_multi` and `max_min_mse`. There
    all queries of the class are guides, the query too, filled up with copies of the query to the size of the largest
    class; the pull is towards the mean of the class whose mean is furthest; and pushes are summed, so that in a large
    class the pull counts for nothing. Its search is ``PGD(5 / 255, 1 / 255, steps=15)``, from the image.

    Measures ``recall_at_1`` over all queries.

    Args:
        guides: How many items of the class push; where it has fewer, all of them. The published training against
            this attack (GOAT) has 4.

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of another class,
    whichever, though the way leads to one of them. *Norm* and *budget*: of the search. *What moves*: the query.
    *Success*: R@1, in percent of all queries.
    """

    guides: int = 4

    rows = 1

    def __post_init__(self) -> None:
        check_count("guides", self.guides)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """The guides, nearest first, and last the item to make for, ``[B, guides + 1]``; -1 where there is none."""
        need_classes(self, benign)
        starts = range(0, len(benign), CHUNK)
        return torch.cat([self._guides_and_furthest(benign[start : start + CHUNK]) for start in starts])

    def _guides_and_furthest(self, benign: Benign) -> Tensor:
        distances = benign.gallery.distances_from(benign.embeddings)
        wrong, right = others_and_own(benign, benign.own)
        size = min(self.guides, len(benign.gallery))
        near = distances.masked_fill(~right, torch.inf).topk(size, dim=1, largest=False)
        far = distances.masked_fill(~wrong, -torch.inf).topk(1, dim=1)
        found = torch.cat([near.values, far.values], dim=1).isfinite()
        return torch.cat([near.indices, far.indices], dim=1).where(found, NO_ITEM)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        points, present = benign.gallery.embeddings[targets], targets != NO_ITEM
        guides, furthest = points[:, :-1], points[:, -1]
        share = present[:, :-1] / present[:, :-1].sum(1, keepdim=True).clamp(min=1)
        center = (share[..., None] * guides).sum(1)  # the mean squared distance to points is that to their mean, and
        scatter = (share * (guides - center[:, None]).square().sum(2)).sum(1)  # their own around it

        def loss(embeddings: Tensor) -> Tensor:
            pull = (embeddings - furthest).square().sum(1).where(present[:, -1], 0)
            push = ((embeddings - center).square().sum(1) + scatter).where(present[:, 0], 0)
            return pull - push

        return Plan(loss, lambda embeddings: first_answer(embeddings, benign, benign.own))
