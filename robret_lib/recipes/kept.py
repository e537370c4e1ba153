"""Models that are trained once and kept for the next chapter.

What decides the weights is the recipe, the data and the code, so a model is filed under the three. Of the code, a
quick model takes `CODE` itself: whoever edits it never meets old weights. A model that took hours must outlive an edit
that changes no weight, so its recipe has a `generation` instead, a number that is raised by hand where one does; a test
(tests/test_recipes.py) trains a little, compares, and says when that is due.
"""

import hashlib
import inspect
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from robret_lib import augmentation, distances, metrics, mining, models, objectives, source, training, whitening
from robret_lib.attacks.search import ball, flips, parts, passes, schedules
from robret_lib.cross_modal import center_guided, dcmh, networks, ssah
from robret_lib.cross_modal import objective as pairs_objective
from robret_lib.data import RetrievalData, Split, bag_of_words, center_crop, data_root, labels, retrieval_data
from robret_lib.defenses import (
    act,
    atrdh,
    attacked_codes,
    ca_tride,
    cgat,
    collapse,
    est,
    fare,
    hm,
    inner,
    memory,
    min_max,
    neighborhood,
    pair_guided,
    panum,
    prototype_guided,
    prototypes,
    radius,
    ramd,
    rest,
    saat,
    ses,
)
from robret_lib.files import one_at_a_time, written_whole
from robret_lib.hashing import batch, known_codes
from robret_lib.recipes import hash_defense, hash_objective, hash_recipe, image_text_objective, image_text_recipe
from robret_lib.recipes import objective as objective_module
from robret_lib.recipes import recipe as recipe_module
from robret_lib.recipes.hash_defense import of_hash_defense
from robret_lib.recipes.hash_objective import of_hashing
from robret_lib.recipes.hash_recipe import HashDefenseName, HashRecipe
from robret_lib.recipes.image_text_objective import of_images_and_texts
from robret_lib.recipes.image_text_recipe import ImageTextName, ImageTextRecipe
from robret_lib.recipes.objective import of_defense
from robret_lib.recipes.recipe import ADDED_LATER, DefenseName, Recipe, Whitened
from robret_lib.scores import robust_recall

AnyRecipe = Recipe | HashRecipe | ImageTextRecipe | Whitened
AnyModel = models.EmbeddingModel | networks.ImageTextModel

WATCHED_QUERIES = 200
"""Of how many queries robust recall joins the history."""


@dataclass(frozen=True)
class Trained:
    """A trained model with its training curve and what it cost.

    Args:
        model: On the device asked for, in evaluation mode.
        history: See `training.train`; validation is Recall@1 in percent, key "recall_at_1", and `defenses.signs` of
            the gallery; where the recipe watches a radius also "robust_recall_at_1", what effort "quick" leaves of 200
            queries there. Of a hash network it is `hash_objective.watched`, of one of images and texts
            `image_text_objective.watched`; empty for `Whitened`. Kept as it was measured: the code that measures is no
            part of a model's name.
        seconds: Wall time of the training (of its last part if it was resumed; that of the origin is not in it), also
            when it comes from the cache.
        device: What it was trained on.
    """

    model: AnyModel
    history: list[dict[str, float]]
    seconds: float
    device: str


def trained(recipe: AnyRecipe, data: RetrievalData, device: torch.device, progress: bool = False) -> Trained:
    """The model of a recipe: from the cache if its weights are there, else trained, resuming where it was killed.

    A model that is there is only read, so the data folder may be read-only then.

    Args:
        recipe: See `Recipe`, `HashRecipe`, `ImageTextRecipe` and `Whitened`.
        data: Trains on ``data.train``; validates on ``data.query`` against ``data.gallery``.
        device: To train on, and where the model ends up.
        progress: Show a progress bar while training.

    Warns:
        RuntimeWarning: The model collapsed, and when; while it is trained, at once.

    Raises:
        RuntimeError: In one of several processes, each of which would wait for the others: see `training.train`.
        ValueError: The file in the cache is damaged.
        OSError: The model is not there, and the folder cannot be written.
    """
    if dist.is_initialized():
        raise RuntimeError("recipes.trained in one of several processes: expected one alone; see training.train")
    file = data_root() / "models" / f"{_key(recipe, data)}.safetensors"
    model = models.on_device(_initial_model(recipe, data), device)
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
            f"(spread {result.history[-1]['spread']:.4f}, {_quality(result.history[-1])})",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def _quality(entry: dict[str, float]) -> str:
    return f"R@1 {entry['recall_at_1']:.1f} %" if "recall_at_1" in entry else f"MAP {entry['map']:.1f} %"


