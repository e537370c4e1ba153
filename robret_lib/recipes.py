"""The models the chapters train, each from a recipe, trained once and kept for the next chapter.

What decides the weights is the recipe, the data and the code, so a model is filed under the three. Of the code, a
quick model takes `CODE` itself: whoever edits it never meets old weights. A model that took hours must outlive an edit
that changes no weight, so its recipe has a `generation` instead, a number that is raised by hand where one does; a test
(tests/test_recipes.py) trains a little, compares, and says when that is due.
"""

import ast
import hashlib
import inspect
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal, get_args

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from robret_lib import augmentation, distances, metrics, mining, models, objectives, training, whitening
from robret_lib.attacks.search import ball, passes, pgd
from robret_lib.data import RetrievalData, Split, center_cropped, data_root, load, retrieval_data
from robret_lib.defenses import (
    act,
    ca_tride,
    collapse,
    est,
    fare,
    hm,
    inner,
    memory,
    min_max,
    named,
    neighborhood,
    panum,
    radius,
    ramd,
    rest,
    ses,
)
from robret_lib.defenses.named import DefenseName
from robret_lib.files import one_at_a_time, written_whole
from robret_lib.scores import robust_recall

SamplerName = Literal["random", "semihard", "softhard", "distance", "hard"]


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
        hardness: Of "hm": the constant that the attack makes for, see `defenses.Constant`; None is `defenses.Gradual`.
        invariance: Of "hm", see `defenses.HardnessManipulation`.
        sharpness: Of "ca_tride", see `defenses.CollapseAwareTriplets`.
        origin: The training goes on from the model of this recipe, which is trained first; None begins anew.
        temperature, clean_weight, ramp: Of "neighborhood", see `defenses.KeptNeighborhood`.
        decay: As in `training.Schedule`.
        mode: Of the sampler and the defense, see `mining.Mode`.
        pretrained: Whether it begins with ImageNet weights, see `models.build`.
        crop: Side in pixels of the random crops that it learns on, mirrored or not; 0 takes images as they are.
        watched_eps: At which radius robust recall joins the history; 0 leaves it out.

    Raises:
        ValueError: A defense of another name; an origin whose weights do not fit, or none where the defense needs it.
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
    hardness: float | None = None
    invariance: float = 0.0
    sharpness: float = 10.0
    origin: "Recipe | None" = None
    watched_eps: float = 0.0
    temperature: float = 0.1
    clean_weight: float = 0.5
    ramp: float = 0.5
    decay: float = 0.0
    mode: mining.Mode = "fixed"
    pretrained: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        if self.defense not in (None, *get_args(DefenseName)):
            raise ValueError(f"defense={self.defense!r}: expected one of {get_args(DefenseName)}, or None")
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


ADDED_LATER: dict[str, object] = {
    "generation": None,
    "defense": None,
    "eps": 0.0,
    "inner_step": 0.0,
    "inner_steps": 0,
    "drawn_radius": False,
    "hardness": None,
    "invariance": 0.0,
    "sharpness": 10.0,
    "origin": None,
    "watched_eps": 0.0,
    "temperature": 0.1,
    "clean_weight": 0.5,
    "ramp": 0.5,
    "decay": 0.0,
    "mode": "fixed",
    "pretrained": False,
    "crop": 0,
}
"""Fields of `Recipe` that came after models had been kept, with the value that says what was true before.

Written down here, since a default may change; a field that has this value is not part of a model's name.
"""

GENERATION = 1
"""Raise it, and with it train all full-scale models again, where an edit of the code changes their weights."""

FASHION_MNIST = {
    "quick": Recipe("c2f2_half", embedding_dim=128, steps=400, pairs=64),
    # RobRank `rc2f2`: 8 passes over 60,000 pairs
    "full": Recipe("c2f2", embedding_dim=512, steps=8 * 469, pairs=128, generation=GENERATION),
}

INNER_ATTACK = {
    "quick": {"eps": 77 / 255, "inner_step": 12 / 255, "inner_steps": 8},
    "full": {"eps": 77 / 255, "inner_step": 3 / 255, "inner_steps": 32},  # RobRank `rc2f2p`
}
"""Of the defenses of Fashion-MNIST. In eight steps of 12/255 an image can cross the ball as it can in 32 of 3/255."""

