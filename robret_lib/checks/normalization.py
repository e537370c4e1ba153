"""Which pixel normalization does a network apply, and is it the one it was trained with? Watched, not asked.

What a module is called does not matter here: hooks compare the tensors that enter the modules with the images, and
the activations that enter the first BatchNorm layer with what it remembers from training.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robret_lib.models import IMAGENET_MEAN, IMAGENET_STD, embeddings_of

Hook = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]


class Affine(NamedTuple):
    """``(pixel - mean) / std`` per channel, float64 ``[C]`` each."""

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (part.to(images)[:, None, None] for part in self)
        return (images - mean) / std

    def since(self, earlier: "Affine") -> "Affine":
        """What this map does beyond the earlier one: ``self(x) == self.since(earlier)(earlier(x))``."""
        return Affine((self.mean - earlier.mean) / earlier.std, self.std / earlier.std)

    def is_identity(self) -> bool:
        return bool((self.mean.abs() < 1e-3).all() and ((self.std - 1).abs() < 1e-3).all())

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.3g}" for value in part.tolist()) for part in self)
        return f"mean ({mean}) and std ({std})"


class Entry(NamedTuple):
    """How the pixels of a batch enter a network.

    Args:
        layer: The first layer with weights.
        total: What was done to the pixels before it.
        times: How often they were divided by something like a standard deviation of pixels on the way.
    """

    layer: nn.Module
    total: Affine
    times: int


class _Enough(Exception):
    """Ends a forward pass that has shown what it was run for."""


def entry(model: nn.Module, images: Tensor) -> Entry | None:
    """Follow images ``[B, C, H, W]`` in [0, 1] from module to module down to the first weights.

    A normalization shows wherever it is written: as a layer, in a ``forward``, in a wrapper around a wrapper. Only
    two of them inside one ``forward`` look like one. None if what arrives is no map of the form `Affine`: resized
    images, exchanged channels, a channel without contrast, or no layer with weights.
    """
    arrived: list[tuple[nn.Module, Affine | None]] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            arrived.append((module, _fit(arguments[0], images)))
        if _is_weighted_layer(module):
            raise _Enough

    _run(model, images, [(module, note) for module in model.modules()])
    layer, total = arrived[-1] if arrived else (model, None)
    if total is None or not _is_weighted_layer(layer):
        return None
    maps = [total for _, total in arrived if total is not None]
    changes = maps[:1] + [later.since(earlier) for earlier, later in zip(maps, maps[1:], strict=False)]
    return Entry(layer, total, sum(_is_normalization(change) for change in changes))


def better_fit(model: nn.Module, images: Tensor, seen: Entry) -> str | None:
    """The usual normalization that suits the first BatchNorm better than the one applied; None if there is none.

    Shows the first layer the pixels under each usual normalization, and compares mean and variance of what then
    enters the first BatchNorm with its running statistics. With EfficientNet-Lite0 on 16 batches of photos
    (birds, cars, groceries, everyday scenes; 4 to 32 a batch; 64 to 224 pixels) the right one was 1.8 to 100 times
    closer than every wrong one; 1.5 times counts here. None also where nothing can be compared: no such BatchNorm, or
    one that keeps no statistics or was never trained.
    """
    memory = _first_batchnorm(model, images)
    if memory is None:
        return None
    zero = torch.zeros_like(seen.total.mean)
    usual = {
        "no normalization": Affine(zero, zero + 1),
        "pixels from 0 to 255": Affine(zero, zero + 1 / 255),
        "mean 0.5 and std 0.5": Affine(zero + 0.5, zero + 0.5),
    }
    if len(zero) == 3:
        mean, std = (torch.tensor(values).to(zero) for values in (IMAGENET_MEAN, IMAGENET_STD))
        usual["ImageNet's mean and std"] = Affine(mean, std)
    mismatch = {name: _mismatch(model, images, seen, instead, memory) for name, instead in usual.items()}
    best = min(mismatch, key=mismatch.__getitem__)
    return best if 1.5 * mismatch[best] < _mismatch(model, images, seen, seen.total, memory) else None


def _first_batchnorm(model: nn.Module, images: Tensor) -> nn.Module | None:
    """The first one called, if it remembers anything."""
    called: list[nn.Module] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].ndim == 4:
            called.append(module)
            raise _Enough

    kinds = [module for module in model.modules() if hasattr(module, "running_mean") and hasattr(module, "running_var")]
    _run(model, images, [(module, note) for module in kinds])
    remembers = called and called[0].running_mean is not None and called[0].running_mean.any()
    return called[0] if remembers else None


def _mismatch(model: nn.Module, images: Tensor, seen: Entry, instead: Affine, memory: nn.Module) -> float:
    """Divergence (nats a channel) of what enters the BatchNorm from its memory, both taken as Gaussians."""
    entering: list[Tensor] = []

    def show(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (instead.since(seen.total)(arguments[0]),)

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        entering.append(arguments[0])
        raise _Enough

    _run(model, images, [(seen.layer, show), (memory, note)])
    mean, variance = entering[0].mean((0, 2, 3)), entering[0].var((0, 2, 3))
    small = getattr(memory, "eps", 1e-5)
    remembered = memory.running_var + small
    ratio = (variance + small) / remembered
    divergence = ratio - 1 - ratio.log() + (mean - memory.running_mean).square() / remembered
    return divergence.mean().item() / 2


def _run(model: nn.Module, images: Tensor, hooks: list[tuple[nn.Module, Hook]]) -> None:
    """A forward pass with hooks that run before the modules; without gradients, and without a trace."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks]
    try:
        with suppress(_Enough), torch.no_grad():
            embeddings_of(model, images)
    finally:
        for handle in handles:
            handle.remove()


def _fit(arrived: Tensor, images: Tensor) -> Affine | None:
    """The map from the images to what arrived, by least squares per channel; None if no such map fits."""
    if arrived.numel() == images.numel():
        arrived = arrived.reshape(images.shape)
    elif arrived.ndim == 4 and images.shape == arrived[:, :1].shape:
        images = images.expand_as(arrived)  # a gray image shown to all channels
    else:
        return None
    x, y = (part.double().transpose(0, 1).flatten(1) for part in (images, arrived))
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(1) / (x - x_mean).square().sum(1)
    error = (y - y_mean - slope[:, None] * (x - x_mean)).abs().amax(1)
    if not (error < 1e-3 * slope.abs()).all():  # also where a channel without contrast made it NaN
        return None
    return Affine(x_mean[:, 0] - y_mean[:, 0] / slope, 1 / slope)


def _is_normalization(change: Affine) -> bool:
    """Dividing by 0.02 to 0.95 is one; multiplying by 255, or dividing by 127.5 after that, changes the unit."""
    return bool(((change.std > 0.02) & (change.std < 0.95)).all())


def _is_weighted_layer(module: nn.Module) -> bool:
    """Has weights of its own and no parts: a ViT's position embedding does not make the whole ViT a layer."""
    return next(module.children(), None) is None and next(module.parameters(), None) is not None
