"""The models the chapters train, each from a recipe, trained once and kept for the next chapter."""

import ast
import fcntl
import hashlib
import inspect
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from robret_lib import metrics, mining, models, objectives, training
from robret_lib.data import RetrievalData, data_root
from robret_lib.files import written_whole

SamplerName = Literal["random", "semihard", "softhard", "distance", "hard"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the data and the library's own code.

    Args:
        backbone, embedding_dim, distance: As in `models.build`.
        sampler: Name of a sampler of `mining`.
        steps, pairs, lr, weight_decay, seed: As in `training.Schedule`; the seed draws the initial weights too.
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


FASHION_MNIST = {
    "quick": Recipe("c2f2_half", embedding_dim=128, steps=400, pairs=64),
    "full": Recipe("c2f2", embedding_dim=512, steps=8 * 469, pairs=128),  # RobRank `rc2f2`: 8 passes over 60,000 pairs
}


@dataclass(frozen=True)
class Trained:
    """A trained model with its training curve and what it cost.

    Args:
        model: On the device asked for, in evaluation mode.
        history: See `training.train`; validation is Recall@1 in percent, key "recall_at_1".
        seconds: Wall time of the training (of its last part if it was resumed), also when it comes from the cache.
        device: What it was trained on.
    """

    model: models.EmbeddingModel
    history: list[dict[str, float]]
    seconds: float
    device: str


def fashion_mnist(scale: str, **changes: object) -> Recipe:
    """The chapters' recipe at "quick" or "full" scale, with the named fields changed."""
    return replace(FASHION_MNIST[scale], **changes)


def trained(recipe: Recipe, data: RetrievalData, device: torch.device, progress: bool = False) -> Trained:
    """The model of a recipe: from the cache if its weights are there, else trained, resuming where it was killed.

    Args:
        recipe: See `Recipe`.
        data: Trains on ``data.train``; validates on ``data.query`` against ``data.gallery``.
        device: To train on, and where the model ends up.
        progress: Show a progress bar while training.
    """
    file = data_root() / "models" / f"{_key(recipe, data)}.safetensors"
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        model = models.build(recipe.backbone, recipe.embedding_dim, distance=recipe.distance).to(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process that wants the same model waits for it
        if not file.exists():
            _train_into(file, model, recipe, data, progress)
    return _read(file, model.eval())


def _train_into(file: Path, model: nn.Module, recipe: Recipe, data: RetrievalData, progress: bool) -> None:
    checkpoint = file.with_suffix(".checkpoint")
    objective = objectives.TripletObjective(getattr(mining, recipe.sampler), recipe.distance)
    schedule = training.Schedule(recipe.steps, recipe.pairs, recipe.lr, recipe.weight_decay, recipe.seed)

    def validate(candidate: nn.Module) -> dict[str, float]:
        return {"recall_at_1": _recall_at_1(candidate, data)}

    begun = time.monotonic()
    every = max(1, recipe.steps // 8)
    history = training.train(
        model, data.train, objective, schedule, checkpoint, validate=validate, validate_every=every, progress=progress
    )
    about = {"history": history, "seconds": time.monotonic() - begun, "device": str(next(model.parameters()).device)}
    _write(file, model, {"recipe": json.dumps(asdict(recipe)), "about": json.dumps(about)})
    checkpoint.unlink(missing_ok=True)


def _write(file: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    with written_whole(file) as stream:
        stream.write(save(weights, metadata))


def _recall_at_1(model: nn.Module, data: RetrievalData) -> float:
    gallery = models.embed(model, data.gallery.images)
    own = data.protocol.self_excluded
    queries = gallery if own else models.embed(model, data.query.images)
    return metrics.recall_at_k(queries, gallery, data.query.labels, data.gallery.labels, k=(1,), self_excluded=own)[1]


def _read(file: Path, model: models.EmbeddingModel) -> Trained:
    with safe_open(file, framework="pt", device=str(next(model.parameters()).device)) as stored:
        model.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        about = json.loads(stored.metadata()["about"])
    return Trained(model, **about)


def _key(recipe: Recipe, data: RetrievalData) -> str:
    """Name of the cache file: changes with the recipe, the data, the code that trains and torch."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    digest.update(torch.__version__.encode())
    for part in (data.train.images, data.train.labels, data.query.labels, data.gallery.labels):
        digest.update(part.contiguous().numpy())
    for module in (models, mining, objectives, training, metrics):
        digest.update(_code(inspect.getsource(module)).encode())
    return digest.hexdigest()[:16]


def _code(source: str) -> str:
    """The syntax tree of a module without its comments and docstrings, whose wording changes no weight."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)
