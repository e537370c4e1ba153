"""Who asks: the chosen queries of a data set, the gallery that they search, and whether the first answer is right."""

import hashlib
from itertools import chain

import torch
from torch import Tensor, nn

from robret_lib import attacks
from robret_lib.attacks import Attack, Gallery, Result, Search
from robret_lib.attacks.attack import Benign
from robret_lib.checks.evaluation import one_for_all
from robret_lib.checks.model import slopes_of
from robret_lib.data import RetrievalData, as_float, relevance
from robret_lib.metrics import hits_at_k
from robret_lib.models import EmbeddingModel, embed, frozen
from robret_lib.scores.checkpoint import alike

TRACED = 8
"""Of how many queries a checkpoint remembers the embedding and the gradient."""


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
        self.one_for_all = one_for_all(data)  # what chance gives

    def __len__(self) -> int:
        return len(self.images)

    @property
    def benign(self) -> Benign:
        """How they stand in the gallery before anything is attacked."""
        return Benign(self.gallery, self.embeddings, self.own, self.labels.to(self.embeddings.device))

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
            "images of queries": _in_little(self.images),
            "images of gallery": _in_little(self.gallery.images),
            "labels of queries": self.labels,
            "labels of gallery": self.gallery.labels.cpu(),
            "positions": torch.zeros(0, dtype=torch.int64) if self.own is None else self.own,
        }
        names = ["model", *(f"surrogate {number + 1}" for number in range(len(surrogates)))]
        for name, network in zip(names, (self.model, *surrogates), strict=True):
            fingerprint |= _traces_of(name, network, self.images[:TRACED])
        return fingerprint


def _in_little(images: Tensor, chunk: int = 1024) -> Tensor:
    """How far each image lies along a fixed direction, ``[N]``."""
    direction = torch.randn(images[0].numel(), generator=torch.Generator().manual_seed(0)).to(images.device)
    return torch.cat([as_float(part).flatten(1) @ direction for part in images.split(chunk)]).cpu()


def _traces_of(name: str, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Weights and buffers, and what the code around them makes of a few images, where it makes the same of them twice.

    The gradient too: a model whose gradient is masked has the weights and the embeddings of the one that is repaired.
    """

    def gradient(network: nn.Module, images: Tensor) -> Tensor:
        pixels = as_float(images.to(next(network.parameters(), images).device))
        with torch.inference_mode(False), frozen(network):
            slopes = slopes_of(network, pixels)
        return torch.zeros_like(pixels) if slopes is None else slopes.nan_to_num()

    traces = {f"weights of {name}": _digest(network)}
    for what, look in {"embeddings": embed, "gradient": gradient}.items():
        first, again = look(network, images), look(network, images)
        if alike(first, again):
            traces[f"{what} of {name}"] = first.cpu()
    return traces


def _digest(network: nn.Module) -> Tensor:
    """SHA-256 of parameters and buffers, uint8 ``[32]``."""
    digest = hashlib.sha256()
    for kept in chain(network.parameters(), network.buffers()):
        digest.update(kept.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


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
