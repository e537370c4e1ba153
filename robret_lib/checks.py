"""Can this evaluation be trusted? Checks, before any attack, that model and images are what an attack assumes.

A wrong pixel range, a second normalization or a lost gradient raises no error: it prints a robustness that is not
there. Call `inspect` on the model and a few images of the evaluation first.
"""

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from robret_lib import normalization
from robret_lib.attacks.pgd import frozen
from robret_lib.data import as_float

SAME = 1e-3
"""Embeddings closer than this share of their length are the same: rounding in another order stays far below."""

COLLAPSED = 0.02
"""Embeddings whose spread is below this share of their length are all alike."""


class Finding(NamedTuple):
    """The outcome of one check.

    Args:
        name: Of the check, in words.
        ok: Nothing found.
        message: What was seen; if not ok also why it matters and what to do.
    """

    name: str
    ok: bool
    message: str


@dataclass(frozen=True, repr=False)
class Report:
    """What `inspect` found; prints as a table."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No check found anything."""
        return all(finding.ok for finding in self.findings)

    def __repr__(self) -> str:
        indent = " " * 34
        lines = [
            textwrap.fill(f"{'ok' if ok else 'LOOK':<6}{name:<28}{message}", 110, subsequent_indent=indent)
            for name, ok, message in self.findings
        ]
        bad = sum(not finding.ok for finding in self.findings)
        return "\n".join([*lines, f"{len(self.findings)} checks, {bad} to look at"])