OF_A_DEFENSE: dict[DefenseName, dict[str, dict[str, object]]] = {
    "panum": {scale: {"sampler": "distance"} for scale in FASHION_MNIST},
    "hm": {scale: {"sampler": "softhard"} for scale in FASHION_MNIST},
    # published with 16 steps of an eighth of the radius, so that an image can cross the ball once the steps are long
    "ca_tride": {
        "quick": {"inner_step": 20 / 255},
        "full": {"inner_step": 77 / 8 / 255, "inner_steps": 16},
    },
}
"""What some of them need besides, by scale."""

OF_A_MODEL = ("backbone", "embedding_dim", "distance")
"""The fields that a recipe shares with its origin."""

WATCHED_EPS = 16 / 255
"""Where robust recall is watched while a defense of Fashion-MNIST trains: most published defenses differ there."""

WATCHED_QUERIES = 200
"""Of how many queries."""

OFFICIAL = {
    # RobRank `rres18`: 75 passes over pairs in two processes of 56 each; the learning rate is that of its code
    name: Recipe(
        "resnet18",
        embedding_dim=512,
        steps=75 * steps_per_pass,
        pairs=112,
        lr=1e-5,
        weight_decay=4e-4,
        generation=GENERATION,
        pretrained=True,
        crop=224,
    )
    for name, steps_per_pass in {"cub": 53, "cars": 72, "sop": 532}.items()
}
"""The undefended networks of the published tables of color photographs, by data set.

Images come as squares of 256 pixels and are cropped to 224. In one process, batches are as large as in the two
processes of the published runs, and triplets are drawn from all of a batch.
"""

SHARPNESS = {"cub": 10.0, "cars": 9.5, "sop": 2.0}
"""lambda of CA-TRIDE."""

IMAGE_SIZE = 256
"""Side in pixels of the squares that they are cropped from."""

OFFICIAL_ATTACK = {"eps": 8 / 255, "inner_step": 1 / 255, "inner_steps": 32}
"""Of the defenses of color photographs (RobRank `rres18p`; the paper of HM has 8 steps by default)."""

PHOTOGRAPHS = Whitened("efficientnet_lite0", embedding_dim=128)


@dataclass(frozen=True)
class Trained:
    """A trained model with its training curve and what it cost.

    Args:
        model: On the device asked for, in evaluation mode.
        history: See `training.train`; validation is Recall@1 in percent, key "recall_at_1", with a defense also
            `defenses.collapse.signs` of the gallery, and "robust_recall_at_1", what effort "quick" leaves of 200
            queries at the radius that is watched. Empty for `Whitened`.
        seconds: Wall time of the training (of its last part if it was resumed; that of the origin is not in it), also
            when it comes from the cache.
        device: What it was trained on.
    """

    model: models.EmbeddingModel
    history: list[dict[str, float]]
    seconds: float
    device: str


def fashion_mnist(scale: str, **changes: object) -> Recipe:
    """The chapters' recipe for Fashion-MNIST at "quick" or "full" scale, with the named fields changed.

    With a ``defense`` it has the inner attack of its scale, and whatever else the defense needs: "fare" an origin,
    which is the undefended model of the same backbone, embedding, distance and seed.
    """
    defense = changes.get("defense")
    if defense:
        its_own = OF_A_DEFENSE.get(defense, {}).get(scale, {})
        changes = INNER_ATTACK[scale] | {"watched_eps": WATCHED_EPS} | its_own | changes
    if defense == "fare" and "origin" not in changes:
        shared = {name: changes[name] for name in (*OF_A_MODEL, "seed") if name in changes}
        changes |= {"origin": replace(FASHION_MNIST[scale], **shared)}
    return replace(FASHION_MNIST[scale], **changes)


def official(name: str, **changes: object) -> Recipe:
    """The recipe of the published tables for "cub", "cars" or "sop", with the named fields changed.

    With a ``defense`` it has the published inner attack, too.

    Raises:
        ValueError: Another name.
    """
    if name not in OFFICIAL:
        raise ValueError(f"name={name!r}: expected one of {tuple(OFFICIAL)}")
    its_own = {}
    if defense := changes.get("defense"):
        its_own = OFFICIAL_ATTACK | {"watched_eps": OFFICIAL_ATTACK["eps"]}
        if defense in ("hm", "panum"):
            its_own["sampler"] = OF_A_DEFENSE[defense]["full"]["sampler"]
        if defense == "ca_tride":
            its_own |= {"inner_steps": 16, "sharpness": SHARPNESS[name]}
        if defense == "fare":
            its_own["origin"] = OFFICIAL[name]
    return replace(OFFICIAL[name], **(its_own | changes))


