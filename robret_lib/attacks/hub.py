"""A hub: one gallery image that is among the first k answers to as many queries as possible, seen or not."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, normalize

from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.distances import Centered
from robret_lib.fields import check_count, check_number

TINY = 1e-12
"""Temperature of a gallery whose distances are all alike."""

WEIGHT = 2.0
"""Of what `HiddenHub` avoids against what it wants, both logarithms of shares: above 1, so that the hub yields."""

Loss = Callable[[Tensor], Tensor]
"""``[B]`` of embeddings ``[B, D]``."""


class Queries(NamedTuple):
    """Some queries, as B images see them.

    Args:
        embeddings: ``[m, D]``, the same for all images.
        points: The same, made ready for the distances to them.
        limits: How near an image has to come to be among the first k answers, ``[B, m]``.
        counted: bool ``[B, m]``; a query that is the image itself is not.
    """

    embeddings: Tensor
    points: Centered
    limits: Tensor
    counted: Tensor

    def at(self, positions: Tensor) -> "Queries":
        embeddings = self.embeddings[positions]
        return Queries(embeddings, Centered.of(embeddings), self.limits[:, positions], self.counted[:, positions])


@dataclass(frozen=True)
class Hub:
    """Perturb a gallery item until it is among the first k answers to as many queries as possible.

    The queries are gallery items. Some are seen, drawn for all images at once; the attack is judged by the others.
    Minimizes ``-log mean_q sigmoid((d_k(q) - d(q, c~)) / T)`` over the seen queries q, where d_k(q) is the Euclidean
    distance to the k-th neighbor of q, q and the benign image left out: the share of the queries that have the image
    among their first k, with soft steps. The logarithm keeps the slope of a share that is still nearly zero.

    Measures the percent of queries which have the image among their first k answers: ``reach`` of all queries that
    were not seen, ``reach_seen`` of those that were, ``reach_everywhere`` of all gallery items, which is the image's
    k-occurrence as a detector counts it (`hubness`). The image itself is never a query. Compare with what the best
    benign item reaches, and with the mean, k / N.

    Args:
        k: How many answers a query shows.
        seen: How many queries the attacker knows.
        concept: The class whose queries count, seen and not, or None for all; for multi-hot labels a column.
            Queries of one class are few among all, so that such a hub is hard to find by counting.
        temperature: T, in units of the `Gallery.spread` of Euclidean distances. On photographs 0.3 reached further
            than 0.1.

    Threat model: *knowledge*, white-box: network, gallery, and some queries of the kind to come, but not those. *Goal*:
    one image among the first k answers to all of them, whatever they show. *Norm* and *budget*: of the search. *What
    moves*: one gallery image, or one from outside that is added, where ``own`` is None. *Success*: its reach, in
    percent of all queries that were not seen.
    """

    k: int = 10
    seen: int = 100
    concept: int | None = None
    temperature: float = 0.3

    rows = 1

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_count("seen", self.seen)
        check_number("temperature", self.temperature, above=0)
        if self.concept is not None:
            check_count("concept", self.concept, least=0)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """The seen queries, as gallery positions ``[B, seen]``: one draw without replacement, the same in each row."""
        pool = self._pool(benign.gallery)
        if self.seen >= len(pool):
            raise ValueError(f"seen={self.seen} of {len(pool)} queries: leave some unseen, by which to judge the hub")
        drawn = pool[torch.randperm(len(pool), generator=generator)[: self.seen]]
        return drawn.to(benign.embeddings.device).expand(len(benign), -1)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery = benign.gallery.euclidean
        everyone = _everyone(benign, gallery, self.k)
        is_seen = torch.zeros(len(gallery), dtype=torch.bool, device=targets.device)
        is_seen[targets[0]] = True
        wanted = torch.zeros_like(is_seen).index_fill_(0, self._pool(benign.gallery).to(targets.device), True)
        sets = {"reach": wanted & ~is_seen, "reach_seen": is_seen, "reach_everywhere": torch.ones_like(is_seen)}

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            reached = gallery.exact_distances_from(embeddings) < everyone.limits
            return {name: _percent(reached, everyone.counted & chosen) for name, chosen in sets.items()}

        temperature = max(self.temperature * gallery.spread, TINY)
        return Plan(self._loss(everyone.at(targets[0]), everyone, temperature), measures)

    def _loss(self, seen: Queries, everyone: Queries, temperature: float) -> Loss:
        log_share = _soft_log_share(seen, temperature)
        return lambda embeddings: -log_share(embeddings)

    def _pool(self, gallery: Gallery) -> Tensor:
        """Gallery positions of all queries that count."""
        if self.concept is None:
            return torch.arange(len(gallery))
        if gallery.labels is None:
            raise ValueError(f"concept={self.concept}: the gallery has no labels, give them to Gallery.of")
        labels = gallery.labels.cpu()
        columns = labels[:, self.concept : self.concept + 1] if labels.ndim > 1 else (labels == self.concept)[:, None]
        pool = columns.any(1).nonzero()[:, 0]
        if not len(pool):
            highest = labels.shape[1] - 1 if labels.ndim > 1 else int(labels.max())
            raise ValueError(f"concept={self.concept}: no gallery item has this class, the highest one is {highest}")
        return pool


@dataclass(frozen=True)
class CentroidHub(Hub):
    """Perturb a gallery item until it points the way the mean of the seen queries does.

    Minimizes ``1 - cos(c~, mean q)`` (Zhang et al. 2024, arXiv 2412.14113; public code Tingwei-Zhang/adv_hub,
    `pgd_step`: eps = 16/255, 100 queries, and 1,000 steps of 0.02 in pixels divided by CLIP's standard deviations,
    0.26 to 0.28, so of about 1.4/255 here, a tenth less after every 300). The mean is that of unit vectors: a query
    with a long embedding counts no more than another. Where queries are of the gallery's kind, their mean is near none
    of them, and this loss leads nowhere; where they lie apart from the gallery, as captions do from images, it is
    enough. All else as of `Hub`; its temperature is not used.

    Threat model: *knowledge*, white-box: network, gallery, and some queries of the kind to come, but not those. *Goal*:
    one image that looks to the network like what they have in common. *Norm* and *budget*: of the search. *What
    moves*: one gallery image, or one from outside that is added. *Success*: its reach, in percent of all queries that
    were not seen.
    """

    def _loss(self, seen: Queries, everyone: Queries, temperature: float) -> Loss:
        share = seen.counted / seen.counted.sum(1, keepdim=True).clamp(min=1)
        centroid = share.to(seen.embeddings) @ normalize(seen.embeddings, dim=1)
        return lambda embeddings: 1 - torch.cosine_similarity(embeddings, centroid, dim=1)


@dataclass(frozen=True)
class HiddenHub(Hub):
    """A hub that knows of a detector: as far as it goes among the seen queries, but below a share of all of them.

    To the loss of `Hub` it adds twice ``[log r - log(ceiling / 100)]_+``, where r is the share of all gallery items,
    taken as queries, that have the image among their first k, with the same soft steps: what a detector that counts
    the k-occurrence (`hubness`) looks at. Together with a concept, whose queries are few among all, the hub may reach
    most of what it wants and stay in the crowd.

    Args:
        k, seen, concept, temperature: As of `Hub`.
        ceiling: The share of all queries in percent (measure ``reach_everywhere``) above which the alarm goes off.

    Threat model: *knowledge*, white-box: network, gallery, some queries of the kind to come, and the detector with its
    threshold. *Goal*: one image among the first k answers to all of them, and no alarm. *Norm* and *budget*: of the
    search. *What moves*: one gallery image, or one from outside that is added. *Success*: its reach, in percent of all
    queries that were not seen, and 0 where the alarm goes off.
    """

    ceiling: float = 5.0

    rows = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ceiling <= 100:
            raise ValueError(f"ceiling={self.ceiling}: expected percent, above 0 and at most 100")

    def _loss(self, seen: Queries, everyone: Queries, temperature: float) -> Loss:
        log_share, log_noise = _soft_log_share(seen, temperature), _soft_log_share(everyone, temperature)
        log_ceiling = math.log(self.ceiling / 100)
        return lambda embeddings: WEIGHT * (log_noise(embeddings) - log_ceiling).clamp(min=0) - log_share(embeddings)


class _Distances(torch.autograd.Function):
    """Euclidean distances ``[B, m]`` to prepared points, and their gradient: a matrix product each."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, points: Centered) -> Tensor:
        distances = points.distances_from(embeddings)
        ctx.save_for_backward(embeddings, distances)
        ctx.points = points
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        embeddings, distances = ctx.saved_tensors
        return ctx.points.pulled_back(upstream.to(distances, copy=True), embeddings, distances), None


