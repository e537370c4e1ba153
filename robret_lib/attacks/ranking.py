"""Candidate attack (CA), query attack (QA) and its semantics-preserving form (SPQA): move a rank up or down.

Source: Zhou et al., "Adversarial Ranking Attack and Defense" (ECCV 2020), in the form RobRank evaluates. All measure
``rank``: the percentile rank in percent, mean over the targets; 0 is the first place.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robret_lib.attacks.answers import closer_items
from robret_lib.attacks.attack import Benign, Plan, check_mode
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.ranking_losses import HingeItems, QueryHinges, SortedDistances
from robret_lib.distances import row_distance
from robret_lib.fields import check_count, check_number
from robret_lib.mining import Mode

__all__ = ["CandidateAttack", "Direction", "Gallery", "QueryAttack", "SemanticsPreservingQueryAttack"]

Direction = Literal["raise", "lower"]
"""Raise = towards rank 0 (the tables' "+"), lower = away from it ("-")."""

PRESERVED = 5
"""How many top items the semantics-preserving attack keeps in place (RobRank)."""


@dataclass(frozen=True)
class CandidateAttack:
    """CA: perturb candidates so that they rise or fall in the rankings of w given queries.

    Minimizes the mean over the w queries q and all gallery items x of ``[d(q, c~) - d(q, x)]_+`` (raise) or
    ``[d(q, x) - d(q, c~)]_+`` (lower). Queries are gallery items, drawn with replacement, to raise from the whole
    gallery, to lower from the candidate's own top 1 %.

    Args:
        direction: "raise" (CA+) or "lower" (CA-).
        n_targets: w.
        mode: "reference" may draw the candidate as its own query, and counts query and benign candidate in the
            rank, as RobRank does; "fixed" does neither.

    Threat model: *knowledge*, white-box: network, gallery and queries. *Goal*: one item high up, or low down, in the
    rankings of given queries. *Norm* and *budget*: of the search. *What moves*: one gallery image. *Success*: its
    percentile rank, mean over its queries and over all candidates.
    """

    direction: Direction
    n_targets: int = 1
    mode: Mode = "fixed"

    def __post_init__(self) -> None:
        _check(self.direction, self.n_targets, self.mode)

    @property
    def rows(self) -> int:
        return self.n_targets

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        return _draw_targets(benign, self.direction, self.n_targets, True, self.mode, generator)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery = benign.gallery
        queries = gallery.embeddings[targets].double()
        to_gallery = gallery.exact_distances_from(queries.flatten(0, 1)).view(*targets.shape, len(gallery))
        ordered = SortedDistances(to_gallery)
        not_counted = [targets] if benign.own is None else [benign.own[:, None].expand_as(targets), targets]
        to_not_counted = to_gallery.gather(-1, torch.stack(not_counted, dim=-1))

        def distance(embeddings: Tensor) -> Tensor:
            return row_distance(queries, embeddings[:, None], gallery.distance)

        def loss(embeddings: Tensor) -> Tensor:
            return ordered.hinge(distance(embeddings), self.direction == "raise").mean(1)

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            d = distance(embeddings)
            closer = ordered.rank(d)
            if self.mode == "fixed":
                closer = closer - (to_not_counted < d[..., None]).sum(-1)
            return {"rank": _percent(closer, gallery)}

        return Plan(loss, measures)


@dataclass(frozen=True)
class QueryAttack:
    """QA: perturb queries so that m given candidates rise or fall in their rankings.

    Minimizes the mean over the m candidates c and all gallery items x of ``[d(q~, c) - d(q~, x)]_+`` (raise) or
    ``[d(q~, x) - d(q~, c)]_+`` (lower). Candidates are drawn, to raise from the whole gallery with replacement, to
    lower from the query's own top 1 % without.

    Args:
        direction: "raise" (QA+) or "lower" (QA-).
        n_targets: m.
        mode: "reference" may draw the query as its own candidate and counts it in the rank, as RobRank does; "fixed"
            does neither. Of a gallery beyond 20,000 items "fixed" takes the mean over a sample, and measures ranks
            among all (what that changes: `ranking_losses.HingeItems.of`).

    Threat model: *knowledge*, white-box: network and gallery. *Goal*: given items high up, or low down, in the ranking
    of one query. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: the percentile rank, mean
    over the items and over all queries.
    """

    direction: Direction
    n_targets: int = 1
    mode: Mode = "fixed"

    rows = 1

    def __post_init__(self) -> None:
        _check(self.direction, self.n_targets, self.mode)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        return _draw_targets(benign, self.direction, self.n_targets, self.direction == "raise", self.mode, generator)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        signs = _signs(self.direction, self.n_targets, benign.gallery)
        not_counted = benign.own if self.mode == "fixed" else None
        items = HingeItems.of(benign.gallery, targets, self.mode)

        def loss(embeddings: Tensor) -> Tensor:
            return QueryHinges.apply(embeddings, items, signs).mean(1)

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            return {"rank": _percent(closer_items(embeddings, benign.gallery, targets, not_counted), benign.gallery)}

        return Plan(loss, measures)


@dataclass(frozen=True)
class SemanticsPreservingQueryAttack(QueryAttack):
    """SPQA: a query attack that keeps five top items on top, so that the result list still looks right.

    Minimizes ``L_QA(q~, C) + xi L_QA+(q~, C_SP)`` with ``xi = min(exp(K L_QA+(q~, C_SP)), 1e9)``, not
    differentiated (RobRank, `update_xi`). The preserved set C_SP is the five nearest items ("raise"), or the five
    nearest ones left when C is taken from the top 1 % ("lower"). Also measures ``preserved_rank``, the mean
    percentile rank of C_SP.

    Args:
        direction, n_targets: As of `QueryAttack`.
        mode: As of `QueryAttack`; "reference" also makes xi one number for the batch, from the batch mean, so that
            there the result depends on the batch size.
        stiffness: K: 2e4 on MNIST, 4e4 on Fashion-MNIST and CUB, 7e4 on CARS and SOP.

    Threat model: *knowledge*, white-box: network and gallery. *Goal*: given items high up, or low down, in the ranking
    of one query, unnoticed. *Norm* and *budget*: of the search. *What moves*: the query. *Success*: two percentile
    ranks, mean over all queries, that of the items and that of the preserved set, which is to stay near 0.
    """

    stiffness: float = 4e4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("stiffness", self.stiffness, least=0)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery, m = benign.gallery, self.n_targets
        not_counted = benign.own if self.mode == "fixed" else None
        candidates = torch.cat([targets, _preserved_set(benign, targets, self.direction)], dim=1)
        items = HingeItems(gallery, candidates, len(gallery))  # a preserved item has few in front: each one counts
        signs = torch.cat([_signs(self.direction, m, gallery), _signs("raise", PRESERVED, gallery)])

        def loss(embeddings: Tensor) -> Tensor:
            hinges = QueryHinges.apply(embeddings, items, signs)
            attack, preservation = hinges[:, :m].mean(1), hinges[:, m:].mean(1)
            return attack + _xi(preservation.detach(), self.stiffness, self.mode) * preservation

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            closer = closer_items(embeddings, gallery, candidates, not_counted)
            return {"rank": _percent(closer[:, :m], gallery), "preserved_rank": _percent(closer[:, m:], gallery)}

        return Plan(loss, measures)


def _draw_targets(
    benign: Benign,
    direction: Direction,
    n_targets: int,
    replacement: bool,
    mode: Mode,
    generator: torch.Generator | None,
) -> Tensor:
    """Gallery positions ``[B, m]``, uniform over the gallery to raise, over the image's own top 1 % to lower."""
    if direction == "raise":
        return benign.drawn(n_targets, mode, generator)
    size = len(benign.gallery)
    pool = benign.nearest(max(1, size // 100))
    if not replacement and n_targets > pool.shape[1]:
        raise ValueError(f"n_targets={n_targets}: the top 1 % of a gallery of {size} holds {pool.shape[1]}")
    if replacement:
        columns = torch.randint(pool.shape[1], (len(benign), n_targets), generator=generator)
    else:
        order = torch.rand(len(benign), pool.shape[1], generator=generator, dtype=torch.float32).argsort(1)
        columns = order[:, :n_targets]
    return pool.gather(1, columns.to(pool.device))


def _preserved_set(benign: Benign, targets: Tensor, direction: Direction) -> Tensor:
    """The five nearest items ``[B, 5]``, without the targets where those come from the top as well."""
    if direction == "raise":
        return benign.nearest(PRESERVED)
    nearest = benign.nearest(PRESERVED + targets.shape[1])
    taken = (nearest[:, :, None] == targets[:, None, :]).any(-1)
    return nearest.gather(1, taken.int().argsort(dim=1, stable=True)[:, :PRESERVED])


def _xi(preservation: Tensor, stiffness: float, mode: Mode) -> Tensor:
    level = preservation if mode == "fixed" else preservation.double().mean()
    return (stiffness * level).exp().clamp(max=1e9)  # where the exponential overflows too, as in RobRank


def _percent(closer: Tensor, gallery: Gallery) -> Tensor:
    """Mean percentile rank ``[B]`` in percent: RobRank divides by the size of the whole gallery."""
    return 100 * closer.double().mean(1) / len(gallery)


def _signs(direction: Direction, count: int, gallery: Gallery) -> Tensor:
    return gallery.embeddings.new_full((count,), 1.0 if direction == "raise" else -1.0)


def _check(direction: Direction, n_targets: int, mode: Mode) -> None:
    if direction not in get_args(Direction):
        raise ValueError(f"direction={direction!r}: expected 'raise' or 'lower'")
    check_mode(mode)
    check_count("n_targets", n_targets)
