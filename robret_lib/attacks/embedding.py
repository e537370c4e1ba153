"""Attacks on one query, by where its embedding lies: push it away, pull it to a target, make the first answer wrong.

They measure ``recall_at_1``, 100 where the first answer has a class of the image and 0 where not, so that its mean
over all queries is the R@1 in percent that is left; or what their paper asks for. With mode "reference" they repeat
what the published code does, oddities included: there the image itself, which is no answer, is the item nearest to
its benign embedding (`answers.itself`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from robret_lib.attacks.answers import (
    CHUNK,
    NO_ITEM,
    closer_items,
    first_answer,
    has_classes,
    itself,
    need_classes,
    others_and_own,
    to_furthest,
    to_nearest,
)
from robret_lib.attacks.attack import Benign, Plan, check_mode
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.ranking_losses import HingeItems, ItemSets, QueryHinges, SoftMargin
from robret_lib.data import relevance
from robret_lib.distances import row_distance
from robret_lib.fields import check_count, check_number
from robret_lib.mining import Mode

HAIR = 5e-3
"""How far from the benign embedding the point lies from which `EmbeddingShift` flees, in units of `Gallery.spread`."""

TWIN = 1e-2
"""An item nearer than this share of `Gallery.spread` is the image itself, or a copy of it."""

PAIRWISE_EPS = 1e-6
"""What PyTorch's `pairwise_distance` adds to every coordinate of a difference; "reference" does, too."""

RETAINED = 4
"""Within how many answers `GreedyTop1Translocation` still counts the first one as found."""


@dataclass(frozen=True)
class _Published:
    """An attack on queries of the published suite; its only field is whether its code or its paper is followed."""

    mode: Mode = "fixed"

    rows = 1

    def __post_init__(self) -> None:
        check_mode(self.mode)

    def _itself(self, benign: Benign) -> Callable[[], Tensor | None]:
        """See `itself`; looked for when first asked for, and once."""
        return cache(lambda: itself(benign, self.mode))

    def _recall(self, benign: Benign) -> Callable[[Tensor], dict[str, Tensor]]:
        """``recall_at_1 [B]`` of embeddings."""
        left_out = self._itself(benign)
        return lambda embeddings: first_answer(embeddings, benign, left_out())


@dataclass(frozen=True)
class EmbeddingShift(_Published):
    """ES: move the embedding of each image as far as possible from where it was.

    Maximizes ``d(phi(q~), phi(q))`` (Zhou et al., ECCV 2020). At the start that distance has no slope, so it is
    measured from a point a hair's breadth towards the nearest gallery item: the first step flees from that item.

    Measures ``shift``, the distance from the benign embedding, and ``recall_at_1`` where labels are known.

    Args:
        mode: In "reference" the first step is the same for every image, the direction of PyTorch's 1e-6 inside the
            norm, and ``shift`` is a step old: that of the embedding whose gradient a search asked for last (RobRank,
            `AdvRank.attack`). A search without gradients, or on a surrogate, is measured at its result.

    Threat model: *knowledge*, white-box: the network, and in "fixed" the gallery. *Goal*: the query's embedding far
    from where it was. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: the mean distance over
    all queries, 0 to 2 for unit vectors; and R@1, in percent of all queries.
    """

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        shift = _Shift(benign) if self.mode == "fixed" else _PublishedShift(benign)
        recall = self._recall(benign) if has_classes(benign) else lambda embeddings: {}
        return Plan(shift.loss, lambda embeddings: {"shift": shift.measured(embeddings)} | recall(embeddings))


@dataclass(frozen=True)
class TargetedMismatch(_Published):
    """TMA: pull the embedding of each image to that of a random gallery item.

    Minimizes ``1 - cos(phi(q~), phi(t))`` for one item t for each image, drawn uniformly from the gallery, the image
    itself left out (Tolias et al., ICCV 2019, their global descriptor; RobRank, `RankLossTargetedMismatchAttack`).

    Measures ``cosine``, that between the embeddings of image and target, for every distance.

    Args:
        mode: "reference" may draw the image itself.

    Threat model: *knowledge*, white-box: network and target. *Goal*: the search sees another, chosen image in the
    query. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: the mean cosine over all queries,
    -1 to 1.
    """

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        return benign.drawn(1, self.mode, generator)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        target = benign.gallery.embeddings[targets[:, 0]]

        def cosine(embeddings: Tensor) -> Tensor:
            return cosine_similarity(embeddings, target)

        return Plan(lambda embeddings: 1 - cosine(embeddings), lambda embeddings: {"cosine": cosine(embeddings)})


