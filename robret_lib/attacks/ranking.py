"""Candidate attack (CA), query attack (QA) and its semantics-preserving form (SPQA): move a rank up or down.

Source: Zhou et al., "Adversarial Ranking Attack and Defense" (ECCV 2020), in the form RobRank evaluates. In every
signature: ``images [B, C, H, W]`` (uint8, or float in [0, 1]) are gallery items at the positions ``own [B]``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from robret_lib.attacks.pgd import PGD, Loss, check_images, pgd
from robret_lib.attacks.ranking_losses import QueryHinges, SortedDistances, gallery_distance, row_distance
from robret_lib.data import as_float
from robret_lib.mining import Mode
from robret_lib.models import Distance, EmbeddingModel, embed

Direction = Literal["raise", "lower"]
"""Raise = towards rank 0 (the tables' "+"), lower = away from it ("-")."""

PRESERVED = 5
"""How many top items the semantics-preserving attack keeps in place (RobRank)."""


@dataclass(frozen=True)
class Gallery:
    """The benign embeddings every attack is measured against, computed once.

    Args:
        embeddings: ``[N, D]``, unit vectors for distance "N" and "C".
        distance: Of the model that made them.
    """

    embeddings: Tensor
    distance: Distance = "N"

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) < 2:
            raise ValueError(f"embeddings {tuple(self.embeddings.shape)}: expected [N, D] with N of at least 2")

    @classmethod
    def of(cls, model: EmbeddingModel, images: Tensor) -> "Gallery":
        """Embed gallery images ``[N, C, H, W]``."""
        return cls(embed(model, images), model.distance)

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def columns(self) -> Tensor:
        """The embeddings as ``[D, N]``, contiguous."""
        return self.embeddings.T.contiguous()

    @cached_property
    def squares(self) -> Tensor:
        """Squared length of every item, ``[N]``."""
        return self.embeddings.square().sum(1)

    def distances(self, positions: Tensor) -> Tensor:
        """Distances ``[*, N]`` from the items at ``positions [*]`` to all items."""
        return self.distances_from(self.embeddings[positions.flatten()]).view(*positions.shape, len(self))

    def distances_from(self, queries: Tensor) -> Tensor:
        """Distances ``[A, N]`` from any embeddings ``[A, D]`` to all items."""
        return gallery_distance(queries, self.columns, self.squares, self.distance)

    def nearest(self, own: Tensor, size: int, chunk: int = 1024) -> Tensor:
        """Positions ``[B, size]`` of the nearest items of the items ``own [B]``, in order, themselves excluded."""
        own = own.to(self.embeddings.device)
        if size >= len(self):
            raise ValueError(f"{size} neighbors wanted of an item of a gallery of {len(self)}: use a larger gallery")
        nearest = []
        for part in own.split(chunk):
            distances = self.distances(part).scatter_(1, part[:, None], torch.inf)
            nearest.append(distances.topk(size, dim=1, largest=False).indices)
        return torch.cat(nearest)


@dataclass(frozen=True)
class RankingResult:
    """What a ranking attack did to B images with m targets each.

    Args:
        images: Adversarial images, float ``[B, C, H, W]``.
        targets: Gallery positions ``[B, m]``: the queries of a CA, the candidates of a QA.
        benign_rank, rank: Percentile rank in percent ``[B]`` before and after, mean over the targets; 0 = first.
        preserved_rank: SPQA only: mean percentile rank ``[B]`` of the preserved set after the attack.
    """

    images: Tensor
    targets: Tensor
    benign_rank: Tensor
    rank: Tensor
    preserved_rank: Tensor | None = None