def published(name: str, scale: str, **changes: object) -> Recipe:
    """The recipe for a data set: `fashion_mnist`, or `official` at scale "full".

    Raises:
        ValueError: One of the official sets at another scale.
    """
    if name == "fashion-mnist":
        return fashion_mnist(scale, **changes)
    if scale != "full":
        raise ValueError(f'{name} at scale {scale!r}: expected scale="full"; only "fashion-mnist" has a quick one')
    return official(name, **changes)


def data_of(name: str, scale: str) -> RetrievalData:
    """The data that `published` trains and is judged on; of the official sets crops of 224 of 256 pixels."""
    if name == "fashion-mnist":
        return load(name, scale)
    return center_cropped(load(name, scale, size=IMAGE_SIZE), OFFICIAL[name].crop)


def photographs(**changes: object) -> Whitened:
    """The recipe for photographs, the chapters' and your own, with the named fields changed. It takes seconds."""
    return replace(PHOTOGRAPHS, **changes)


def trained(recipe: Recipe | Whitened, data: RetrievalData, device: torch.device, progress: bool = False) -> Trained:
    """The model of a recipe: from the cache if its weights are there, else trained, resuming where it was killed.

    A model that is there is only read, so the data folder may be read-only then.

    Args:
        recipe: See `Recipe` and `Whitened`.
        data: Trains on ``data.train``; validates on ``data.query`` against ``data.gallery``.
        device: To train on, and where the model ends up.
        progress: Show a progress bar while training.

    Warns:
        RuntimeWarning: The model collapsed, and when.

    Raises:
        ValueError: The file in the cache is damaged.
        OSError: The model is not there, and the folder cannot be written.
    """
    file = data_root() / "models" / f"{_key(recipe, data)}.safetensors"
    model = _initial_model(recipe).to(device)
    if not file.exists():
        try:
            with one_at_a_time(file.with_suffix(".lock")):  # a second process that wants the same model waits for it
                if not file.exists():
                    _train_into(file, model, recipe, data, progress)
        except OSError as error:
            error.add_note(f"There is no {file} yet; to train it, {data_root()} must be writable (see ROBRET_DATA).")
            raise
    result = _read(file, model.eval())
    step = collapse.collapsed_at(result.history)
    if step is not None:
        warnings.warn(
            f"this training collapsed: from step {step} on, all images have nearly the same embedding "
            f"(spread {result.history[-1]['spread']:.4f}, R@1 {result.history[-1]['recall_at_1']:.1f} %)",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def _initial_model(recipe: Recipe | Whitened) -> models.EmbeddingModel:
    """The model before training, float32 on the CPU, whatever the default type."""
    pretrained = isinstance(recipe, Whitened) or recipe.pretrained
    with _float32(), torch.random.fork_rng([]):
        torch.manual_seed(0 if isinstance(recipe, Whitened) else recipe.seed)
        return models.build(recipe.backbone, recipe.embedding_dim, pretrained, recipe.distance)


def _plan(recipe: Recipe, original: nn.Module | None = None) -> tuple[nn.Module, training.Schedule]:
    """What a recipe minimizes, and for how long; ``original`` is the model of its origin."""
    schedule = training.Schedule(recipe.steps, recipe.pairs, recipe.lr, recipe.weight_decay, recipe.seed, recipe.decay)
    if recipe.defense is None:
        sampler = getattr(mining, recipe.sampler)
        return objectives.TripletObjective(sampler, recipe.distance, recipe.mode), schedule
    return named.objective(recipe, original), schedule


def _train_into(
    file: Path, model: models.EmbeddingModel, recipe: Recipe | Whitened, data: RetrievalData, progress: bool
) -> None:
    checkpoint, device = file.with_suffix(".checkpoint"), next(model.parameters()).device
    original = trained(recipe.origin, data, device, progress).model if recipe.origin else None
    begun = time.monotonic()
    if isinstance(recipe, Whitened):
        _whiten(model, recipe, data.train)
        history = []
    else:
        history = _minimize(model, recipe, original, data, checkpoint, progress)
    about = {"history": history, "seconds": time.monotonic() - begun, "device": str(device)}
    _write(file, model, {"recipe": json.dumps(asdict(recipe)), "about": json.dumps(about)})
    checkpoint.unlink(missing_ok=True)


def _minimize(
    model: models.EmbeddingModel,
    recipe: Recipe,
    original: models.EmbeddingModel | None,
    data: RetrievalData,
    checkpoint: Path,
    progress: bool,
) -> list[dict[str, float]]:
    if original is not None:
        model.load_state_dict(original.state_dict())
    objective, schedule = _plan(recipe, original)
    return training.train(
        model,
        data.train,
        objective,
        schedule,
        checkpoint,
        validate=partial(_validated, recipe=recipe, data=data),
        validate_every=max(1, recipe.steps // 8),
        progress=progress,
        augment=partial(_cropped, size=recipe.crop) if recipe.crop else None,
    )


def _cropped(images: torch.Tensor, generator: torch.Generator, size: int) -> torch.Tensor:
    return augmentation.random_crop_and_flip(images, size, generator)


def _validated(model: models.EmbeddingModel, recipe: Recipe, data: RetrievalData) -> dict[str, float]:
    gallery = models.embed(model, data.gallery.images)
    own = data.protocol.self_excluded
    queries = gallery if own else models.embed(model, data.query.images)
    labels = data.query.labels, data.gallery.labels
    found = {"recall_at_1": metrics.recall_at_k(queries, gallery, *labels, k=(1,), self_excluded=own)[1]}
    if recipe.defense:
        found |= collapse.signs(gallery, data.gallery.labels, recipe.distance)
    if recipe.watched_eps:
        queries = min(WATCHED_QUERIES, len(data.query))
        result = robust_recall(model, data, recipe.watched_eps, queries=queries, effort="quick")
        found["robust_recall_at_1"] = result.recall_at_1
    return found


def _whiten(model: models.EmbeddingModel, recipe: Whitened, images: Split) -> None:
    """Replace what the last linear layer does, by what it was given for these images."""
    *_, head = (module for module in model.backbone.modules() if isinstance(module, nn.Linear))
    features: list[torch.Tensor] = []
    listening = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach().cpu()))
    models.embed(model, images.images, batch_size=64)
    listening.remove()
    fitted = whitening.learned_whitening(torch.cat(features), images.labels, recipe.embedding_dim, recipe.shrinkage)
    with torch.no_grad():
        for parameter, value in zip((head.weight, head.bias), fitted, strict=True):
            parameter.copy_(value)


