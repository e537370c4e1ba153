"""Scores: what is left of a search under the strongest attacks there are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from robret_lib import attacks
from robret_lib.attacks import Attack, AutoPGD, Gallery, Search, Transfer
from robret_lib.attacks.embedding import EmbeddingShift, Margin
from robret_lib.attacks.search.ball import Norm, check_length, check_norm
from robret_lib.data import RetrievalData, as_float
from robret_lib.files import written_whole
from robret_lib.metrics import hits_at_k
from robret_lib.models import EmbeddingModel, embed

Effort = Literal["quick", "standard", "thorough"]
"""How much an attacker may compute; 8 steps a descent and no random start, 32 and one, 100 and four."""

BLOCK = 1000
"""Queries between two checkpoints."""


class _Budget(NamedTuple):
    steps: int
    random_starts: int


BUDGETS: dict[Effort, _Budget] = {"quick": _Budget(8, 0), "standard": _Budget(32, 1), "thorough": _Budget(100, 4)}


@dataclass(frozen=True)
class RobustRecall:
    """What `robust_recall` found.

    Args:
        recall_at_1: Percent of the queries whose first answer is right under every attack.
        benign: The same without an attack: R@1.
        broken_by: By attack, the percent of all queries whose right first answer it makes wrong.
        images: The attacked queries, float ``[n, C, H, W]``: of each the first image that broke it, or the original
            where none did. Who doubts the score can search with them.
        passes: Forward passes per query that all attacks together spent, each but the last of a descent with its
            backward pass.
    """

    recall_at_1: float
    benign: float
    broken_by: dict[str, float]
    images: Tensor
    passes: float


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
    """R@1 that survives, per query, the worst of a suite of attacks on the query.

    The suite: the R@1 margin with hard and with soft minima (`attacks.embedding.Margin`) and the embedding shift, from
    the image and from random starts, all by `AutoPGD`; with a surrogate also the soft margin transferred from it. As
    AutoAttack does for classifiers (Croce and Hein 2020), a query counts as robust only where all fail; it is an upper
    bound of what a perfect attack would leave. Only queries that are right to begin with are attacked, and of each
    attack the image of smallest loss is judged.

    Args:
        model: In [0, 1] pixels.
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        queries: None is all; a number n is the first n; or positions, int64 ``[n]``.
        effort: See `Effort`.
        seed: Of the random starts.
        surrogate: Another model of the same images.
        checkpoint: File to go on from if it exists, and to write after every attack on 1,000 queries; the images lie
            beside it, a file for each 1,000.
        progress: Show a progress bar.

    Raises:
        ValueError: An impossible argument, or a checkpoint of another evaluation.
    """
    _check(eps, norm, effort)
    suite = _suite(eps, norm, BUDGETS[effort], surrogate)
    evaluation = _Evaluation(model, data, _positions(queries, len(data.query)), list(suite))
    settings = {"eps": eps, "norm": norm, "effort": effort, "seed": seed, "suite": list(suite)}
    store = _Store(Path(checkpoint), settings, _fingerprint(evaluation, surrogate)) if checkpoint else None
    if store:
        store.resume(evaluation)
    for block, name in tqdm(list(evaluation.work_left()), disable=not progress):
        generator = torch.Generator().manual_seed(2**20 * seed + 2**10 * evaluation.names.index(name) + block)
        evaluation.attack(block, name, *suite[name], generator)
        if store:
            store.save(evaluation, block)
    return evaluation.outcome()


def _suite(
    eps: float, norm: Norm, budget: _Budget, surrogate: EmbeddingModel | None
) -> dict[str, tuple[Attack, Search]]:
    search = AutoPGD(eps, budget.steps, norm)
    losses: dict[str, Attack] = {
        "hard margin": Margin(temperature=0),
        "soft margin": Margin(),
        "embedding shift": EmbeddingShift(),
    }
    suite: dict[str, tuple[Attack, Search]] = {name: (loss, search) for name, loss in losses.items()}
    if budget.random_starts:
        again = AutoPGD(eps, budget.steps, norm, restarts=budget.random_starts, random_start=True)
        suite |= {f"{name}, random starts": (loss, again) for name, loss in losses.items()}
    if surrogate is not None:
        suite["soft margin, transferred"] = (Margin(), Transfer(surrogate, search))
    return suite


class _Evaluation:
    """The queries, what was found for each so far, and what is left to do."""

    def __init__(self, model: EmbeddingModel, data: RetrievalData, chosen: Tensor, names: list[str]) -> None:
        self.model, self.names = model, names
        self.gallery = Gallery.of(model, data.gallery.images, data.gallery.labels)
        self.own = chosen if data.protocol.self_excluded else None
        self.labels = data.query.labels.cpu()[chosen]
        self.originals = data.query.images.cpu()[chosen]
        self.images = as_float(self.originals).clone()
        self.embeddings = embed(model, self.originals)
        self.right = self._is_right(self.embeddings)
        self.standing = self.right.clone()
        self.broken = {name: torch.zeros(len(chosen), dtype=torch.bool) for name in names}
        self.done: list[list[int]] = []
        self.passes = 0.0

    def work_left(self) -> Iterator[tuple[int, str]]:
        """Blocks of queries, and the names of the attacks on them."""
        for block in range(-(-len(self.images) // BLOCK)):
            for number, name in enumerate(self.names):
                if [block, number] not in self.done:
                    yield block, name

    def attack(self, block: int, name: str, attack: Attack, search: Search, generator: torch.Generator) -> None:
        rows = torch.arange(len(self.images))[rows_of(block)]
        rows = rows[self.right[rows]]
        if len(rows):
            own = None if self.own is None else self.own[rows]
            victims = self.originals[rows], self.gallery, search, own, self.labels[rows], generator
            result = attacks.run(attack, self.model, *victims)
            broken = result.measured["recall_at_1"] == 0
            first = broken & self.standing[rows]
            self.images[rows[first]] = result.images[first]
            self.standing[rows[first]] = False
            self.broken[name][rows] = broken
            self.passes += result.passes * len(rows)
        self.done.append([block, self.names.index(name)])

    def outcome(self) -> RobustRecall:
        left = self.right & self._is_right(embed(self.model, self.images))  # once more, on what is handed out
        return RobustRecall(
            recall_at_1=_percent(left),
            benign=_percent(self.right),
            broken_by={name: _percent(broken) for name, broken in self.broken.items()},
            images=self.images,
            passes=self.passes / len(self.images),
        )

    def _is_right(self, embeddings: Tensor) -> Tensor:
        own = False if self.own is None else self.own
        return hits_at_k(embeddings, self.gallery.embeddings, self.labels, self.gallery.labels, (1,), own)[1].cpu()


class _Store:
    """A checkpoint of an evaluation: what is known of each query in one file, the images beside it, block by block.

    Args:
        path: Of the first file.
        settings: The arguments that decide the result.
        fingerprint: What model, data and surrogate look like, see `_fingerprint`.
    """

    KEPT = ("standing", "broken", "done", "passes")

    def __init__(self, path: Path, settings: dict[str, Any], fingerprint: dict[str, Tensor]) -> None:
        self.path, self.settings, self.fingerprint = path, settings, fingerprint

    def save(self, evaluation: _Evaluation, block: int) -> None:
        """The images first: where only they were written, the attack is repeated and finds the same."""
        with written_whole(self._images_of(block)) as file:
            torch.save({"images": evaluation.images[rows_of(block)]}, file)
        state = {name: getattr(evaluation, name) for name in self.KEPT}
        with written_whole(self.path) as file:
            torch.save(state | {"settings": self.settings, "fingerprint": self.fingerprint}, file)

    def resume(self, evaluation: _Evaluation) -> None:
        if not self.path.exists():
            return
        state = self._read(self.path, {*self.KEPT, "settings", "fingerprint"})
        written_for, seen = state.pop("settings"), state.pop("fingerprint")
        if written_for != self.settings:
            about = f"was written with {written_for}, this evaluation is {self.settings}"
            raise ValueError(f"{self.path} {about}: move it")
        different = [name for name, expected in self.fingerprint.items() if not _alike(seen.get(name), expected)]
        if different:
            raise ValueError(f"{self.path} was written with other {', '.join(different)}: move it")
        for name, value in state.items():
            setattr(evaluation, name, value)
        for block in {block for block, _ in evaluation.done}:
            evaluation.images[rows_of(block)] = self._read(self._images_of(block), {"images"})["images"]

    def _images_of(self, block: int) -> Path:
        return self.path.with_name(f"{self.path.name}.images{block}")

    def _read(self, path: Path, names: set[str]) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True)
            return {name: state[name] for name in names}
        except PermissionError:  # what may not be read is not damaged
            raise
        except Exception as error:  # reading a damaged file can fail in any way
            message = f"{path} is no checkpoint, or a damaged one: delete it and {self.path} to start anew"
            raise ValueError(message) from error


def rows_of(block: int) -> slice:
    """The queries of a block."""
    return slice(block * BLOCK, (block + 1) * BLOCK)


def _fingerprint(evaluation: _Evaluation, surrogate: EmbeddingModel | None) -> dict[str, Tensor]:
    """By what a checkpoint knows its evaluation again: what decides the result, in little."""
    gallery, found = evaluation.gallery, evaluation.embeddings
    fingerprint = {
        "queries or model": found.cpu(),
        "gallery": gallery.distances_from(found[:1])[0].cpu(),
        "labels of queries": evaluation.labels,
        "labels of gallery": gallery.labels.cpu(),
        "positions": torch.zeros(0, dtype=torch.int64) if evaluation.own is None else evaluation.own,
    }
    if surrogate is not None:
        fingerprint["surrogate"] = embed(surrogate, evaluation.originals[:8]).cpu()
    return fingerprint


def _alike(seen: Tensor | None, expected: Tensor) -> bool:
    """Equal, but for the last digits of what a GPU computes."""
    if seen is None or seen.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(seen, expected)
    return bool((seen - expected).norm() <= 1e-2 * expected.norm())


def _positions(queries: int | Tensor | None, available: int) -> Tensor:
    expected = f"expected 1 to {available}, positions below {available}, int64 [n], or None for all"
    if queries is None:
        return torch.arange(available)
    if isinstance(queries, int) and not isinstance(queries, bool):
        if not 1 <= queries <= available:
            raise ValueError(f"queries={queries}: {expected}")
        return torch.arange(queries)
    if not isinstance(queries, Tensor) or queries.dtype not in (torch.int64, torch.int32) or queries.ndim != 1:
        raise ValueError(f"queries={queries!r}: {expected}")
    if not len(queries) or queries.min() < 0 or queries.max() >= available:
        raise ValueError(f"queries with {len(queries)} positions: {expected}, at least one")
    return queries.cpu()


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()


def _check(eps: float, norm: str, effort: str) -> None:
    check_norm(norm)
    check_length("eps", eps, norm)
    if effort not in get_args(Effort):
        raise ValueError(f"effort={effort!r}: expected one of {get_args(Effort)}")