@dataclass(frozen=True)
class LearningToMisrank(_Published):
    """LTM: bring the furthest item of another class nearer than the nearest item of the own class.

    Minimizes ``[max_x d(q~, x) - min_y d(q~, y)]_+`` over the gallery items x that share no class with the image and
    the items y that do (Wang et al., CVPR 2020, in the form RobRank evaluates). What is missing, where an image has
    no item of its class, or none of another, counts as a constant 0.

    Measures ``recall_at_1``.

    Args:
        mode: "fixed" leaves the image itself out; in "reference" it is one of the items y, so that the first step
            only pulls, and the later ones push the query from its own benign embedding (RobRank, `AdvRank.attack`,
            where the result of an update of the mask is dropped).

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of another class.
    *Norm* and *budget*: of the search. *What moves*: the query. *Success*: R@1, in percent of all queries.
    """

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        need_classes(self, benign)
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        gallery = benign.gallery
        others, own = map(ItemSets, others_and_own(benign, benign.own if self.mode == "fixed" else None))

        def loss(embeddings: Tensor) -> Tensor:
            with torch.no_grad():
                distances = gallery.distances_from(embeddings)
            furthest = to_furthest(distances, others, embeddings, gallery)
            return (furthest - to_nearest(distances, own, embeddings, gallery)).relu()

        return Plan(loss, self._recall(benign))


@dataclass(frozen=True)
class GreedyTop1Misrank(_Published):
    """GTM: pull each image to the nearest item of another class.

    Minimizes ``d(q~, u)`` for the item u that is nearest to the benign image among those that share no class with it
    (Zhou et al., TPAMI 2024; RobRank, `RankLossGreedyTop1Misrank`). Where there is none, the target is -1 and the
    loss a constant 0.

    Measures ``recall_at_1``.

    Args:
        mode: In "reference" another class is one of which the first answer has none, and u is not found: its place
            among the items of other classes is taken for its place in the gallery (RobRank, `_sel_gtm`). In a gallery
            sorted by class that shifts half of the targets by the size of a class, in a shuffled one the target is
            in effect a random item.

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of another class.
    *Norm* and *budget*: of the search. *What moves*: the query. *Success*: R@1, in percent of all queries.
    """

    def targets(self, benign: Benign, generator: torch.Generator | None, chunk: int = CHUNK) -> Tensor:
        need_classes(self, benign)
        parts = (benign[start : start + chunk] for start in range(0, len(benign), chunk))
        chosen = _nearest_other if self.mode == "fixed" else _published_nearest_other
        return torch.cat([chosen(part) for part in parts])

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery, found = benign.gallery, targets[:, 0] != NO_ITEM
        target = gallery.embeddings[targets[:, 0]]
        offset = PAIRWISE_EPS if self.mode == "reference" else 0.0

        def loss(embeddings: Tensor) -> Tensor:
            return torch.where(found, row_distance(embeddings, target, gallery.distance, offset), 0.0)

        return Plan(loss, self._recall(benign))


