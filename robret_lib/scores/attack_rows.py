"""The nine attacks of the published tables on one model, and the ten rows that they give."""

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robret_lib.attacks import Attack, Result, Search
from robret_lib.attacks.embedding import (
    RETAINED,
    EmbeddingShift,
    GreedyTop1Misrank,
    GreedyTop1Translocation,
    LearningToMisrank,
    TargetedMismatch,
)
from robret_lib.attacks.ranking import CandidateAttack, QueryAttack
from robret_lib.checks import Finding, Overheard, evaluation
from robret_lib.data import RetrievalData
from robret_lib.mining import Mode
from robret_lib.models import Distance, EmbeddingModel, distance_of
from robret_lib.scores import doubts
from robret_lib.scores.checkpoint import Checkpoint
from robret_lib.scores.ers import ers
from robret_lib.scores.queries import Queries
from robret_lib.scores.relative import CHANCE, PAIR, RETAINED_BY_CHANCE, relative

MEASURES: dict[str, dict[str, str]] = {
    "CA+": {"CA+": "rank"},
    "CA-": {"CA-": "rank"},
    "QA+": {"QA+": "rank"},
    "QA-": {"QA-": "rank"},
    "TMA": {"TMA": "cosine"},
    "ES": {"ES:D": "shift", "ES:R": "recall_at_1"},
    "LTM": {"LTM": "recall_at_1"},
    "GTM": {"GTM": "recall_at_1"},
    "GTT": {"GTT": "retain_at_4"},
}
"""By attack the rows that it gives, and which of its measures they are."""


class Interval(NamedTuple):
    """A score, and between what it lies for 95 % of draws of other queries."""

    score: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class AttackRows:
    """What the nine attacks did.

    Args:
        measured: By row, of each of n queries the value under attack, ``[n]``.
        before: The same without one; and "R@1", 100 where the first answer is right, else 0.
        by_chance: Of the gallery, what `relative.relative_robustness` needs to know.
        distance: Of the model.
        passes: Forward passes per query that all attacks together spent.
        warnings: What makes the rows doubtful, in words (`checks`); none for a sound evaluation.
    """

    measured: dict[str, Tensor]
    before: dict[str, Tensor]
    by_chance: dict[str, float]
    distance: Distance
    passes: float
    warnings: tuple[str, ...]

    @property
    def rows(self) -> dict[str, float]:
        """The ten rows, means over all queries, in the units of the published tables."""
        return {name: values.mean().item() for name, values in self.measured.items()}

    @property
    def benign(self) -> dict[str, float]:
        """The rows before the attack, and whatever else `relative.relative_robustness` is to be given."""
        means = {name: values.mean(0, keepdim=True) for name, values in self.before.items()}
        return {name: value.item() for name, value in self._with_chance(means).items()}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of the ten rows, over the queries; NaN for a single one."""
        return {name: (values.std() / len(values) ** 0.5).item() for name, values in self.measured.items()}

    @property
    def ers(self) -> float:
        """The score of the published tables, see `ers.ers`.

        Raises:
            ValueError: For distance "E", where it means nothing.
        """
        _check_bounded(self.distance)
        return ers(self.rows)

    def relative(self, draws: int = 1000, seed: int = 0) -> Interval:
        """Our own score, see `relative.relative_robustness`, and its bootstrap interval.

        Args:
            draws: Of n queries with replacement, each with its rows before and after.
            seed: Of the draws.
        """
        count = len(self.before["R@1"])
        drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
        chosen = torch.cat([torch.arange(count)[None], drawn])
        measured = {name: values[chosen].mean(1) for name, values in self.measured.items()}
        before = {name: values[chosen].mean(1) for name, values in self.before.items()}
        scores = relative(measured, self._with_chance(before))
        low, high = scores[1:].quantile(scores.new_tensor([0.025, 0.975])).tolist()
        return Interval(scores[0].item(), low, high)

    def __repr__(self) -> str:
        digits = {"TMA": 2, "ES:D": 2}
        values = ", ".join(f"{name} {value:.{digits.get(name, 1)}f}" for name, value in self.rows.items())
        seen = f"{values}; R@1 {self.benign['R@1']:.1f} % before; {self.passes:.1f} passes a query"
        return "\n".join([f"of {len(self.before['R@1'])} queries: {seen}", *self.warnings])

    def _with_chance(self, before: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means ``[draws]`` before the attack, with all that is needed besides."""
        return before | {name: torch.full_like(before["R@1"], value) for name, value in self.by_chance.items()}


def evaluate_ers(
    model: EmbeddingModel,
    data: RetrievalData,
    budget: Search,
    mode: Mode = "fixed",
    queries: int | Tensor | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    n_targets: int = 1,
) -> AttackRows:
    """Run the nine attacks of the published tables, and score the ten rows they give (Zhou et al. 2024; RobRank).

    Every image is attacked nine times, as candidate and as query: `ranking.CandidateAttack` and `ranking.QueryAttack`
    in both directions, and from `embedding` TMA, ES, LTM, GTM and GTT. Where queries are a set of their own, the same
    images stand for candidates, as items that an attacker adds to the gallery.

    Args:
        model: In [0, 1] pixels, of distance "N" or "C".
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        budget: Any search, such as ``PGD(8 / 255, 3 / 255, steps=32)``, that of the tables for photographs.
        mode: "reference" repeats the oddities of the published code, "fixed" has none.
        queries: None is all; a number n is the first n; or positions, int64 ``[n]``.
        seed: Of the targets and the search; each attack has its own draws.
        checkpoint: File to go on from if it exists, and to write after every attack.
        progress: Show a progress bar.
        n_targets: w and m, targets of each candidate and of each query; 1 in the score, the papers sweep 1 to 10.

    Returns:
        ``.rows`` keyed ``CA+ CA- QA+ QA- TMA ES:D ES:R LTM GTM GTT``, ``.benign``, ``.ers``, ``.relative()``,
        ``.standard_errors``, and the values of each query.

    Raises:
        ValueError: A model of distance "E" (see `attack_rows`), an impossible argument, or a checkpoint of another
            evaluation.
        TypeError: A budget that is no search, or, with a checkpoint, one that cannot be known again: a function.
    """
    _check_bounded(distance_of(model))
    return attack_rows(model, data, budget, mode, queries, seed, checkpoint, progress, n_targets)