def _initial_model(recipe: AnyRecipe, data: RetrievalData) -> AnyModel:
    """The model before training, float32 on the CPU, whatever the default type."""
    pretrained = isinstance(recipe, Whitened) or recipe.pretrained
    with _float32(), torch.random.fork_rng([]):
        torch.manual_seed(0 if isinstance(recipe, Whitened) else recipe.seed)
        if isinstance(recipe, ImageTextRecipe):
            return image_text_objective.untrained(recipe, data)
        return models.build(recipe.backbone, recipe.embedding_dim, pretrained, recipe.distance)


def _objective(
    recipe: Recipe | HashRecipe | ImageTextRecipe, data: RetrievalData, original: AnyModel | None = None
) -> nn.Module:
    """What a recipe minimizes; ``original`` is the model of its origin."""
    if isinstance(recipe, ImageTextRecipe):
        return of_images_and_texts(recipe, data, original)
    if isinstance(recipe, HashRecipe):
        clean = of_hashing(recipe, data)
        return clean if original is None else of_hash_defense(recipe, clean, data, original)
    if recipe.defense is None:
        return objectives.TripletObjective(getattr(mining, recipe.sampler), recipe.distance, recipe.mode)
    return of_defense(recipe, original)


def _train_into(file: Path, model: AnyModel, recipe: AnyRecipe, data: RetrievalData, progress: bool) -> None:
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
    model: AnyModel,
    recipe: Recipe | HashRecipe | ImageTextRecipe,
    original: AnyModel | None,
    data: RetrievalData,
    checkpoint: Path,
    progress: bool,
) -> list[dict[str, float]]:
    if original is not None:
        model.load_state_dict(original.state_dict())
    with _float32():
        objective = _objective(recipe, data, original)
    train, augment = data.train, partial(_cropped, size=recipe.crop) if recipe.crop else None
    if recipe.crop and isinstance(recipe, HashRecipe) and not recipe.augmented:
        train, augment = center_crop(train, recipe.crop), None
    return training.train(
        model,
        train,
        objective,
        recipe.schedule,
        checkpoint,
        validate=partial(_validated if isinstance(recipe, Recipe) else _watched, recipe=recipe, data=data),
        validate_every=max(1, recipe.steps // 8),
        progress=progress,
        augment=augment,
    )


def _cropped(images: torch.Tensor, generator: torch.Generator, size: int) -> torch.Tensor:
    return augmentation.random_crop_and_flip(images, size, generator)


def _validated(model: models.EmbeddingModel, recipe: Recipe, data: RetrievalData) -> dict[str, float]:
    gallery = models.embed(model, data.gallery.images)
    own = data.protocol.self_excluded
    queries = gallery if own else models.embed(model, data.query.images)
    labels = data.query.labels, data.gallery.labels
    found = {"recall_at_1": metrics.recall_at_k(queries, gallery, *labels, k=(1,), self_excluded=own)[1]}
    found |= collapse.signs(gallery, data.gallery.labels, recipe.distance)
    _warn_if_collapsed(found["spread"])
    if recipe.watched_eps:
        queries = min(WATCHED_QUERIES, len(data.query))
        result = robust_recall(model, data, recipe.watched_eps, queries=queries, effort="quick")
        found["robust_recall_at_1"] = result.recall_at_1
    return found


def _watched(model: AnyModel, recipe: HashRecipe | ImageTextRecipe, data: RetrievalData) -> dict[str, float]:
    of_pairs = isinstance(recipe, ImageTextRecipe)
    found = image_text_objective.watched(model, recipe, data) if of_pairs else hash_objective.watched(model, data)
    _warn_if_collapsed(found["spread"])
    return found


def _warn_if_collapsed(spread: float) -> None:
    if spread < collapse.COLLAPSED:
        warnings.warn(f"this training is collapsed: spread {spread:.4f}", RuntimeWarning, stacklevel=3)


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


def _read(file: Path, model: AnyModel) -> Trained:
    file.open("rb").close()  # what may not be read is not damaged
    try:
        with safe_open(file, framework="pt") as stored:
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            about = json.loads(stored.metadata()["about"])
        model.load_state_dict(weights)
        return Trained(model, **about)
    except Exception as error:  # reading a damaged file can fail in any way
        raise ValueError(f"{file} is damaged, cut off or no model ({error}): delete it to train it again") from error


def _key(recipe: AnyRecipe, data: RetrievalData) -> str:
    """Name of the cache file: changes with the recipe, the data and the code."""
    told = json.dumps([_told(asdict(recipe)), data.protocol.self_excluded], sort_keys=True)
    digest = hashlib.sha256(told.encode())
    if recipe.generation is None:
        digest.update(f"{torch.__version__} {_code(recipe)}".encode())
    if recipe.origin:
        digest.update(_key(recipe.origin, data).encode())
    for split in (data.train, data.query, data.gallery):  # the latter two decide the history that is kept
        for part in (split.images, split.labels):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy())
        if isinstance(recipe, ImageTextRecipe):
            digest.update("\0".join(split.texts or ()).encode())
    return digest.hexdigest()[:16]