def inspect(model: nn.Module, images: Tensor) -> Report:
    """Check a model on a few images; it is left as it was found (weights, buffers, modes).

    Runs in evaluation mode, as every evaluation here does. It cannot see what a model does to other images, whether
    a gradient points the right way (attack with another method to find out), or a wrong normalization of a network
    without BatchNorm2d that applies it once (see `normalization`).

    Args:
        model: Takes images in [0, 1] on its own device; ``.distance`` as in `models.EmbeddingModel`, if it has one.
        images: ``[B, C, H, W]`` of the evaluation; 16 to 64 different ones of several classes are good.

    Raises:
        ValueError: Not a batch of at least two images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images of shape {tuple(images.shape)}: expected [B, C, H, W] with B of at least 2")
    findings = [pixel_range(images), evaluation_mode(model)]
    if images.dtype == torch.uint8 or findings[0].ok:
        weight = next(model.parameters(), images)
        with frozen(model):
            findings += _checks_of_embeddings(model, as_float(images.to(weight.device)))
    return Report(tuple(findings))


def _checks_of_embeddings(model: nn.Module, images: Tensor) -> list[Finding]:
    with torch.no_grad():
        embeddings = model(images)
    findings = [finite(embeddings)]
    if findings[0].ok:
        findings += [
            unit_length(embeddings, getattr(model, "distance", None)),
            different(embeddings),
            repeatable(model, images, embeddings),
            independent_of_batch(model, images, embeddings),
            normalized_once(model, images),
            gradient(model, images),
        ]
    return findings


def pixel_range(images: Tensor) -> Finding:
    """Images handed over are float in [0, 1], and not divided by 255 twice."""
    name = "images in [0, 1]"
    if images.dtype == torch.uint8:
        return Finding(
            name, False, "the images are uint8: a budget such as 8/255 means nothing there. Use as_float(images)."
        )
    if not images.is_floating_point():
        return Finding(
            name, False, f"the images are {images.dtype}. Convert them to float in [0, 1]; nothing else was checked."
        )
    low, high = images.amin().item(), images.amax().item()
    seen = f"pixels from {low:.3g} to {high:.3g}"
    if not (low >= 0 and high <= 1):
        advice = "Hand over pixels as they are, divided by 255; the model normalizes. Nothing else was checked."
        return Finding(name, False, f"{seen}: budgets and clipping assume [0, 1]. {advice}")
    if high <= 2 / 255:
        return Finding(name, False, f"{seen}: all but black. Divided by 255 twice? Nothing else was checked.")
    return Finding(name, True, seen)


def evaluation_mode(model: nn.Module) -> Finding:
    """No dropout or BatchNorm is live in the model as it was handed over."""
    live = [
        name or "itself" for name, module in model.named_modules() if module.training and _differs_in_training(module)
    ]
    if not live:
        return Finding("evaluation mode", True, "no dropout and no BatchNorm in training mode")
    some = ", ".join(live[:3]) + (", ..." if len(live) > 3 else "")
    seen = f"{len(live)} layers in training mode ({some})"
    why = "a direct call of the model draws random numbers or mixes the images of a batch"
    return Finding("evaluation mode", False, f"{seen}: {why}. Call model.eval().")


def finite(embeddings: Tensor) -> Finding:
    """No NaN, no infinity."""
    broken = ~torch.isfinite(embeddings).flatten(1).all(1)
    seen = f"{broken.sum()} of {len(embeddings)} embeddings with NaN or infinity"
    if not broken.any():
        return Finding("finite embeddings", True, seen)
    why = "they rank nowhere, and every comparison with them is false"
    return Finding(
        "finite embeddings", False, f"{seen}: {why}. Find the layer that overflows; nothing else was checked."
    )


def unit_length(embeddings: Tensor, distance: str | None) -> Finding:
    """Unit vectors where the distance is made for them."""
    lengths = embeddings.norm(dim=1)
    seen = f'lengths from {lengths.min():.4g} to {lengths.max():.4g}, distance "{distance}"'
    if distance not in ("N", "C") or (lengths - 1).abs().max() < 1e-3:
        return Finding("length of embeddings", True, seen)
    why = "this distance is for unit vectors, others break its margins and its tables"
    return Finding("length of embeddings", False, f'{seen}: {why}. Normalize, or use distance "E".')


def different(embeddings: Tensor) -> Finding:
    """The embeddings are not all alike (a collapsed model has R@1 near chance, and looks robust)."""
    spread = (embeddings - embeddings.mean(0)).norm(dim=1).square().mean().sqrt()
    share = (spread / _length(embeddings)).item()
    seen = f"spread {100 * share:.2g} % of their length"
    if share > COLLAPSED:
        return Finding("different embeddings", True, seen)
    why = "a collapsed model hardly moves under attack, and retrieves nothing"
    return Finding("different embeddings", False, f"{seen}: {why}. Look at Recall@1, and that the images differ.")


def repeatable(model: nn.Module, images: Tensor, embeddings: Tensor) -> Finding:
    """A second pass gives the same embeddings."""
    with torch.no_grad():
        change = (model(images) - embeddings).norm(dim=1).max() / _length(embeddings)
    seen = f"a second pass moves them by {_percent(change)} of their length"
    if change < SAME:
        return Finding("repeatable embeddings", True, seen)
    why = "an attack on one draw is measured on another one, which hides what it found"
    advice = "Attack and measure the mean over many draws (expectation over transformation)."
    return Finding("repeatable embeddings", False, f"{seen}: {why}. {advice}")


def independent_of_batch(model: nn.Module, images: Tensor, embeddings: Tensor, n: int = 4) -> Finding:
    """The first n images embed alone as in their batch."""
    with torch.no_grad():
        alone = torch.cat([model(image) for image in images[:n].split(1)])
    change = (alone - embeddings[:n]).norm(dim=1).max() / _length(embeddings)
    seen = f"alone instead of in the batch, images move by {_percent(change)} of their length"
    if change < SAME:
        return Finding("independent of the batch", True, seen)
    why = "results depend on who shares a batch, and attacked images shift benign ones"
    return Finding("independent of the batch", False, f"{seen}: {why}. Use BatchNorm with running statistics.")


def normalized_once(model: nn.Module, images: Tensor) -> Finding:
    """Pixels are normalized inside the model, at most once, and as its first BatchNorm remembers."""
    name = "normalization inside"
    seen = normalization.entry(model, images)
    if seen is None:
        return Finding(name, True, "not judged: the pixels do not reach the first layer as (x - mean) / std")
    applied = "as they are" if seen.total.is_identity() else f"with {seen.total}"
    if seen.times > 1 or (seen.total.std.max() < 0.1 and seen.total.std.min() > 0.02):
        why = "a budget in pixels then acts many times larger, and the network sees other images than in training"
        return Finding(name, False, f"the first layer sees pixels {applied}: normalized twice; {why}. Remove one.")
    better = normalization.better_fit(model, images, seen)
    if better:
        why = f"its first BatchNorm remembers images like {better}; benign numbers drop without an error"
        return Finding(name, False, f"the first layer sees pixels {applied}, but {why}. Set mean and std of the model.")
    return Finding(name, True, f"the first layer sees pixels {applied}")


def gradient(model: nn.Module, images: Tensor) -> Finding:
    """The gradient of a fixed direction in embedding space reaches every image, and is finite."""
    name = "gradient to the pixels"
    with torch.enable_grad():
        pixels = images.clone().requires_grad_(True)
        embeddings = model(pixels)
        direction = torch.randn(embeddings.shape[1], generator=torch.Generator().manual_seed(0)).to(embeddings)
        loss = (embeddings @ direction).sum()
        found = torch.autograd.grad(loss, pixels, allow_unused=True)[0] if loss.requires_grad else None
    if found is None:
        why = "attacks that follow it stand still. Look for no_grad, detach or NumPy in forward"
        return Finding(name, False, f"none: {why}.")
    lengths = found.flatten(1).norm(dim=1)
    zero, broken = 100 * (lengths == 0).float().mean(), 100 * (~torch.isfinite(lengths)).float().mean()
    seen = (
        f"zero for {zero:.3g} % and not finite for {broken:.3g} % of the images; median length {lengths.median():.2g}"
    )
    if not zero and not broken:
        return Finding(name, True, seen)
    why = "attacks that follow it stand still there, which is no robustness"
    return Finding(name, False, f"{seen}: {why}. Look for rounding, thresholds and saturated activations.")


def _differs_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
        return module.p > 0
    if isinstance(module, DropPath):
        return module.drop_prob > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _length(embeddings: Tensor) -> Tensor:
    """Root mean square length."""
    return embeddings.norm(dim=1).square().mean().sqrt().clamp(min=1e-12)


def _percent(share: Tensor) -> str:
    return f"{100 * share.item():.2g} %"
