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
from robret_lib.attacks.search.ball import Norm, check_norm
from robret_lib.data import RetrievalData, as_float
from robret_lib.files import save_atomically
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

    The suite: the R@1 margin with hard and with soft minima (`attacks.embedding.Margin`), from the image and from
    random starts, and the embedding shift, all by `AutoPGD`; with a surrogate also the soft margin transferred from
    it. As AutoAttack does for classifiers (Croce and Hein 2020), a query counts as robust only where all fail; it is
    an upper bound of what a perfect attack would leave. Only queries that are right to begin with are attacked.

    Args:
        model: In [0, 1] pixels.
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        eps: Radius, in pixel units.
        norm: Of the perturbation.
        queries: None is all; a number n is the first n; or positions, int ``[n]``.
        effort: See `Effort`.
        seed: Of the random starts.
        surrogate: Another model of the same images.
        checkpoint: File to go on from if it exists, and to write after every attack on 1,000 queries.
        progress: Show a progress bar.

    Raises:
        ValueError: An impossible argument, or a checkpoint of another evaluation.
    """
    _check(eps, norm, effort)
    chosen = _positions(queries, len(data.query))
    suite = _suite(eps, norm, BUDGETS[effort], surrogate)
    state = _Evaluation(model, data, chosen, list(suite))
    about = {"eps": eps, "norm": norm, "effort": effort, "seed": seed, "suite": list(suite)}
    state.resume(checkpoint, about)
    work = list(state.work_left())
    for block, name in tqdm(work, disable=not progress):
        generator = torch.Generator().manual_seed(2**20 * seed + 2**10 * state.names.index(name) + block)
        state.attack(block, name, *suite[name], generator)
        if checkpoint:
            save_atomically(state.as_dict() | {"about": about}, Path(checkpoint))
    return state.outcome()


def _suite(
    eps: float, norm: Norm, budget: _Budget, surrogate: EmbeddingModel | None
) -> dict[str, tuple[Attack, Search]]:
    search = AutoPGD(eps, budget.steps, norm)
    losses = {"hard margin": Margin(temperature=0), "soft margin": Margin()}
    suite: dict[str, tuple[Attack, Search]] = {name: (loss, search) for name, loss in losses.items()}
    if budget.random_starts:
        again = AutoPGD(eps, budget.steps, norm, restarts=budget.random_starts, random_start=True)
        suite |= {f"{name}, random starts": (loss, again) for name, loss in losses.items()}
    suite["embedding shift"] = (EmbeddingShift(), search)
    if surrogate is not None:
        suite["soft margin, transferred"] = (Margin(), Transfer(surrogate, search))
    return suite


class _Evaluation:
    """The queries, what was found for each so far, and what is left to do."""

    def __init__(self, model: EmbeddingModel, data: RetrievalData, chosen: Tensor, names: list[str]) -> None:
        self.model, self.names = model, names
        self.gallery = Gallery.of(model, data.gallery.images, data.gallery.labels)
        self.own = chosen if data.protocol.self_excluded else None
        self.labels = data.query.labels[chosen]
        self.originals = data.query.images[chosen]
        self.images = as_float(self.originals).clone()
        self.embeddings = embed(model, self.originals).cpu()
        self.right = self._is_right(self.originals)
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
        rows = torch.arange(block * BLOCK, min((block + 1) * BLOCK, len(self.images)))
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
        left = self.right & self._is_right(self.images)  # measured once more, on the images that are handed out
        return RobustRecall(
            recall_at_1=_percent(left),
            benign=_percent(self.right),
            broken_by={name: _percent(broken) for name, broken in self.broken.items()},
            images=self.images,
            passes=self.passes / len(self.images),
        )

    def as_dict(self) -> dict[str, Any]:
        kept = ("embeddings", "images", "standing", "broken", "done", "passes")
        return {name: getattr(self, name) for name in kept}

    def resume(self, checkpoint: Path | None, about: dict[str, Any]) -> None:
        if checkpoint is None or not Path(checkpoint).exists():
            return
        try:
            state = torch.load(checkpoint, weights_only=True)
            written_for, embeddings = state.pop("about"), state.pop("embeddings")
        except Exception as error:  # reading a damaged file can fail in any way
            raise ValueError(f"{checkpoint} is no checkpoint, or a damaged one: delete it to start anew") from error
        if written_for != about:
            raise ValueError(f"{checkpoint} was written with {written_for}, this evaluation is {about}: move it")
        same = embeddings.shape == self.embeddings.shape and torch.allclose(embeddings, self.embeddings, atol=1e-3)
        if not same:
            raise ValueError(f"{checkpoint} was written with another model or other queries: move it")
        for name, value in state.items():
            setattr(self, name, value)

    def _is_right(self, images: Tensor) -> Tensor:
        own = False if self.own is None else self.own
        embeddings = embed(self.model, images)
        return hits_at_k(embeddings, self.gallery.embeddings, self.labels, self.gallery.labels, (1,), own)[1].cpu()


def _positions(queries: int | Tensor | None, available: int) -> Tensor:
    if queries is None:
        return torch.arange(available)
    if isinstance(queries, Tensor):
        if not len(queries) or queries.min() < 0 or queries.max() >= available:
            raise ValueError(f"queries: expected positions from 0 to {available - 1}, at least one")
        return queries.cpu()
    if not 1 <= queries <= available:
        raise ValueError(f"queries={queries}: expected 1 to {available}, positions, or None for all")
    return torch.arange(queries)


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()


def _check(eps: float, norm: str, effort: str) -> None:
    check_norm(norm)
    if not 0 <= eps < torch.inf or (norm == "linf" and eps > 1):
        raise ValueError(f"eps={eps}: expected pixel units, black is 0 and white 1; usual on photographs is 8/255")
    if effort not in get_args(Effort):
        raise ValueError(f"effort={effort!r}: expected one of {get_args(Effort)}")
