"""One training loop. Killed at any moment and started again, it ends with the weights of an uninterrupted run.

All randomness is a function of (seed, epoch) or (seed, step, rank), so a checkpoint needs no generator state.

On several GPUs or in several processes, write a script and start it with ``torchrun --nproc_per_node 2 script.py``::

    with training.process_group("cuda") as rank:
        train(model.cuda(), dataset.train, objective, schedule, checkpoint=Path("run.checkpoint"), progress=rank == 0)

``schedule.pairs`` counts per process, so two processes make half as many, twice as large steps a pass.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from itertools import count, islice
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from robret_lib.data import Split, as_float
from robret_lib.fields import check_count, check_number, check_share
from robret_lib.files import written_whole
from robret_lib.mining import shuffled_epoch, spc2_epoch
from robret_lib.models import evaluation_mode

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Images and a generator to images, as many of them."""


Optimizer = Literal["adam", "sgd", "rmsprop"]

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, and on which batches.

    Args:
        steps: Updates in all.
        pairs: SPC-2 pairs per batch and process, for losses of triplets.
        lr, weight_decay: Of the optimizer.
        seed: Of the batches and the sampler; the initial weights are the caller's.
        decay: Over which share of the steps, at the end, the learning rate falls in a straight line to zero; 0, as
            published, keeps it constant.
        batch: In place of pairs: images per batch and process, of all images in random order, whatever their labels.
        optimizer: "adam", "sgd" or "rmsprop".
        momentum: Of "sgd"; of "adam" its beta_1, where 0 is the usual 0.9.
        milestones: After which shares of the steps the learning rate falls to a tenth.

    Raises:
        ValueError: An impossible number.
    """

    steps: int
    pairs: int | None = None
    lr: float = 1e-3
    weight_decay: float = 1e-7
    seed: int = 0
    decay: float = 0.0
    batch: int | None = None
    optimizer: Optimizer = "adam"
    momentum: float = 0.0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if (self.pairs is None) == (self.batch is None):
            raise ValueError(f"pairs={self.pairs}, batch={self.batch}: expected one of the two")
        if self.batch is None:
            check_count("pairs", self.pairs)
        else:
            check_count("batch", self.batch)
        check_number("lr", self.lr, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        check_share("decay", self.decay)
        check_share("momentum", self.momentum)
        if self.optimizer not in OPTIMIZERS or (self.momentum and self.optimizer == "rmsprop"):
            given = f"optimizer={self.optimizer!r}, momentum={self.momentum}"
            raise ValueError(f"{given}: expected one of {tuple(OPTIMIZERS)}, and no momentum of rmsprop")
        for share in self.milestones:
            check_share("milestones", share)

    @property
    def images(self) -> int:
        """New ones in a batch: one of each pair, or all."""
        return self.batch or self.pairs

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        falling, passed = self.decay * self.steps, sum(step + 1e-9 >= share * self.steps for share in self.milestones)
        return self.lr * 0.1**passed * (min(1.0, (self.steps - step) / falling) if falling else 1.0)


def train(
    model: nn.Module,
    data: Split,
    objective: nn.Module,
    schedule: Schedule,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 200,
    progress: bool = False,
    augment: Augmentation | None = None,
) -> list[dict[str, float]]:
    """Train a model in place, on its own device; under `torchrun`, inside `process_group`, on all processes.

    Args:
        model: Embeds images ``[B, C, H, W]`` in [0, 1].
        data: Training images and int labels.
        objective: ``objective(model, images, labels, generator)`` is the scalar loss of a batch; weights of its own
            are trained too. Put into training mode. What in it has a method ``begin(steps, done)`` is told how long
            the training is, and how far; what has ``hold(rows, epoch)``, before each step, which images of ``data`` its
            batch holds, int64 on the CPU, and of which pass.
        schedule: See `Schedule`.
        checkpoint: File to resume from if it exists, and to write every ``checkpoint_every`` steps and at the end.
        checkpoint_every: Steps between two checkpoints.
        validate: Called on the model in evaluation mode; what it returns joins the history.
        validate_every: Steps between two entries of the history.
        progress: Show a progress bar.
        augment: ``augment(images, generator)`` is what to train on in place of a batch's images, which come as they
            are stored; the generator, on the device, is to be its only randomness (`robret_lib.augmentation`).

    Returns:
        The history: one ``{"step", "loss" (this process' mean since the last entry), **validate(model)}`` every
        ``validate_every`` steps and at the end.

    Raises:
        ValueError: The checkpoint belongs to another schedule, objective, augmentation or other data; the data do not
            fit the schedule; an objective that knows the number of steps has been told another, or has been trained.
        FloatingPointError: The loss is NaN or infinite.
    """
    rank, world = _rank_and_world()
    _check(schedule, data, world, checkpoint_every, validate_every)
    device = next(model.parameters()).device
    step_module = _Step(model, objective).to(device)
    weights = [weight for weight in step_module.parameters() if weight.requires_grad]
    optimizer = _optimizer(weights, schedule)
    identity = asdict(schedule) | {"processes": world, "objective": _told(objective), "augment": _told(augment)}
    identity |= {"images": len(data), "data": _digest(data)} if checkpoint else {}
    start, loss_sum, history = _resume(checkpoint, step_module, optimizer, identity)
    _tell(objective, "begin", schedule.steps, start)
    replicas = DistributedDataParallel(step_module) if world > 1 else step_module
    batches = _batches(data.labels.cpu(), schedule, start, rank, world)
    for step in tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, disable=not progress):
        rows = next(batches)
        _tell(objective, "hold", rows, step // _per_epoch(len(data), schedule, world))
        images, labels = _on_device(data, rows, device)
        if augment is not None:
            images = augment(images, seeded(device, schedule.seed, 2, step, rank))
        step_module.train()
        loss = _seeded_loss(replicas, as_float(images), labels, seeded(device, schedule.seed, 1, step, rank))
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.step()
        loss_sum += _finite(loss.item(), step)
        done = step + 1
        if done % validate_every == 0 or done == schedule.steps:
            covered = done - (history[-1]["step"] if history else 0)
            history.append({"step": done, "loss": loss_sum / covered, **_validated(model, validate)})
            loss_sum = 0.0
        if checkpoint and rank == 0 and (done % checkpoint_every == 0 or done == schedule.steps):
            state = {"step": done, "loss_sum": loss_sum, "history": history, "identity": identity}
            with written_whole(checkpoint) as file:
                torch.save(state | _states(step_module, optimizer), file)
    if dist.is_initialized():  # statistics of the last step are those of each process' own images
        for buffer in step_module.buffers():
            dist.broadcast(buffer, 0)
    return history


@contextmanager
def process_group(device: str) -> Iterator[int]:
    """Join the processes that `torchrun` started (gloo on the CPU, nccl on GPUs); yields the rank, 0 when alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    if device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def seeded(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on all numbers of the key, and on nothing else."""
    (state,) = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state))


class _Step(nn.Module):
    """Model and objective as one module, so that DDP averages the gradients of both in its one forward call."""

    def __init__(self, model: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective(self.model, images, labels, generator)


def _on_device(data: Split, batch: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    return data.images[batch].to(device), data.labels[batch].to(device)


def _seeded_loss(replicas: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(generator.initial_seed())  # dropout draws from the global generator
        return replicas(images, labels, generator)


def _optimizer(weights: list[Tensor], schedule: Schedule) -> torch.optim.Optimizer:
    remembered = {"sgd": {"momentum": schedule.momentum}, "adam": {"betas": (schedule.momentum or 0.9, 0.999)}}
    settings = {"lr": schedule.lr, "weight_decay": schedule.weight_decay} | remembered.get(schedule.optimizer, {})
    return OPTIMIZERS[schedule.optimizer](weights, **settings)


def _tell(objective: nn.Module, method: str, *news: object) -> None:
    """Call a method of whatever in an objective has it."""
    for part in objective.modules():
        if hasattr(part, method):
            getattr(part, method)(*news)


def _per_epoch(size: int, schedule: Schedule, world: int) -> int:
    return ceil(ceil(size / world) / schedule.images)


def _batches(labels: Tensor, schedule: Schedule, start: int, rank: int, world: int) -> Iterator[Tensor]:
    """The batches of all steps from ``start`` on, epoch after epoch."""
    first_epoch, skipped = divmod(start, _per_epoch(len(labels), schedule, world))
    for epoch in count(first_epoch):
        generator = seeded(torch.device("cpu"), schedule.seed, 0, epoch)
        if schedule.batch:
            batches = shuffled_epoch(len(labels), schedule.batch, generator, rank, world)
        else:
            batches = spc2_epoch(labels, schedule.pairs, generator, rank, world)
        yield from islice(batches, skipped if epoch == first_epoch else 0, None)


def _told(made: object) -> str:
    """What an objective, or what it was made with, is: its type, and of its fields what can be written down.

    Frozen networks inside are left out: their weights are in the checkpoint.
    """
    if isinstance(made, nn.Module):
        given = {name: value for name, value in vars(made).items() if name[0] != "_" and name != "training"}
        given |= {name: part for name, part in made.named_children() if not _is_network(part)}
    elif isinstance(made, partial):
        given = {"func": made.func, **dict(enumerate(made.args)), **made.keywords}
    elif is_dataclass(made) and not isinstance(made, type):
        given = {field.name: getattr(made, field.name) for field in fields(made)}
    elif isinstance(made, bool | int | float | str | None):
        return repr(made)
    else:
        return getattr(made, "__name__", type(made).__name__)  # a function's, such as a sampler's
    return f"{type(made).__name__}({', '.join(f'{name}={_told(value)}' for name, value in given.items())})"


def _is_network(part: nn.Module) -> bool:
    weights = list(part.parameters())
    return bool(weights) and not any(weight.requires_grad for weight in weights)


def _digest(data: Split) -> str:
    """Of all labels and of up to a thousand images from all over the set."""
    some = data.images[:: 1 + len(data) // 1000]
    parts = (part.cpu().contiguous().view(torch.uint8).numpy() for part in (data.labels, some))
    return hashlib.sha256(b"".join(map(bytes, parts))).hexdigest()[:16]


def _states(step_module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"weights": step_module.state_dict(), "optimizer": optimizer.state_dict()}


def _resume(
    checkpoint: Path | None, step_module: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, float | str]
) -> tuple[int, float, list[dict[str, float]]]:
    if checkpoint is None:
        return 0, 0.0, []
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        written_for = state["identity"]
    except FileNotFoundError:  # none yet, or another process that trains the same has just finished with it
        return 0, 0.0, []
    except PermissionError:  # what may not be read is not damaged
        raise
    except Exception as error:  # reading a damaged file can fail in any way
        raise ValueError(f"{checkpoint} is no checkpoint, or a damaged one: delete it to start anew") from error
    if written_for != identity:
        raise ValueError(f"{checkpoint} was written with {written_for}, this training is {identity}: move it")
    step_module.load_state_dict(state["weights"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["loss_sum"], state["history"]


def _validated(model: nn.Module, validate: Callable[[nn.Module], dict[str, float]] | None) -> dict[str, float]:
    if validate is None:
        return {}
    with evaluation_mode(model), torch.no_grad():
        return validate(model)


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _check(schedule: Schedule, data: Split, world: int, checkpoint_every: int, validate_every: int) -> None:
    if checkpoint_every < 1 or validate_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every}, validate_every={validate_every}: expected at least 1")
    if schedule.batch:
        return
    if data.labels.ndim != 1:
        raise ValueError(f"labels of shape {tuple(data.labels.shape)}: SPC-2 batches need one int class per image [N]")
    if schedule.pairs == 1 or ceil(len(data) / world) % schedule.pairs == 1:
        raise ValueError(f"pairs={schedule.pairs} leave a batch of one pair of {len(data)} images: no negatives there")


def _finite(loss: float, step: int) -> float:
    if not np.isfinite(loss):
        raise FloatingPointError(f"loss {loss} at step {step}: lower the learning rate, or check the images")
    return loss