def _write(file: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    with written_whole(file) as stream:
        stream.write(save(weights, metadata))


def _read(file: Path, model: models.EmbeddingModel) -> Trained:
    file.open("rb").close()  # what may not be read is not damaged
    try:
        with safe_open(file, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            about = json.loads(stored.metadata()["about"])
        model.load_state_dict(weights)
        return Trained(model, **about)
    except Exception as error:  # reading a damaged file can fail in any way
        raise ValueError(f"{file} is damaged, cut off or no model ({error}): delete it to train it again") from error


def _key(recipe: Recipe | Whitened, data: RetrievalData) -> str:
    """Name of the cache file: changes with the recipe, the data and the code."""
    told = json.dumps([_told(asdict(recipe)), data.protocol.self_excluded], sort_keys=True)
    digest = hashlib.sha256(told.encode())
    if recipe.generation is None:
        code = CODE if recipe.defense is None else CODE + DEFENSE_CODE[recipe.defense]
        digest.update(f"{torch.__version__} {code}".encode())
    if recipe.origin:
        digest.update(_key(recipe.origin, data).encode())
    for split in (data.train, data.query, data.gallery):  # the latter two decide the history that is kept
        for part in (split.images, split.labels):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _told(recipe: dict[str, object]) -> dict[str, object]:
    """The fields of a recipe that its name tells."""
    told = {name: value for name, value in recipe.items() if ADDED_LATER.get(name, ...) != value}
    return told | {name: _told(value) for name, value in told.items() if isinstance(value, dict)}


def _code(source: str) -> str:
    """The syntax tree of a module without its comments and docstrings, whose wording changes no weight."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _digest(*parts: ModuleType) -> str:
    return hashlib.sha256("".join(_code(inspect.getsource(part)) for part in parts).encode()).hexdigest()


CODE = _digest(
    augmentation, distances, mining, models, objectives, retrieval_data, training, whitening, sys.modules[__name__]
)
"""The code that makes a model, as it was imported: an edit while a model is trained must not name it."""

PARTS: dict[DefenseName, tuple[ModuleType, ...]] = {
    "est": (est,),
    "ses": (ses,),
    "rest": (rest,),
    "act": (act,),
    "min_max": (min_max,),
    "ramd": (ramd,),
    "panum": (panum,),
    "hm": (hm, memory),
    "ca_tride": (ca_tride, collapse, memory),
    "fare": (fare,),
    "neighborhood": (neighborhood, memory),
}
DEFENSE_CODE = {name: _digest(ball, passes, pgd, inner, named, radius, *parts) for name, parts in PARTS.items()}
"""What makes a model with a defense, besides."""