@dataclass(frozen=True)
class GreedyTop1Translocation(_Published):
    """GTT: move the first answer of each image down its ranking.

    Minimizes, for the first answer c of the benign image, itself left out, the mean over the gallery items x of
    ``[d(q~, x) - d(q~, c)]_+``: the query attack "lower" on c (Zhou et al., TPAMI 2024; RobRank,
    `RankLossGreedyTop1Translocation`).

    Measures ``retain_at_4``: 100 where c is still among the first four answers, else 0.

    Args:
        mode: In "reference" another item may be taken for the image itself. Of a gallery beyond 20,000 items "fixed"
            takes the mean over a sample (`ranking_losses.HingeItems.of`), and measures among all.

    Threat model: *knowledge*, white-box: network and gallery. *Goal*: the first answer is not found any more. *Norm*
    and *budget*: of the search. *What moves*: the query. *Success*: how often it is still among the first four, in
    percent of all queries.
    """

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        return benign.gallery.nearest_to(benign.embeddings, 1, itself(benign, self.mode))

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery = benign.gallery
        downwards = gallery.embeddings.new_full((1,), -1.0)
        items = HingeItems.of(gallery, targets, self.mode)
        left_out = self._itself(benign)

        def loss(embeddings: Tensor) -> Tensor:
            return QueryHinges.apply(embeddings, items, downwards)[:, 0]

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            closer = closer_items(embeddings, gallery, targets, left_out())[:, 0]
            return {"retain_at_4": 100 * (closer < RETAINED).double()}

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

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of another class.
    *Norm* and *budget*: of the search. *What moves*: the query. *Success*: R@1, in percent of all queries.
    """

    temperature: float = 0.02

    rows = 1

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, least=0)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> None:
        need_classes(self, benign)
        return None

    def plan(self, benign: Benign, targets: None) -> Plan:
        gallery = benign.gallery.euclidean
        others, own = map(ItemSets, others_and_own(benign, benign.own))
        temperature = self.temperature * gallery.spread  # 0, too, where all embeddings are alike
        hard = _hard_margin(gallery, others, own)

        def soft(embeddings: Tensor) -> Tensor:
            return SoftMargin.apply(embeddings, gallery, others, own, temperature)

        return Plan(soft if temperature else hard, lambda embeddings: first_answer(embeddings, benign, benign.own))


@dataclass(frozen=True)
class TargetedMargin:
    """The R@1 margin of one wrong class: bring its nearest item nearer than the nearest item of the own class.

    Minimizes ``min_x d(q~, x) - min_y d(q~, y)`` over the items x of the place-th nearest other class and the items
    y that share a class with the image, itself left out. `Margin` follows whichever other class is the nearest at
    the moment, and may end between two of them; against that the targeted losses of AutoAttack were made, for
    classifiers (Croce and Hein 2020).

    The nearest other class is that of the nearest item that shares no class with the image, the next one that of the
    nearest item among those that share none with that item either, and so on. Where there are fewer other classes, it
    is the last of them; where there is none, the image only flees its own.

    Measures ``recall_at_1``. Distances are Euclidean, as of `Margin`.

    Args:
        place: 1 for the nearest other class, 2 for the next.

    Threat model: *knowledge*, white-box: network, gallery and its classes. *Goal*: a first answer of a chosen other
    class. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: R@1, in percent of all queries, of
    whatever other class the answer is.
    """

    place: int

    rows = 1

    def __post_init__(self) -> None:
        check_count("place", self.place)

    def targets(self, benign: Benign, generator: torch.Generator | None, chunk: int = CHUNK) -> Tensor:
        """The nearest item of the class to bring near, gallery positions ``[B, 1]``; -1 where there is none."""
        need_classes(self, benign)
        parts = (benign[start : start + chunk] for start in range(0, len(benign), chunk))
        return torch.cat([_nearest_of_another_class(part, self.place) for part in parts])

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery = benign.gallery.euclidean
        others, own = others_and_own(benign, benign.own)
        loss = _hard_margin(gallery, ItemSets(others & _with_a_class_of(targets, gallery)), ItemSets(own))
        return Plan(loss, lambda embeddings: first_answer(embeddings, benign, benign.own))


class _Shift:
    """The distance from the benign embeddings; maximized from a point a hair's breadth aside."""

    def __init__(self, benign: Benign) -> None:
        self.benign, self.aside = benign, _a_hair_aside(benign)

    def loss(self, embeddings: Tensor) -> Tensor:
        return -row_distance(embeddings, self.aside, self.benign.gallery.distance)

    def measured(self, embeddings: Tensor) -> Tensor:
        return row_distance(embeddings, self.benign.embeddings, self.benign.gallery.distance)