def candidate_attack(
    model: EmbeddingModel,
    images: Tensor,
    own: Tensor,
    gallery: Gallery,
    direction: Direction,
    budget: PGD,
    *,
    n_targets: int = 1,
    mode: Mode = "fixed",
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> RankingResult:
    """CA: perturb candidates so that they rise or fall in the rankings of w given queries.

    Minimizes the mean over the w queries q and all gallery items x of ``[d(q, c~) - d(q, x)]_+`` (raise) or
    ``[d(q, x) - d(q, c~)]_+`` (lower). Queries are drawn with replacement, to raise from the whole gallery, to
    lower from the candidate's own top 1 %.

    Args:
        model: In [0, 1] pixels; the one that made the gallery.
        images, own: The candidates and their gallery positions, see the top of this file.
        gallery: Benign embeddings; its items are also the queries.
        direction: "raise" (CA+) or "lower" (CA-).
        budget: See `PGD`.
        n_targets: w.
        mode: "reference" may draw the candidate as its own query, and counts query and benign candidate in the
            rank, as RobRank does; "fixed" does neither.
        generator: CPU generator of the targets and the random start; None is torch's global one.
        batch_size: Images at once; changes speed and memory, not the result.
        progress: Show a progress bar.
    """
    _check(model, images, own, gallery, direction, n_targets, mode)
    own = own.to(gallery.embeddings.device)
    targets = _draw_targets(gallery, own, direction, n_targets, True, mode, generator)

    def plan(rows: slice) -> Plan:
        queries = gallery.embeddings[targets[rows]]
        to_gallery = gallery.distances(targets[rows])
        benign = SortedDistances(to_gallery)
        not_counted = torch.stack([own[rows, None].expand_as(targets[rows]), targets[rows]], dim=-1)
        to_not_counted = to_gallery.gather(-1, not_counted)

        def distance(embeddings: Tensor) -> Tensor:
            return row_distance(queries, embeddings[:, None], gallery.distance)

        def loss(embeddings: Tensor) -> Tensor:
            return benign.hinge(distance(embeddings), direction == "raise").mean(1)

        def rank(embeddings: Tensor) -> tuple[Tensor]:
            d = distance(embeddings)
            closer = benign.rank(d)
            if mode == "fixed":
                closer = closer - (to_not_counted < d[..., None]).sum(-1)
            return (_percent(closer, gallery),)

        return Plan(loss, rank)

    return _run(model, images, own, gallery, targets, plan, budget, generator, batch_size, progress)


def query_attack(
    model: EmbeddingModel,
    images: Tensor,
    own: Tensor,
    gallery: Gallery,
    direction: Direction,
    budget: PGD,
    *,
    n_targets: int = 1,
    mode: Mode = "fixed",
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> RankingResult:
    """QA: perturb queries so that m given candidates rise or fall in their rankings.

    Minimizes the mean over the m candidates c and all gallery items x of ``[d(q~, c) - d(q~, x)]_+`` (raise) or
    ``[d(q~, x) - d(q~, c)]_+`` (lower). Candidates are drawn, to raise from the whole gallery with replacement, to
    lower from the query's own top 1 % without. Arguments as in `candidate_attack`; ``images`` are the queries,
    ``n_targets`` is m. Mode "reference" may draw the query as its own candidate and counts it in the rank.
    """
    _check(model, images, own, gallery, direction, n_targets, mode)
    own = own.to(gallery.embeddings.device)
    targets = _draw_targets(gallery, own, direction, n_targets, direction == "raise", mode, generator)
    signs = _signs(direction, n_targets, gallery)

    def plan(rows: slice) -> Plan:
        def loss(embeddings: Tensor) -> Tensor:
            return _query_hinges(embeddings, gallery, targets[rows], signs).mean(1)

        def rank(embeddings: Tensor) -> tuple[Tensor]:
            return (_percent(_closer(embeddings, gallery, targets[rows], own[rows], mode), gallery),)

        return Plan(loss, rank)

    return _run(model, images, own, gallery, targets, plan, budget, generator, batch_size, progress)


def semantics_preserving_query_attack(
    model: EmbeddingModel,
    images: Tensor,
    own: Tensor,
    gallery: Gallery,
    direction: Direction,
    budget: PGD,
    *,
    n_targets: int = 1,
    stiffness: float = 4e4,
    mode: Mode = "fixed",
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> RankingResult:
    """SPQA: a query attack that keeps five top items on top, so that the result list still looks right.

    Minimizes ``L_QA(q~, C) + xi L_QA+(q~, C_SP)`` with ``xi = min(exp(K L_QA+(q~, C_SP)), 1e9)``, not
    differentiated (RobRank, `update_xi`). The preserved set C_SP is the five nearest items ("raise"), or the five
    nearest ones left when C is taken from the top 1 % ("lower"). Arguments as in `query_attack`, and:

    Args:
        stiffness: K: 2e4 on MNIST, 4e4 on Fashion-MNIST and CUB, 7e4 on CARS and SOP.
        mode: "reference" also makes xi one number for the batch, from the batch mean, so that there the result
            depends on the batch size.
    """
    _check(model, images, own, gallery, direction, n_targets, mode)
    own = own.to(gallery.embeddings.device)
    targets = _draw_targets(gallery, own, direction, n_targets, direction == "raise", mode, generator)
    preserved = _preserved_set(gallery, own, targets, direction)
    candidates = torch.cat([targets, preserved], dim=1)
    signs = torch.cat([_signs(direction, n_targets, gallery), _signs("raise", PRESERVED, gallery)])

    def plan(rows: slice) -> Plan:
        def loss(embeddings: Tensor) -> Tensor:
            hinges = _query_hinges(embeddings, gallery, candidates[rows], signs)
            attack, preservation = hinges[:, :n_targets].mean(1), hinges[:, n_targets:].mean(1)
            return attack + _xi(preservation.detach(), stiffness, mode) * preservation

        def rank(embeddings: Tensor) -> tuple[Tensor, Tensor]:
            closer = _closer(embeddings, gallery, candidates[rows], own[rows], mode)
            return _percent(closer[:, :n_targets], gallery), _percent(closer[:, n_targets:], gallery)

        return Plan(loss, rank)

    return _run(model, images, own, gallery, targets, plan, budget, generator, batch_size, progress)


class Plan(NamedTuple):
    """The attack of one batch: what PGD minimizes, and the percentile ranks ``[B]`` of embeddings ``[B, D]``."""

    loss: Loss
    rank: Callable[[Tensor], tuple[Tensor, ...]]


def _run(
    model: EmbeddingModel,
    images: Tensor,
    own: Tensor,
    gallery: Gallery,
    targets: Tensor,
    plan: Callable[[slice], Plan],
    budget: PGD,
    generator: torch.Generator | None,
    batch_size: int,
    progress: bool,
) -> RankingResult:
    """Attack batch after batch and measure; the benign ranks come from the gallery's own embeddings."""
    _check_embeddings(model, images[:8], own[:8], gallery)
    parts = []
    for start in tqdm(range(0, len(images), batch_size), disable=not progress):
        rows = slice(start, start + batch_size)
        batch = as_float(images[rows].to(gallery.embeddings.device))
        loss, rank = plan(rows)
        adversarial = pgd(model, batch, loss, budget, generator)
        benign_rank = rank(gallery.embeddings[own[rows]])[0]
        parts.append((adversarial.to(images.device), benign_rank, *rank(embed(model, adversarial))))
    attacked, *ranks = (torch.cat(column) for column in zip(*parts, strict=True))
    return RankingResult(attacked, targets.to(images.device), *(rank.to(images.device) for rank in ranks))


def _check_embeddings(model: EmbeddingModel, images: Tensor, own: Tensor, gallery: Gallery) -> None:
    """A few images, embedded again: are they the gallery's items at their positions?"""
    check_images(as_float(images))
    found, expected = embed(model, images).to(gallery.embeddings), gallery.embeddings[own]
    if (found - expected).norm(dim=1).max() > 0.05 * expected.norm(dim=1).max():  # autocast stays below a hundredth
        raise ValueError("the model does not embed these images as the gallery's items at own: other images or model?")


def _draw_targets(
    gallery: Gallery,
    own: Tensor,
    direction: Direction,
    n_targets: int,
    replacement: bool,
    mode: Mode,
    generator: torch.Generator | None,
) -> Tensor:
    """Gallery positions ``[B, m]``; all at once, so that they do not depend on the batch size."""
    if direction == "raise":
        choices = len(gallery) - (mode == "fixed")
        drawn = torch.randint(choices, (len(own), n_targets), generator=generator).to(own.device)
        return drawn + (drawn >= own[:, None]) if mode == "fixed" else drawn
    pool = gallery.nearest(own, max(1, len(gallery) // 100))
    if not replacement and n_targets > pool.shape[1]:
        raise ValueError(f"n_targets={n_targets}: the top 1 % of a gallery of {len(gallery)} holds {pool.shape[1]}")
    if replacement:
        columns = torch.randint(pool.shape[1], (len(own), n_targets), generator=generator)
    else:
        columns = torch.rand(len(own), pool.shape[1], generator=generator).argsort(1)[:, :n_targets]
    return pool.gather(1, columns.to(own.device))


def _preserved_set(gallery: Gallery, own: Tensor, targets: Tensor, direction: Direction) -> Tensor:
    """The five nearest items ``[B, 5]``, without the targets where those come from the top as well."""
    if direction == "raise":
        return gallery.nearest(own, PRESERVED)
    nearest = gallery.nearest(own, PRESERVED + targets.shape[1])
    taken = (nearest[:, :, None] == targets[:, None, :]).any(-1)
    return nearest.gather(1, taken.int().argsort(dim=1, stable=True)[:, :PRESERVED])


def _xi(preservation: Tensor, stiffness: float, mode: Mode) -> Tensor:
    if mode == "fixed":
        return (stiffness * preservation).exp().clamp(max=1e9)
    xi = (stiffness * preservation.double().mean()).exp()
    return torch.where(xi.isinf(), 1e7, xi.clamp(max=1e9))  # RobRank's value on float64 overflow


def _query_hinges(embeddings: Tensor, gallery: Gallery, candidates: Tensor, signs: Tensor) -> Tensor:
    return QueryHinges.apply(embeddings, gallery.columns, gallery.squares, candidates, signs, gallery.distance)


def _closer(embeddings: Tensor, gallery: Gallery, candidates: Tensor, own: Tensor, mode: Mode) -> Tensor:
    """How many gallery items are closer to each query than its candidates, int64 ``[B, m]``."""
    distances = gallery.distances_from(embeddings)
    to_candidate = distances.gather(1, candidates)
    if mode == "fixed":
        distances.scatter_(1, own[:, None], torch.inf)
    return torch.stack([(distances < d[:, None]).sum(1) for d in to_candidate.T], dim=1)


def _percent(closer: Tensor, gallery: Gallery) -> Tensor:
    """Mean percentile rank ``[B]`` in percent: RobRank divides by the size of the whole gallery."""
    return 100 * closer.double().mean(1) / len(gallery)


def _signs(direction: Direction, count: int, gallery: Gallery) -> Tensor:
    return torch.full((count,), 1.0 if direction == "raise" else -1.0, device=gallery.embeddings.device)


def _check(
    model: EmbeddingModel,
    images: Tensor,
    own: Tensor,
    gallery: Gallery,
    direction: Direction,
    n_targets: int,
    mode: Mode,
) -> None:
    if direction not in get_args(Direction):
        raise ValueError(f"direction={direction!r}: expected 'raise' or 'lower'")
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: expected 'fixed' or 'reference'")
    if model.distance != gallery.distance:
        raise ValueError(f"the model's distance is {model.distance!r}, the gallery's {gallery.distance!r}")
    if len(images) != len(own) or not len(images):
        raise ValueError(f"{len(images)} images and {len(own)} gallery positions: expected one position per image")
    if own.min() < 0 or own.max() >= len(gallery):
        raise ValueError(f"own holds {int(own.min())} to {int(own.max())}: the gallery has {len(gallery)} items")
    if n_targets < 1:
        raise ValueError(f"n_targets={n_targets}: expected at least 1")