def _code(recipe: AnyRecipe) -> str:
    if isinstance(recipe, ImageTextRecipe):
        return CODE + IMAGE_TEXT_CODE[recipe.method] + (IMAGE_TEXT_DEFENSE_CODE if recipe.defense else "")
    if isinstance(recipe, HashRecipe):
        return CODE + HASHING_CODE[recipe.method] + HASH_DEFENSE_CODE.get(recipe.defense, "")
    return CODE if recipe.defense is None else CODE + DEFENSE_CODE[recipe.defense]


def _told(recipe: dict[str, object]) -> dict[str, object]:
    """The fields of a recipe that its name tells."""
    told = {name: value for name, value in recipe.items() if ADDED_LATER.get(name, ...) != value}
    return told | {name: _told(value) for name, value in told.items() if isinstance(value, dict)}


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _digest(*parts: ModuleType) -> str:
    return source.digest(map(inspect.getsource, parts))


_ALL = augmentation, distances, mining, models, objectives, retrieval_data, training, whitening
CODE = _digest(*_ALL, recipe_module, sys.modules[__name__])
"""The code that makes a model, as it was imported: an edit while a model is trained must not name it."""

_PGD = sys.modules["robret_lib.attacks.search.pgd"]  # the package has a function of this name

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
DEFENSE_CODE = {
    name: _digest(ball, passes, _PGD, inner, radius, objective_module, *parts) for name, parts in PARTS.items()
}
"""What makes a model with a defense, besides."""

HASHING_CODE = {
    name: _digest(hash_recipe, hash_objective, *hash_objective.PARTS_OF_ALL, part)
    for name, part in hash_objective.PARTS.items()
}
"""What makes a hash network."""

# the package has a function of this name
_CENTER_CODE, _PROTOTYPE = (sys.modules[f"robret_lib.hashing.{name}"] for name in ("center_code", "prototype"))

HASH_PARTS: dict[HashDefenseName, tuple[ModuleType, ...]] = {
    "atrdh": (atrdh, pair_guided, prototypes, _PROTOTYPE),
    "cgat": (cgat, _CENTER_CODE),
    "saat": (saat, cgat, _CENTER_CODE),
    "pairs": (pair_guided,),
    "prototypes": (prototype_guided, prototypes, _PROTOTYPE),
}
HASH_DEFENSE_CODE = {
    name: _digest(ball, passes, _PGD, inner, attacked_codes, hash_defense, *parts) for name, parts in HASH_PARTS.items()
}
"""What makes a hash network with a defense, besides."""

_OF_PAIRS = (
    *(bag_of_words, labels, batch, known_codes, networks, pairs_objective),
    *(image_text_recipe, image_text_objective),
)
IMAGE_TEXT_CODE: dict[ImageTextName, str] = {
    "dcmh": _digest(*_OF_PAIRS, dcmh),
    "ssah": _digest(*_OF_PAIRS, ssah),
}
"""What makes a network of images and texts."""

IMAGE_TEXT_DEFENSE_CODE = _digest(ball, parts, passes, _PGD, schedules, flips, center_guided, _CENTER_CODE)
"""What makes one with a defense, besides."""