def _soft_log_share(queries: Queries, temperature: float) -> Loss:
    """Logarithm of the share of the counted queries that have an image among their first k, ``[B]``, soft steps."""
    log_weight = queries.counted.double().log() - queries.counted.sum(1, keepdim=True).clamp(min=1).log()

    def log_share(embeddings: Tensor) -> Tensor:
        closeness = (queries.limits - _Distances.apply(embeddings, queries.points)) / temperature
        return (logsigmoid(closeness) + log_weight).logsumexp(1)

    return log_share


def _everyone(benign: Benign, gallery: Gallery, k: int) -> Queries:
    """All gallery items as queries."""
    limits = _limits(gallery, k, benign.own).expand(len(benign), -1)
    counted = torch.ones_like(limits, dtype=torch.bool)
    if benign.own is not None:
        counted.scatter_(1, benign.own[:, None], False)
    return Queries(gallery.embeddings, gallery.centered, limits, counted)


def _limits(gallery: Gallery, k: int, own: Tensor | None) -> Tensor:
    """How far the first k answers to each item reach, itself and the item ``own [B]`` left out, float64 ``[B, N]``.

    Where nothing is left out, a single row.
    """
    answers = gallery.first_answers(k)
    if own is None:
        return answers.reach[None]
    lost = torch.zeros(len(own), len(gallery), dtype=torch.bool, device=own.device)
    for column in answers.items.T:
        lost |= column == own[:, None]
    return torch.where(lost, answers.next_reach, answers.reach)


def _percent(reached: Tensor, counted: Tensor) -> Tensor:
    return 100 * (reached & counted).sum(1).double() / counted.sum(1).clamp(min=1)
