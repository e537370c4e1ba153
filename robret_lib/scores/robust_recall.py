"""Robust recall: how many first answers stay right under the strongest attacks there are, query by query the worst."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from robret_lib.attacks import Gallery
from robret_lib.attacks.run import check_device
from robret_lib.attacks.search.ball import Norm, check_length, check_norm
from robret_lib.checks import Finding, evaluation
from robret_lib.data import RetrievalData, as_float
from robret_lib.models import EmbeddingModel, embed
from robret_lib.scores import doubts
from robret_lib.scores.checkpoint import Checkpoint, blocks, rows_of
from robret_lib.scores.queries import Queries
from robret_lib.scores.suite import Effort, Stage, suite_of

STANDS, WRONG_BEFORE = "stands", "wrong before any attack"


QUANTILE = 1.96
"""Of the normal distribution, for intervals of 95 %."""


@dataclass(frozen=True, eq=False, repr=False)
class RobustRecall:
    """What `robust_recall` found.

    Two models, or two radii, are compared on the same queries, one by one: the mean of
    ``a.standing.double() - b.standing.double()``, whose standard error is that of these differences. It is smaller than
    `standard_error` suggests, since both fail on the same hard queries.

    Args:
        recall_at_1: Percent of all queries whose first answer is right under every attack.
        benign: The same without an attack: R@1.
        broken_by: By attack, in the order in which they were made, the percent of all queries that it was the first
            to break. What is broken is not attacked again, so the later ones had fewer left.
        outcomes: Of each query the name of the attack that broke it, or "stands", or "wrong before any attack".
        images: The attacked queries, float ``[n, C, H, W]``: of each the image that broke it, or the original where
            none did. Who doubts the score can search with them.
        passes: Forward passes per query that all attacks together spent, each but the last of a descent with its
            backward pass.
        warnings: What makes the number doubtful, in words (`checks`); none for a sound evaluation.
    """

    recall_at_1: float
    benign: float
    broken_by: dict[str, float]
    outcomes: tuple[str, ...]
    images: Tensor
    passes: float
    warnings: tuple[str, ...]

    @property
    def standing(self) -> Tensor:
        """Of which queries the first answer stayed right, bool ``[n]``."""
        return torch.tensor([outcome == STANDS for outcome in self.outcomes])

    @property
    def standard_error(self) -> float:
        """Of `recall_at_1` over the queries, in percent."""
        return sqrt(self.recall_at_1 * (100 - self.recall_at_1) / len(self.outcomes))

    @property
    def interval(self) -> tuple[float, float]:
        """Between what `recall_at_1` lies for 95 % of draws of other queries, in percent (Wilson 1927)."""
        count, share = len(self.outcomes), self.recall_at_1 / 100
        weight = QUANTILE**2 / count
        middle = (share + weight / 2) / (1 + weight)
        reach = QUANTILE * sqrt(share * (1 - share) / count + weight / count / 4) / (1 + weight)
        return 100 * max(0, middle - reach), 100 * min(1, middle + reach)

    def __repr__(self) -> str:
        most = sorted(self.broken_by.items(), key=lambda item: -item[1])[:3]
        lines = [
            f"R@1 of {len(self.outcomes)} queries: {self.benign:.1f} % before, {self.recall_at_1:.1f} +- "
            f"{self.standard_error:.1f} % left; {self.passes:.1f} passes a query",
            "broken by " + "; ".join(f"{name}: {percent:.1f} %" for name, percent in most),
            *self.warnings,
        ]
        return "\n".join(lines)


def robust_recall(
    model: EmbeddingModel,
    data: RetrievalData,
    eps: float,
    norm: Norm = "linf",
    queries: int | Tensor | None = None,
    effort: Effort = "standard",
    seed: int = 0,
    surrogate: EmbeddingModel | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> RobustRecall:
    """R@1 that survives, per query, the worst of a suite of attacks on the query (`suite.suite_of`).

    As AutoAttack does for classifiers (Croce and Hein 2020), a query counts as robust only where all fail; it is an
    upper bound of what a perfect attack would leave. Only queries that are right to begin with are attacked, and none
    again once it is broken. An attack's percentage, as the score, is one of all queries. Masked gradients are looked
    for at effort "standard" and "high" for norm "linf", on a sample.

    Args:
        model: In [0, 1] pixels.
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        queries: None is all; a number n is the first n; or positions, int64 ``[n]``.
        effort: See `Effort`.
        seed: Of the random starts.
        surrogate: Another model of the same images, from which attacks are transferred as well.
        checkpoint: File to go on from if it exists, and to write after every attack on 1,000 queries; the images lie
            beside it, a file for each 1,000.
        progress: Show a progress bar; the time left is what remains if no further query breaks.

    Raises:
        ValueError: An impossible argument, a surrogate on another device, or a checkpoint of another evaluation.
    """
    check_arguments(eps, norm, effort)
    asked, its_gallery = Queries(model, data, queries), None
    if surrogate is not None:
        check_device(surrogate, asked.gallery, "surrogate")
        its_gallery = Gallery.of(surrogate, data.gallery.images, data.gallery.labels)
    suite = suite_of(effort, eps, norm, surrogate, its_gallery)
    task = _Evaluation(asked, suite, norm == "linf" and eps >= 0.5)
    others = [] if surrogate is None else [surrogate]
    settings = {"eps": eps, "norm": norm, "effort": effort, "seed": seed, "suite": task.names}
    kept = Checkpoint(Path(checkpoint), settings, task.queries.fingerprint(*others)) if checkpoint else None
    if kept:
        task.resume(kept)
    with tqdm(unit=" passes", disable=not progress) as bar:
        for block, number in task.work_left():
            bar.total = bar.n + task.passes_left()
            bar.set_description(task.names[number], refresh=True)
            bar.update(task.attack(block, number, seed))
            if kept:
                task.save(kept, block)
    return task.outcome(doubts.of_model(model, task.queries.gallery))


class _Evaluation:
    """What was found for each query so far, and what is left to do."""

    KEPT = ("right", "broken", "done", "passes")

    def __init__(self, queries: Queries, suite: list[Stage], unlimited: bool) -> None:
        self.queries, self.suite = queries, suite
        self.unlimited = unlimited  # whether every image may be turned gray
        self.names = [stage.name for stage in suite]
        self.right = queries.right(queries.embeddings)
        self.broken = torch.full((len(queries),), -1)  # by which attack
        self.images = as_float(queries.images).clone()
        self.done: list[list[int]] = []
        self.passes = 0.0

    def work_left(self) -> Iterator[tuple[int, int]]:
        """Blocks of queries, and the numbers of the attacks on them."""
        for block in range(blocks(len(self.queries))):
            for number in range(len(self.suite)):
                if [block, number] not in self.done:
                    yield block, number

    def passes_left(self) -> int:
        """What remains if no further query breaks."""
        left = [self.suite[number].passes * len(self._victims(block, number)) for block, number in self.work_left()]
        return sum(left)

    def attack(self, block: int, number: int, seed: int) -> float:
        """Attack what still stands of a block; gives the passes that it took."""
        rows, spent = self._victims(block, number), 0.0
        if len(rows):
            generator = torch.Generator().manual_seed(2**20 * seed + 2**10 * number + block)
            result = self.queries.attacked(*self.suite[number][1:3], generator, rows)
            broken = ~self.queries.right(embed(self.queries.model, result.images), rows)
            self.images[rows[broken]] = result.images[broken]
            self.broken[rows[broken]] = number
            spent = result.passes * len(rows)
        self.passes += spent
        self.done.append([block, number])
        return spent

    def save(self, checkpoint: Checkpoint, block: int) -> None:
        checkpoint.save_images(block, self.images[rows_of(block)])
        checkpoint.save({name: getattr(self, name) for name in self.KEPT})

    def resume(self, checkpoint: Checkpoint) -> None:
        for name, value in (checkpoint.load(set(self.KEPT)) or {}).items():
            setattr(self, name, value)
        for block in {block for block, _ in self.done}:
            self.images[rows_of(block)] = checkpoint.load_images(block)

    def outcome(self, of_model: tuple[str, ...]) -> RobustRecall:
        broken = [self.names[number] if number >= 0 else STANDS for number in self.broken.tolist()]
        outcomes = [name if right else WRONG_BEFORE for name, right in zip(broken, self.right.tolist(), strict=True)]
        count, share = Counter(outcomes), 100 / len(outcomes)
        return RobustRecall(
            recall_at_1=share * count[STANDS],
            benign=share * self.right.sum().item(),
            broken_by={name: share * count[name] for name in self.names},
            outcomes=tuple(outcomes),
            images=self.images,
            passes=self.passes / len(outcomes),
            warnings=of_model + doubts.said(self._findings()),
        )

    def _findings(self) -> Iterator[Finding]:
        """What the outcomes say of the evaluation itself."""
        yield evaluation.benign_recall(self.right, self.queries.one_for_all)
        for number, stage in enumerate(self.suite):
            victims = torch.cat([self._victims(block, number) for block in range(blocks(len(self.queries)))])
            if stage.tells and len(victims):
                stood = torch.ones(len(victims), dtype=torch.bool)
                yield evaluation.black_box(stood, self.broken[victims] != number)
        if self.unlimited and self.right.any():
            answered = self.queries.relevant_to(self.right.nonzero()[:, 0]).max()
            yield evaluation.unlimited_radius(self.broken[self.right] < 0, answered.item() / int(self.right.sum()))

    def _victims(self, block: int, number: int) -> Tensor:
        """The queries of a block that an attack is made on, or was: what those before it left standing, or a sample."""
        rows = torch.arange(len(self.queries))[rows_of(block)]
        standing = self.right[rows] & ((self.broken[rows] < 0) | (self.broken[rows] >= number))
        return rows[standing][: self.suite[number].sample]


def check_arguments(eps: float, norm: str, effort: str) -> None:
    """Raise a ValueError unless radius, norm and effort are such."""
    check_norm(norm)
    check_length("eps", eps, norm)
    if effort not in get_args(Effort):
        raise ValueError(f"effort={effort!r}: expected one of {get_args(Effort)}")
