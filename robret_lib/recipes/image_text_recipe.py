"""What a recipe of a network of images and texts says; the twin of `hash_recipe.HashRecipe`."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from robret_lib.attacks.attack import check_mode
from robret_lib.cross_modal.ssah import Pairwise
from robret_lib.data.bag_of_words import Tokens
from robret_lib.fields import check_count, check_number, check_share
from robret_lib.mining import Mode
from robret_lib.training import Optimizer, Schedule

ImageTextName = Literal["dcmh", "ssah"]
"""`cross_modal.DCMH` and `cross_modal.SSAH`."""

ImageTextDefenseName = Literal["center_guided"]
"""`cross_modal.CenterGuidedPairs`."""


@dataclass(frozen=True)
class ImageTextRecipe:
    """Everything that decides the weights of a network of images and texts, besides the data and the code.

    Args:
        backbone: Of images, as in `models.build`.
        bits: Of a code.
        method: See `ImageTextName`.
        words: Entries of a bag at most: the commonest words of the training texts.
        tokens: See `data.bag_of_words.Tokens`.
        hidden: Units of the network of texts, 8,192 in DCMH and 4,096 in SSAH.
        pairwise: Of SSAH alone, see `cross_modal.ssah.Pairwise`.
        mode: See `cross_modal.DCMH` and `cross_modal.SSAH`.
        steps, batch, lr, optimizer, milestones, weight_decay, seed: As in `training.Schedule`; the seed draws the
            initial weights too, with a defense those of its origin.
        generation, pretrained, crop: As in `recipe.Recipe`.
        defense: See `ImageTextDefenseName`; None is the loss alone.
        origin: A defense tunes the network of this recipe, which is trained first.
        eps, inner_step, inner_steps: Of the attack on images inside of the defense, as in `HashRecipe`.
        flips: Of that on texts: how many words are changed.
        adversarial_weight: Of what attacked codes cost.

    Raises:
        ValueError: A name nobody knows, an impossible number, a form of a loss that has one only; a defense without an
            origin of the same network and loss, or without an attack; or what only a defense has, without one.
    """

    backbone: str
    bits: int
    method: ImageTextName
    steps: int
    batch: int
    words: int = 1_000
    tokens: Tokens = "words"
    hidden: int = 8_192
    pairwise: Pairwise = "likelihood"
    lr: float = 1e-4
    optimizer: Optimizer = "adam"
    milestones: tuple[float, ...] = ()
    weight_decay: float = 0.0
    seed: int = 0
    generation: int | None = None
    pretrained: bool = False
    crop: int = 0
    defense: ImageTextDefenseName | None = None
    origin: "ImageTextRecipe | None" = None
    eps: float = 0.0
    inner_step: float = 0.0
    inner_steps: int = 0
    flips: int = 0
    adversarial_weight: float = 1.0
    mode: Mode = "fixed"

    def __post_init__(self) -> None:
        _ = self.schedule  # which checks its own
        for name in ("bits", "words", "hidden"):
            check_count(name, getattr(self, name))
        check_count("crop", self.crop, 0)
        for name, known in (("method", ImageTextName), ("tokens", Tokens), ("pairwise", Pairwise)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {get_args(known)}")
        if self.method != "ssah" and self.pairwise != ImageTextRecipe.pairwise:
            raise ValueError(f"pairwise={self.pairwise!r} with method={self.method!r}, which has one form only")
        check_mode(self.mode)
        self._check_defense()

    def _check_defense(self) -> None:
        if self.defense is None:
            for field in fields(self):
                if field.name in OF_A_DEFENSE and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name}={getattr(self, field.name)!r} without a defense that looks at it")
            return
        if self.defense not in get_args(ImageTextDefenseName):
            raise ValueError(f"defense={self.defense!r}: expected one of {get_args(ImageTextDefenseName)}, or None")
        for name in ("inner_steps", "flips"):
            check_count(name, getattr(self, name))
        for name in ("eps", "inner_step"):
            check_share(name, getattr(self, name))
            check_number(name, getattr(self, name), above=0)
        check_number("adversarial_weight", self.adversarial_weight, least=0)
        if self.pretrained:
            raise ValueError("pretrained=True with a defense, which begins with the weights of its origin")
        if not isinstance(self.origin, ImageTextRecipe):
            given = f"defense={self.defense!r} with an origin of type {type(self.origin).__name__}"
            raise ValueError(f"{given}: expected the ImageTextRecipe of the network that it tunes")
        for name in OF_A_NETWORK:
            own, of_origin = getattr(self, name), getattr(self.origin, name)
            if own != of_origin:
                raise ValueError(f"{name}={own!r} with an origin of {name}={of_origin!r}: expected the same")

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
            milestones=self.milestones,
        )


OF_A_DEFENSE = ("origin", "eps", "inner_step", "inner_steps", "flips", "adversarial_weight")
"""Fields that nothing but a defense looks at."""

OF_A_NETWORK = ("backbone", "bits", "method", "words", "tokens", "hidden", "pairwise", "mode")
"""Fields that a defended network shares with its origin."""
