"""What a recipe says: everything that decides the weights of a model, besides the data and the code."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

from robret_lib import mining, models
from robret_lib.attacks.attack import check_mode
from robret_lib.fields import check_count, check_number, check_share
from robret_lib.training import Schedule

DefenseName = Literal["est", "ses", "rest", "act", "min_max", "ramd", "panum", "hm", "ca_tride", "fare", "neighborhood"]
SamplerName = Literal["random", "semihard", "softhard", "distance", "hard"]
DestinationName = Literal["gradual", "squared", "root", "benign", "boosted"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the data and the code.

    Args:
        backbone, embedding_dim, distance: As in `models.build`.
        sampler: Name of a sampler of `mining`.
        steps, pairs, lr, weight_decay, seed: As in `training.Schedule`; the seed draws the initial weights too.
        generation: Of the code, for a model that takes hours to train; None takes the code itself.
        defense: What is minimized in place of the triplet loss, a module of `defenses`; None is the triplet loss.
        eps, inner_step, inner_steps: Of the attack inside of the defense, see `attacks.PGD`; in pixel units.
        drawn_radius: Whether the attack gets a radius of its own for each image, see `defenses.DrawnRadius`.
        destination: Of "hm": g_LGA is "gradual", g_2 "squared", g_1/2 "root", g_B "boosted"; a number is
            `defenses.Constant`.
        invariance: Of "hm", the weight of its intra-class structure (ICS), see `defenses.HardnessManipulation`.
        sharpness: Of "ca_tride", see `defenses.CollapseAwareTriplets`.
        origin: The training goes on from the model of this recipe, which is trained first; None begins anew.
        temperature, margin, clean_weight, ramp: Of "neighborhood", see `defenses.KeptNeighborhood`.
        decay: As in `training.Schedule`.
        mode: Of the sampler and the defense, see `mining.Mode`.
        pretrained: Whether it begins with ImageNet weights, see `models.build`.
        crop: Side in pixels of the random crops that it learns on, mirrored or not; 0 takes images as they are.
        watched_eps: At which radius robust recall joins the history; 0 leaves it out.

    Raises:
        ValueError: A name nobody knows, or an impossible number; a defense without an attack, or an attack without a
            defense; a field that this defense does not read; an origin whose weights do not fit, or none where the
            defense needs it. What only a network or an objective can tell, such as an unknown backbone or a sampler for
            another distance, is an error of `trained`, before it trains.
    """

    backbone: str
    embedding_dim: int
    steps: int
    pairs: int
    distance: models.Distance = "N"
    sampler: SamplerName = "random"
    lr: float = 1e-3
    weight_decay: float = 1e-7
    seed: int = 0
    generation: int | None = None
    defense: DefenseName | None = None
    eps: float = 0.0
    inner_step: float = 0.0
    inner_steps: int = 0
    drawn_radius: bool = False
    destination: DestinationName | float = "gradual"
    invariance: float = 0.0
    sharpness: float = 10.0
    origin: "Recipe | None" = None
    watched_eps: float = 0.0
    temperature: float = 0.05
    margin: float = 0.2
    clean_weight: float = 0.5
    ramp: float = 0.5
    decay: float = 0.0
    mode: mining.Mode = "fixed"
    pretrained: bool = False
    crop: int = 0

    @property
    def schedule(self) -> Schedule:
        """Of the training."""
        return Schedule(self.steps, self.pairs, self.lr, self.weight_decay, self.seed, self.decay)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_names()
        self._check_defense()
        self._check_origin()

    def _check_numbers(self) -> None:
        _ = self.schedule  # which checks its own
        for name, least in (("embedding_dim", 1), ("inner_steps", 0), ("crop", 0)):
            check_count(name, getattr(self, name), least)
        for name in ("inner_step", "invariance", "sharpness", "margin", "clean_weight"):
            check_number(name, getattr(self, name), least=0)
        for name in ("eps", "watched_eps", "ramp"):
            check_share(name, getattr(self, name))
        check_number("temperature", self.temperature, above=0)
        if not isinstance(self.destination, str):
            check_number("destination", self.destination)

    def _check_names(self) -> None:
        check_mode(self.mode)
        if self.distance == "H":
            raise ValueError('distance="H": expected "N", "E" or "C"; codes are learned by a HashRecipe')
        if self.distance not in get_args(models.Distance):
            raise ValueError(f"distance={self.distance!r}: expected one of {get_args(models.Distance)}")
        if self.defense not in (None, *get_args(DefenseName)):
            raise ValueError(f"defense={self.defense!r}: expected one of {get_args(DefenseName)}, or None")
        if self.sampler not in get_args(SamplerName):
            raise ValueError(f"sampler={self.sampler!r}: expected one of {get_args(SamplerName)}")
        if isinstance(self.destination, str) and self.destination not in get_args(DestinationName):
            raise ValueError(
                f"destination={self.destination!r}: expected one of {get_args(DestinationName)}, or a number"
            )

    def _check_defense(self) -> None:
        attack = {name: getattr(self, name) for name in ("eps", "inner_step", "inner_steps")}
        if self.defense and min(attack.values()) <= 0:
            raise ValueError(f"defense={self.defense!r} with {attack}: expected numbers above 0")
        for field in fields(self):
            value, readers = getattr(self, field.name), READ_BY.get(field.name)
            if readers is not None and value != field.default and self.defense not in readers:
                raise ValueError(f"{field.name}={value!r} with defense={self.defense!r}, which does not look at it")
        if self.defense == "neighborhood" and self.distance == "E":
            raise ValueError('defense="neighborhood" with distance="E": expected "N" or "C"')

    def _check_origin(self) -> None:
        if self.defense == "fare" and self.origin is None:
            raise ValueError('defense="fare" tunes a network: expected an origin, the recipe of that network')
        for name in OF_A_MODEL if self.origin else ():
            own, of_origin = getattr(self, name), getattr(self.origin, name)
            if own != of_origin:
                raise ValueError(f"{name}={own!r} with an origin of {name}={of_origin!r}: expected the same")


