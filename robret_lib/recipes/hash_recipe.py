"""What a recipe of a hash network says; the twin of `recipe.Recipe`."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from robret_lib.fields import check_count
from robret_lib.hashing.dpsh import Source
from robret_lib.models import Distance
from robret_lib.training import Optimizer, Schedule

HashingName = Literal[
    "dph", "dpsh", "hashnet", "csq", "dsdh", "dch", "greedyhash", "dpn", "orthohash", "hswd", "csq_c", "dsdh_c"
]
WITH_SOURCES: tuple[HashingName, ...] = ("dpsh", "hashnet", "csq", "greedyhash")
"""Losses in which the published codes differ."""


@dataclass(frozen=True)
class HashRecipe:
    """Everything that decides the weights of a hash network, besides the data and the code.

    Args:
        backbone: As in `models.build`.
        bits: Of a code.
        method: A loss of `hashing`; "hswd", "csq_c" and "dsdh_c" are HashNet, CSQ and DSDH with the quantizer of SAAT.
        source: See `hashing.dpsh.Source`; of `WITH_SOURCES` alone.
        steps, batch, lr, optimizer, momentum, milestones, weight_decay, seed: As in `training.Schedule`; the seed draws
            the initial weights and the centers too.
        generation, pretrained, crop: As in `recipe.Recipe`.

    Raises:
        ValueError: A name nobody knows, an impossible number, or a source where all are the same.
    """

    backbone: str
    bits: int
    method: HashingName
    steps: int
    batch: int
    source: Source = "deephash"
    lr: float = 3e-4
    optimizer: Optimizer = "rmsprop"
    momentum: float = 0.0
    milestones: tuple[float, ...] = ()
    weight_decay: float = 1e-5
    seed: int = 0
    generation: int | None = None
    pretrained: bool = False
    crop: int = 0

    distance: ClassVar[Distance] = "H"
    defense: ClassVar[None] = None
    origin: ClassVar[None] = None

    def __post_init__(self) -> None:
        _ = self.schedule  # which checks its own
        check_count("bits", self.bits)
        check_count("crop", self.crop, 0)
        for name, known in (("method", HashingName), ("source", Source)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {get_args(known)}")
        if self.source != HashRecipe.source and self.method not in WITH_SOURCES:
            raise ValueError(f"source={self.source!r} with method={self.method!r}, in which all sources agree")

    @property
    def embedding_dim(self) -> int:
        """Outputs of the network, one for each bit."""
        return self.bits

    @property
    def schedule(self) -> Schedule:
        """Of the training."""
        return Schedule(
            self.steps,
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            seed=self.seed,
            optimizer=self.optimizer,
            momentum=self.momentum,
            milestones=self.milestones,
        )