class _PublishedShift:
    """The distance as RobRank takes it: jittered in the first step, and reported as of the last gradient."""

    JITTER = 1e-7

    def __init__(self, benign: Benign) -> None:
        self.benign, self.shown = benign, None
        self.origin = benign.embeddings + self.JITTER

    def loss(self, embeddings: Tensor) -> Tensor:
        origin, self.origin = self.origin, self.benign.embeddings
        if embeddings.requires_grad:
            self.shown = embeddings.detach()
        return -self._distance(embeddings, origin)

    def measured(self, embeddings: Tensor) -> Tensor:
        return self._distance(embeddings if self.shown is None else self.shown, self.benign.embeddings)

    def _distance(self, embeddings: Tensor, origin: Tensor) -> Tensor:
        return row_distance(embeddings, origin, self.benign.gallery.distance, PAIRWISE_EPS)


def _a_hair_aside(benign: Benign) -> Tensor:
    """Points ``[B, D]`` beside the benign embeddings, towards the nearest item that is no twin of the image."""
    gallery = benign.gallery
    distances = gallery.distances_from(benign.embeddings)
    others = distances > TWIN * gallery.spread
    nearest = gallery.embeddings[distances.masked_fill(~others, torch.inf).argmin(1)]
    towards = nearest - benign.embeddings
    if not others.any(1).all():  # where all embeddings are alike, any direction will do
        towards = torch.where(others.any(1, keepdim=True), towards, torch.ones_like(towards))
    last_digits = 10 * torch.finfo(towards.dtype).eps * gallery.length.clamp(min=1e-6)  # of a gallery that collapsed
    hair = last_digits.clamp(min=HAIR * gallery.euclidean.spread)
    return benign.embeddings + hair * normalize(towards, dim=1)


def _hard_margin(gallery: Gallery, others: ItemSets, own: ItemSets) -> Callable[[Tensor], Tensor]:
    def loss(embeddings: Tensor) -> Tensor:
        with torch.no_grad():
            distances = gallery.distances_from(embeddings)
        return to_nearest(distances, others, embeddings, gallery) - to_nearest(distances, own, embeddings, gallery)

    return loss


def _nearest_other(benign: Benign) -> Tensor:
    """The nearest item ``[B, 1]`` that shares no class with each image; -1 where there is none."""
    others, _ = others_and_own(benign, benign.own)
    return _nearest_of(others, benign)


def _nearest_of_another_class(benign: Benign, place: int) -> Tensor:
    """The nearest item ``[B, 1]`` of the place-th nearest other class, or of the last there is; -1 without any."""
    others, _ = others_and_own(benign, benign.own)
    found = _nearest_of(others, benign)
    for _ in range(place - 1):
        others &= ~_with_a_class_of(found, benign.gallery)
        further = _nearest_of(others, benign)
        found = torch.where(further == NO_ITEM, found, further)
    return found


def _with_a_class_of(positions: Tensor, gallery: Gallery) -> Tensor:
    """The items, bool ``[B, N]``, that share a class with the one at each of the positions ``[B, 1]``; none with -1."""
    labels = gallery.labels.to(positions.device)
    return relevance(labels[positions[:, 0]], labels) & (positions != NO_ITEM)


def _published_nearest_other(benign: Benign) -> Tensor:
    """As RobRank finds it: by the classes of the first answer, and its place among the items of other classes."""
    gallery, image = benign.gallery, itself(benign, "reference")
    first = gallery.nearest_to(benign.embeddings, 1, image)[:, 0]
    classes = gallery.labels[first.to(gallery.labels.device)].to(first.device)
    others, _ = others_and_own(Benign(gallery, benign.embeddings, labels=classes), None)
    nearest = _nearest_of(others.scatter(1, image[:, None], False), benign)
    place = others.cumsum(1).gather(1, nearest.clamp(min=0)) - 1
    return torch.where(nearest == NO_ITEM, NO_ITEM, place)


def _nearest_of(chosen: Tensor, benign: Benign) -> Tensor:
    """The nearest ``[B, 1]`` of the chosen items, bool ``[B, N]``; -1 where none is chosen."""
    distances = benign.gallery.distances_from(benign.embeddings).masked_fill_(~chosen, torch.inf)
    return torch.where(chosen.any(1, keepdim=True), distances.argmin(1, keepdim=True), NO_ITEM)