@dataclass(frozen=True)
class Whitened:
    """A network with ImageNet weights, its trunk left as it is, its head fitted by `whitening.learned_whitening`.

    Nothing in it is random.

    Args:
        backbone, embedding_dim, distance: As in `models.build`.
        shrinkage: As in `whitening.learned_whitening`.
    """

    backbone: str
    embedding_dim: int
    distance: models.Distance = "N"
    shrinkage: float = 1.0

    generation: ClassVar[None] = None
    defense: ClassVar[None] = None
    origin: ClassVar[None] = None


_DEFENSES: tuple[DefenseName, ...] = get_args(DefenseName)

READ_BY: dict[str, tuple[DefenseName | None, ...]] = {
    "sampler": (None, *(name for name in _DEFENSES if name not in ("ca_tride", "fare", "neighborhood"))),
    "mode": (None, *(name for name in _DEFENSES if name not in ("panum", "fare", "neighborhood"))),
    "eps": _DEFENSES,
    "inner_step": _DEFENSES,
    "inner_steps": _DEFENSES,
    "drawn_radius": tuple(name for name in _DEFENSES if name != "ca_tride"),
    "destination": ("hm",),
    "invariance": ("hm",),
    "sharpness": ("ca_tride",),
    "temperature": ("neighborhood",),
    "margin": ("neighborhood",),
    "clean_weight": ("neighborhood",),
    "ramp": ("neighborhood",),
}
"""Which defenses look at a field that not all do."""

OF_A_MODEL = ("backbone", "embedding_dim", "distance")
"""The fields that a recipe shares with its origin."""

ADDED_LATER: dict[str, object] = {
    "generation": None,
    "defense": None,
    "eps": 0.0,
    "inner_step": 0.0,
    "inner_steps": 0,
    "drawn_radius": False,
    "destination": "gradual",
    "invariance": 0.0,
    "sharpness": 10.0,
    "origin": None,
    "watched_eps": 0.0,
    "temperature": 0.05,
    "margin": 0.2,
    "clean_weight": 0.5,
    "ramp": 0.5,
    "decay": 0.0,
    "mode": "fixed",
    "pretrained": False,
    "crop": 0,
    "augmented": True,
    "hashing_weight": 1.0,
    "adversarial_weight": 1.0,
    "quantization": 0.0,
}
"""Fields of `Recipe` and `HashRecipe` that came after models had been kept, with what was true before.

Written down here, since a default may change; a field that has this value is not part of a model's name.
"""
