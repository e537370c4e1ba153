"""What is wanted: the form of every attack, and what it is given of the benign side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from robret_lib.attacks.gallery import Gallery
from robret_lib.mining import Mode


@dataclass(frozen=True, eq=False)
class Benign:
    """How B images stand in the gallery before anything is attacked.

    Args:
        gallery: See `Gallery`.
        embeddings: Of the images, ``[B, D]``.
        own: Their gallery positions ``[B]`` where they are items, which are then never counted; else None.
        labels: int ``[B]`` or multi-hot ``[B, C]``, or None where no classes are known.
        attacked: Where this is the space of a surrogate, the same images in that of the attacked network.
    """

    gallery: Gallery
    embeddings: Tensor
    own: Tensor | None = None
    labels: Tensor | None = None
    attacked: "Benign | None" = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Tensor) -> "Benign":
        own, labels = (None if given is None else given[rows] for given in (self.own, self.labels))
        return Benign(self.gallery, self.embeddings[rows], own, labels, self.attacked and self.attacked[rows])

    def nearest(self, size: int) -> Tensor:
        """Gallery positions ``[B, size]`` of the nearest items, in order, themselves excluded.

        As the attacked network sees them, also in the space of a surrogate: what is wanted is the same.
        """
        if self.attacked is not None:
            return self.attacked.nearest(size)
        return self.gallery.nearest_to(self.embeddings, size, self.own)

    def drawn(self, count: int, mode: Mode, generator: torch.Generator | None) -> Tensor:
        """Gallery positions ``[B, count]``, uniform with replacement; only "reference" draws the image itself too."""
        skipped = self.own is not None and mode == "fixed"
        drawn = torch.randint(len(self.gallery) - skipped, (len(self), count), generator=generator)
        drawn = drawn.to(self.embeddings.device)
        return drawn + (drawn >= self.own[:, None]) if skipped else drawn


class ListLoss(NamedTuple):
    """What an attack minimizes where it sees nothing but the answers of a search engine.

    Args:
        loss: ``[B]`` of lists ``[B, N]``: gallery positions, the nearest first.
        left_out: Gallery positions ``[B]`` that the engine does not show, one for each image; None leaves out none.
    """

    loss: Callable[[Tensor], Tensor]
    left_out: Tensor | None = None


class Plan(NamedTuple):
    """An attack on one batch.

    Args:
        loss: What the search minimizes: ``[B]`` of embeddings ``[B, D]``.
        measures: What is reported, by name: ``[B]`` each, of embeddings ``[B, D]``.
        answers: The same wish as a loss of lists, for `OnlyAnswers`; None where an attack has none.
        at: The loss to descend along when a share of the search is over, see `search.passes.Loss`; None where it is
            ``loss`` all the way.
        labels: Target labels, ``[B]`` or ``[B, C]``, for `Generated`; None where an attack has none.
        reached: Which images have all that is wanted, bool ``[B]`` of embeddings ``[B, D]``, for a search that stops
            there (`Descent`); None where there is always more to want.
    """

    loss: Callable[[Tensor], Tensor]
    measures: Callable[[Tensor], dict[str, Tensor]]
    answers: ListLoss | None = None
    at: Callable[[float], Callable[[Tensor], Tensor]] | None = None
    labels: Tensor | None = None
    reached: Callable[[Tensor], Tensor] | None = None


class Attack(Protocol):
    """What is wanted. Implementations are small frozen dataclasses; their fields are all there is to set."""

    @property
    def rows(self) -> int:
        """How many rows of distances to the gallery a plan keeps for each image."""
        ...

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor | None:
        """Gallery positions ``[B, m]``, drawn for all images at once, so that batches do not matter; None if none."""
        ...

    def plan(self, benign: Benign, targets: Tensor | None) -> Plan:
        """The attack on a batch; the same targets may be asked for in the space of another network."""
        ...


def check_mode(mode: str) -> None:
    """Raise a ValueError unless it is a `Mode`."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: expected 'fixed' or 'reference'")
