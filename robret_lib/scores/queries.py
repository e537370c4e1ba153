"""Who asks: the chosen queries of a data set, the gallery that they search, and whether the first answer is right."""

import torch
from torch import Tensor

from robret_lib import attacks
from robret_lib.attacks import Attack, Gallery, Result, Search
from robret_lib.data import RetrievalData, relevance
from robret_lib.metrics import hits_at_k
from robret_lib.models import EmbeddingModel, embed


class Queries:
    """The n queries of an evaluation.

    Args:
        model: In [0, 1] pixels.
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        chosen: None is all; a number n is the first n; or positions, int64 ``[n]``.

    Raises:
        ValueError: Positions that do not exist.
    """

    def __init__(self, model: EmbeddingModel, data: RetrievalData, chosen: int | Tensor | None) -> None:
        positions = _positions(chosen, len(data.query))
        self.model = model
        self.gallery = Gallery.of(model, data.gallery.images, data.gallery.labels)
        self.own = positions if data.protocol.self_excluded else None
        self.labels = data.query.labels.cpu()[positions]
        self.images = data.query.images.cpu()[positions]
        self.embeddings = embed(model, self.images)

    def __len__(self) -> int:
        return len(self.images)

    def attacked(
        self, attack: Attack, search: Search, generator: torch.Generator, rows: Tensor | None = None
    ) -> Result:
        """The result of `attacks.run` on all queries, or on some rows ``[B]``."""
        rows = torch.arange(len(self)) if rows is None else rows
        own = None if self.own is None else self.own[rows]
        victims = self.images[rows], self.gallery, search, own, self.labels[rows], generator
        return attacks.run(attack, self.model, *victims)

    def right(self, embeddings: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Whether the first answers to embeddings ``[B, D]`` have a class of the queries at ``rows``, bool ``[B]``."""
        own = False if self.own is None else self.own[rows]
        return hits_at_k(embeddings, self.gallery.embeddings, self.labels[rows], self.gallery.labels, (1,), own)[
            1
        ].cpu()

    def relevant_to(self, rows: Tensor, chunk: int = 1024) -> Tensor:
        """To how many of the queries at ``rows [B]`` each item is a right answer: int64 ``[N]``."""
        counts = torch.zeros(len(self.gallery), dtype=torch.int64)
        for part in rows.split(chunk):
            right = relevance(self.labels[part], self.gallery.labels.cpu())
            if self.own is not None:
                right.scatter_(1, self.own[part, None], False)
            counts += right.sum(0)
        return counts

    def fingerprint(self, *surrogates: EmbeddingModel) -> dict[str, Tensor]:
        """By what a checkpoint knows its evaluation again: what decides the result, in little."""
        fingerprint = {
            "queries or model": self.embeddings.cpu(),
            "gallery": self.gallery.distances_from(self.embeddings[:1])[0].cpu(),
            "labels of queries": self.labels,
            "labels of gallery": self.gallery.labels.cpu(),
            "positions": torch.zeros(0, dtype=torch.int64) if self.own is None else self.own,
        }
        for number, surrogate in enumerate(surrogates):
            fingerprint[f"surrogate {number + 1}"] = embed(surrogate, self.images[:8]).cpu()
        return fingerprint


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
