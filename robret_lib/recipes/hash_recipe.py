"""What a recipe of a hash network says; the twin of `recipe.Recipe`."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from robret_lib.attacks.attack import check_mode
from robret_lib.fields import check_count, check_number, check_share
from robret_lib.hashing.dpsh import Source
from robret_lib.mining import Mode
from robret_lib.models import Distance
from robret_lib.training import Optimizer, Schedule

HashingName = Literal[
    "dph", "dpsh", "hashnet", "csq", "dsdh", "dch", "greedyhash", "dpn", "orthohash", "hswd", "csq_c", "dsdh_c"
]
WITH_SOURCES: tuple[HashingName, ...] = ("dpsh", "hashnet", "csq", "greedyhash")
"""Losses in which the published codes differ."""

HashDefenseName = Literal["atrdh", "cgat", "saat", "pairs", "prototypes"]
"""`defenses.PrototypeTargeted`, `CenterGuided`, `MainstayGuided`, `PairGuided` and `PrototypeGuided`."""


@dataclass(frozen=True)
class HashRecipe:
    """Everything that decides the weights of a hash network, besides the data and the code.

    Args:
        backbone: As in `models.build`.
        bits: Of a code.
        method: A loss of `hashing`; "hswd", "csq_c" and "dsdh_c" are HashNet, CSQ and DSDH with the quantizer of SAAT.
        source: See `hashing.dpsh.Source`; of `WITH_SOURCES` alone.
        steps, batch, lr, optimizer, momentum, milestones, weight_decay, seed: As in `training.Schedule`; the seed draws
            the initial weights and the centers too, with a defense those of its origin.
        generation, pretrained, crop: As in `recipe.Recipe`.
        augmented: Whether crops are random, and mirrored or not; else all are the middle.
        defense: See `HashDefenseName`; None is the loss alone.
        origin: A defense tunes the network of this recipe, which is trained first.
        eps, inner_step, inner_steps: Of the attack inside of the defense, see `attacks.PGD`; it begins anywhere in the
            ball. In pixel units.
        hashing_weight: Of the loss beside the defense, see `defenses.AttackedCodes`.
        adversarial_weight: Of what attacked codes cost, lambda there.
        quantization: Of their distance to binary ones, mu there.
        mode: Of the defense; "reference" of published ones alone. There the codes that are known before training are,
            for "cgat", those of random crops by a network with dropout, and, for "atrdh", none.

    Raises:
        ValueError: A name nobody knows, an impossible number, or a source where all are the same; a defense without an
            origin of the same network and loss, or without an attack; or what only a defense has, without one.
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
    augmented: bool = True
    defense: HashDefenseName | None = None
    origin: "HashRecipe | None" = None
    eps: float = 0.0
    inner_step: float = 0.0
    inner_steps: int = 0
    hashing_weight: float = 1.0
    adversarial_weight: float = 1.0
    quantization: float = 0.0
    mode: Mode = "fixed"

    distance: ClassVar[Distance] = "H"

    def __post_init__(self) -> None:
        _ = self.schedule  # which checks its own
        check_count("bits", self.bits)
        check_count("crop", self.crop, 0)
        check_mode(self.mode)
        for name, known in (("method", HashingName), ("source", Source)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {get_args(known)}")
        if not (self.augmented or self.crop):
            raise ValueError("augmented=False without a crop, which alone is random")
        if self.source != HashRecipe.source and self.method not in WITH_SOURCES:
            raise ValueError(f"source={self.source!r} with method={self.method!r}, in which all sources agree")
        self._check_defense()

    def _check_defense(self) -> None:
        if self.defense is None:
            for field in fields(self):
                if field.name in OF_A_DEFENSE and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name}={getattr(self, field.name)!r} without a defense that looks at it")
            return
        if self.defense not in get_args(HashDefenseName):
            raise ValueError(f"defense={self.defense!r}: expected one of {get_args(HashDefenseName)}, or None")
        check_count("inner_steps", self.inner_steps)
        for name in ("eps", "inner_step"):
            check_share(name, getattr(self, name))
            check_number(name, getattr(self, name), above=0)
        for name in ("hashing_weight", "adversarial_weight", "quantization"):
            check_number(name, getattr(self, name), least=0)
        if self.mode == "reference" and self.defense not in PUBLISHED:
            raise ValueError(f"mode='reference' with defense={self.defense!r}, which nobody has published")
        if self.pretrained:
            raise ValueError("pretrained=True with a defense, which begins with the weights of its origin")
        if not isinstance(self.origin, HashRecipe):
            given = f"defense={self.defense!r} with an origin of type {type(self.origin).__name__}"
            raise ValueError(f"{given}: expected the HashRecipe of the network that it tunes")
        for name in OF_A_NETWORK:
            own, of_origin = getattr(self, name), getattr(self.origin, name)
            if own != of_origin:
                raise ValueError(f"{name}={own!r} with an origin of {name}={of_origin!r}: expected the same")
        if self.method == "greedyhash" and self.source != "cgat":
            raise ValueError(
                f"defense={self.defense!r} of method='greedyhash': the classifier that it has learned is not kept with "
                "the network; source='cgat' has one that does not learn"
            )

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


OF_A_DEFENSE = (
    "origin",
    "eps",
    "inner_step",
    "inner_steps",
    "hashing_weight",
    "adversarial_weight",
    "quantization",
    "mode",
)
"""Fields that nothing but a defense looks at."""

PUBLISHED: tuple[HashDefenseName, ...] = ("atrdh", "cgat", "saat")
"""Defenses that have a mode "reference"."""

OF_A_NETWORK = ("backbone", "bits", "method", "source")
"""Fields that a defended network shares with its origin."""
