"""Robust MAP: how good rankings by hash codes are under the strongest attacks there are, query by query the worst."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from robret_lib.attacks import Gallery
from robret_lib.attacks.codes import CenterCode
from robret_lib.attacks.relaxed import check_hash_gallery, known_items
from robret_lib.attacks.run import check_device
from robret_lib.attacks.search.ball import Norm
from robret_lib.checks import Finding, evaluation
from robret_lib.checks.model import without_tanh
from robret_lib.data import RetrievalData, as_float
from robret_lib.hamming import average_precisions, codes_of
from robret_lib.models import HashModel, embed
from robret_lib.scores import doubts
from robret_lib.scores.checkpoint import Checkpoint, blocks, rows_of
from robret_lib.scores.map_suite import attack_named, map_suite, one_label_each
from robret_lib.scores.queries import Queries
from robret_lib.scores.robust_recall import check_arguments
from robret_lib.scores.suite import Effort, Stage

HALF = 0.5
"""A query still stands while its average precision is above this share of the benign one: for `checks`, not scores."""

CHUNK = 256
"""Queries at once where center codes are made of all known items; decides memory, not the result."""


@dataclass(frozen=True, eq=False, repr=False)
class RobustMap:
    """What `robust_map` found.

    Two models, or two radii, are compared on the same queries, one by one: by the mean of the differences of
    ``precisions``, whose standard error is smaller than `standard_error` suggests.

    Args:
        map: Mean over all queries of the smallest average precision under any attack, in percent.
        benign: MAP without an attack.
        bound: MAP of the negative of each query's center code, for which the center code attack makes: what it would
            leave if every bit could be set. A mark, no lower bound of all attacks: other codes may leave less.
        map_under: By attack the MAP that it leaves alone, in percent; who is not attacked by it stays as it is.
        worst_for: By attack the percent of queries for which it is the worst, the first of equals; "none" where no
            attack makes a ranking worse.
        precisions: Of each query the smallest average precision, in percent, float64 ``[n]``.
        images: Of each query the image that has it, float ``[n, C, H, W]``; the original where none is worse.
        passes: Forward passes per query that all attacks together spent.
        warnings: What makes the number doubtful, in words (`checks`); none for a sound evaluation.
    """

    map: float
    benign: float
    bound: float
    map_under: dict[str, float]
    worst_for: dict[str, float]
    precisions: Tensor
    images: Tensor
    passes: float
    warnings: tuple[str, ...]

    @property
    def standard_error(self) -> float:
        """Of `map` over the queries, in percent."""
        return self.precisions.std().item() / sqrt(len(self.precisions))

    def __repr__(self) -> str:
        most = sorted(self.worst_for.items(), key=lambda item: -item[1])[:3]
        lines = [
            f"MAP of {len(self.precisions)} queries: {self.benign:.1f} % before, {self.map:.1f} +- "
            f"{self.standard_error:.1f} % left, {self.bound:.1f} % by negative center codes; {self.passes:.1f} passes "
            "a query",
            "worst are " + "; ".join(f"{name}: for {percent:.1f} %" for name, percent in most),
            *self.warnings,
        ]
        return "\n".join(lines)


def robust_map(
    model: HashModel,
    data: RetrievalData,
    eps: float,
    norm: Norm = "linf",
    queries: int | Tensor | None = None,
    effort: Effort = "standard",
    seed: int = 0,
    surrogate: HashModel | None = None,
    top_k: int | None = None,
    known: Gallery | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> RobustMap:
    """MAP by Hamming distance that is left where each query meets the worst of a suite of attacks (`map_suite`).

    The analogue of `robust_recall` for hash codes, an upper bound of what a perfect attack would leave: a search of
    more passes than the suite has may leave less, also in the mean. Ties are averaged over their orders, and a query
    without a relevant item counts as 0, as in `hamming.hamming_map`. Masked gradients are looked for at effort
    "standard" and "high" for norm "linf", on a sample.

    Args:
        model: In [0, 1] pixels.
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        queries: None is all; a number n is the first n; or positions, int64 ``[n]``.
        effort: See `Effort`.
        seed: Of the random starts and of the items that are drawn.
        surrogate: Another hash model of the same images, from which attacks are transferred as well.
        top_k: Depth of the average precision; None is the whole gallery.
        known: Labeled codes of which the center code is made, as of the training set; None is the gallery.
        checkpoint: File to go on from if it exists, and to write after every attack on 1,000 queries.
        progress: Show a progress bar.

    Raises:
        ValueError: An impossible argument, a model without codes, known items without labels or with codes of another
            length, or a checkpoint of another evaluation.
        TypeError: Known items that are no `Gallery`.
    """
    check_arguments(eps, norm, effort)
    asked, its_gallery = Queries(model, data, queries), None
    check_hash_gallery(asked.gallery)
    center = attack_named("center code", top_k, known)
    if surrogate is not None:
        check_device(surrogate, asked.gallery, "surrogate")
        its_gallery = Gallery.of(surrogate, data.gallery.images, data.gallery.labels)
    one_label = one_label_each(known_items(known, asked.benign).labels)
    suite = map_suite(effort, eps, norm, top_k, known, surrogate, its_gallery, one_label)
    task = _Evaluation(asked, suite, center, norm == "linf" and eps >= 0.5)
    others = [] if surrogate is None else [surrogate]
    settings = {"eps": eps, "norm": norm, "effort": effort, "seed": seed, "top_k": top_k, "suite": task.names}
    fingerprint = asked.fingerprint(*others)
    if known is not None:
        fingerprint |= {"known codes": known.codes.cpu(), "known labels": known.labels.cpu()}
    kept = Checkpoint(Path(checkpoint), settings, fingerprint) if checkpoint else None
    if kept:
        task.resume(kept)
    with tqdm(unit=" passes", disable=not progress) as bar:
        for block, number in task.work_left():
            bar.total = bar.n + task.passes_left()
            bar.set_description(task.names[number], refresh=True)
            bar.update(task.attack(block, number, seed))
            if kept:
                task.save(kept, block)
    return task.outcome(doubts.of_model(model, asked.gallery))


class _Evaluation:
    """What was found for each query so far, and what is left to do."""

    KEPT = ("precisions", "done", "spent")

    def __init__(self, queries: Queries, suite: list[Stage], center: CenterCode, unlimited: bool) -> None:
        self.queries, self.suite, self.center = queries, suite, center
        self.unlimited = unlimited  # whether every image may be turned gray
        self.names = [stage.name for stage in suite]
        self.benign = self._precisions(codes_of(queries.embeddings))
        self.precisions = torch.full((len(queries), len(suite)), torch.inf, dtype=torch.float64)  # under each attack
        self.images = as_float(queries.images).clone()
        self.done: list[list[int]] = []
        self.spent = 0.0

    def work_left(self) -> Iterator[tuple[int, int]]:
        """Blocks of queries, and the numbers of the attacks on them."""
        for block in range(blocks(len(self.queries))):
            for number in range(len(self.suite)):
                if [block, number] not in self.done:
                    yield block, number

    def passes_left(self) -> int:
        return sum(self.suite[number].passes * len(self._rows(block, number)) for block, number in self.work_left())

    def attack(self, block: int, number: int, seed: int) -> float:
        """Attack the queries of a block; gives the passes that it took."""
        rows, spent = self._rows(block, number), 0.0
        if len(rows):
            generator = torch.Generator().manual_seed(2**20 * seed + 2**10 * number + block)
            result = self.queries.attacked(*self.suite[number][1:3], generator, rows)
            found = result.measured["average_precision"].double().cpu()
            worse = found < torch.minimum(self.benign[rows], self.precisions[rows].amin(1))
            self.images[rows[worse]] = result.images[worse]
            self.precisions[rows, number] = found
            spent = result.passes * len(rows)
        self.done.append([block, number])
        self.spent += spent
        return spent

    def save(self, checkpoint: Checkpoint, block: int) -> None:
        checkpoint.save_images(block, self.images[rows_of(block)])
        checkpoint.save({name: getattr(self, name) for name in self.KEPT})

    def resume(self, checkpoint: Checkpoint) -> None:
        for name, value in (checkpoint.load(set(self.KEPT)) or {}).items():
            setattr(self, name, value)
        for block in {block for block, _ in self.done}:
            self.images[rows_of(block)] = checkpoint.load_images(block)

    def outcome(self, of_model: tuple[str, ...]) -> RobustMap:
        least, by = self.precisions.min(1)
        worse, count = least < self.benign, len(self.queries)
        chosen = Counter(self.names[at] if is_worse else "none" for at, is_worse in zip(by, worse, strict=True))
        under = torch.where(self.precisions.isinf(), self.benign[:, None], self.precisions).mean(0).tolist()
        left = torch.minimum(least, self.benign)
        return RobustMap(
            map=left.mean().item(),
            benign=self.benign.mean().item(),
            bound=self._bound(),
            map_under=dict(zip(self.names, under, strict=True)),
            worst_for={name: 100 * chosen[name] / count for name in [*self.names, "none"]},
            precisions=left,
            images=self.images,
            passes=self.spent / count,
            warnings=of_model + doubts.said(self._findings(left)),
        )

    def _findings(self, left: Tensor) -> Iterator[Finding]:
        """What the outcomes say of the evaluation itself, and the outputs of the gallery of the network."""
        yield without_tanh(self.queries.gallery.embeddings)
        bits = self.queries.gallery.codes.shape[1]
        chance = self._precisions(torch.ones(len(self.queries), bits), equal=True)
        yield evaluation.benign_precision(self.benign, chance)
        for number, stage in enumerate(self.suite):
            made = self.precisions[:, number].isfinite()
            if stage.tells and made.any():
                before, after = self.precisions[made, :number].amin(1), self.precisions[made, number]
                yield evaluation.black_box(*(found > HALF * self.benign[made] for found in (before, after)))
            elif (good := made & (self.benign > chance)).any():
                yield evaluation.own_start(stage.name, self.benign[good], self.precisions[good, number])
        if self.unlimited:
            gray = embed(self.queries.model, torch.full_like(self.images[:1], 0.5))
            yield evaluation.gray_image(self._precisions(codes_of(gray).expand(len(left), -1)), left)

    def _bound(self) -> float:
        benign = self.queries.benign
        codes = [self.center.bound(benign[rows]) for rows in torch.arange(len(benign)).split(CHUNK)]
        return self._precisions(torch.cat(codes)).mean().item()

    def _precisions(self, codes: Tensor, equal: bool = False) -> Tensor:
        """In percent, of the queries with these codes ``[n, bits]``; equal, if the codes of all items were so, too."""
        gallery, labels = self.queries.gallery, self.queries.labels
        items = torch.ones_like(gallery.codes) if equal else gallery.codes
        given = codes.cpu(), items.cpu(), labels, gallery.labels.cpu()
        return 100 * average_precisions(*given, self.center.top_k, own=self.queries.own)

    def _rows(self, block: int, number: int) -> Tensor:
        """The queries of a block on which an attack is made: all, or a sample of those that still stand."""
        rows = torch.arange(len(self.queries))[rows_of(block)]
        if self.suite[number].sample is None:
            return rows
        standing = self.precisions[rows, :number].amin(1) > HALF * self.benign[rows]
        return rows[standing][: self.suite[number].sample]