def attack_rows(
    model: EmbeddingModel,
    data: RetrievalData,
    budget: Search,
    mode: Mode = "fixed",
    queries: int | Tensor | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    n_targets: int = 1,
) -> AttackRows:
    """The rows of `evaluate_ers`, same arguments, for a model of any distance; for "E" they have no ERS."""
    _check_search(budget, kept=checkpoint is not None)
    asked, suite = Queries(model, data, queries), _suite(mode, n_targets)
    right = asked.right(asked.embeddings)
    found = {"measured": {}, "before": {"R@1": 100 * right.double()}, "passes": 0.0, "findings": []}
    found["findings"].append(list(evaluation.benign_recall(right, asked.one_for_all)))
    settings = {"search": repr(budget), "mode": mode, "seed": seed, "n_targets": n_targets}
    kept = Checkpoint(Path(checkpoint), settings, asked.fingerprint(*_networks(budget))) if checkpoint else None
    if kept:
        found |= kept.load(set(found)) or {}
    bar = tqdm(suite.items(), disable=not progress)
    for number, (name, attack) in enumerate(bar):
        bar.set_description(name)
        if MEASURES[name].keys() <= found["measured"].keys():
            continue
        overheard = Overheard(attack)
        result = asked.attacked(overheard, budget, torch.Generator().manual_seed(2**10 * seed + number))
        for row, measure in MEASURES[name].items():
            found["measured"][row] = result.measured[measure].double().cpu()
            found["before"][row] = result.benign[measure].double().cpu()
        found["passes"] += result.passes
        found["findings"] += [list(finding) for finding in _at_rest(name, overheard.losses, result)]
        if kept:
            kept.save(found)
    findings = [Finding(*finding) for finding in found.pop("findings")]
    warnings, by_chance = doubts.of_model(model, asked.gallery) + doubts.said(findings), _by_chance(asked)
    return AttackRows(**found, by_chance=by_chance, distance=distance_of(model), warnings=warnings)


def _at_rest(name: str, losses: Tensor | None, result: Result) -> Iterator[Finding]:
    """Whether an attack on the first answer was stopped while its losses still fell, where its search shows them."""
    if "recall_at_1" in result.benign and losses is not None and len(losses) >= evaluation.LOOKS:
        right, left = (measures["recall_at_1"].cpu() > 0 for measures in (result.benign, result.measured))
        if right.any():
            finding = evaluation.loss_at_the_end(losses[:, right], left[right])
            yield finding._replace(message=f"{name}: {finding.message}")


def _suite(mode: Mode, n_targets: int) -> dict[str, Attack]:
    return {
        "CA+": CandidateAttack("raise", n_targets, mode),
        "CA-": CandidateAttack("lower", n_targets, mode),
        "QA+": QueryAttack("raise", n_targets, mode),
        "QA-": QueryAttack("lower", n_targets, mode),
        "TMA": TargetedMismatch(mode),
        "ES": EmbeddingShift(mode),
        "LTM": LearningToMisrank(mode),
        "GTM": GreedyTop1Misrank(mode),
        "GTT": GreedyTop1Translocation(mode),
    }


def _by_chance(asked: Queries) -> dict[str, float]:
    """What needs no look at the image: its best constant answer, a random ranking, and how far apart two items are."""
    choices = len(asked.gallery) - (asked.own is not None)
    return {
        CHANCE: 100 * asked.one_for_all,
        RETAINED_BY_CHANCE: 100 * min(1, RETAINED / choices),
        PAIR: asked.gallery.mean_distance,
    }


def _networks(search: Search) -> Iterator[nn.Module]:
    """The networks that a search asks besides the attacked one, such as the surrogate of `attacks.Transfer`."""
    for value in vars(search).values() if is_dataclass(search) else ():
        if isinstance(value, nn.Module):
            yield value
        yield from _networks(value)


def _check_search(budget: Search, kept: bool) -> None:
    if not callable(budget) or isinstance(budget, type):
        raise TypeError(f"budget={budget!r}: expected a search, such as PGD(8 / 255, 3 / 255, steps=32)")
    if kept and " at 0x" in repr(budget):
        raise TypeError(
            f"budget={budget!r} has another name in every process, so that no checkpoint is ever known again: make it "
            "a dataclass, as attacks.PGD is, or give no checkpoint"
        )


def _check_bounded(distance: Distance) -> None:
    if distance == "E":
        raise ValueError(
            'distance "E" has no ERS: ES:D counts 50 (2 - shift), and embeddings of any length may shift by any amount;'
            " attack_rows gives the rows"
        )
