"""Checks, before any attack, that model and images are what an attack assumes: call `inspect` first."""

import copy

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from robret_lib.checks import normalization
from robret_lib.checks.findings import Finding, Report, found
from robret_lib.data import as_float
from robret_lib.models import embeddings_of, frozen, has_batch_statistics, unwrapped

SAME = 1e-3
"""Embeddings of two equal passes closer than this share of their length are the same."""

SAME_IN_ANOTHER_BATCH = 1e-2
"""The same for another batch size, for which a GPU may choose another convolution (TF32 keeps three digits)."""

COLLAPSED = 0.02
"""Embeddings whose spread is below this share of their length are all alike."""

SMALL_STEPS = (1e-4, 1e-3, 4e-3)
"""Changes of the pixels over which a gradient should foretell that of the embedding; half precision needs the last."""

FORETOLD = 0.75
"""Share of the images for which it should, up to a factor of two, over one of these steps."""

FEW = 8
"""Images that are looked at in float64, which is slow."""

TINY_STEPS = (1e-6, 1e-4, 1e-3)
"""Changes of the pixels in float64, the later ones for a model that computes a part of itself in float32."""

BOUNDED = 0.9
"""Outputs of which none is beyond 1, but the largest beyond this, look like those of a tanh; small ones do not."""

UNTOLD = 0.04
"""Share of the change over a tiny step that a gradient may fail to foretell. Of sound networks, three images in four
stay below 0.006; with 0.3 of the embedding detached, three in four lie above 0.07."""


def inspect(model: nn.Module, images: Tensor) -> Report:
    """Check a model on a few images; it is left as it was found (weights, buffers, modes).

    Runs in evaluation mode, as every evaluation here does. It cannot see what a model does to other images, or far
    from these (`diagnose` attacks it to find out), or a wrong normalization of a network without BatchNorm that
    applies it once (see `normalization`).

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
        with torch.inference_mode(False), frozen(model):
            findings += _checks_of_embeddings(model, as_float(images.to(weight.device).clone()))
    return Report(tuple(findings))


def _checks_of_embeddings(model: nn.Module, images: Tensor) -> list[Finding]:
    with torch.no_grad():
        embeddings = embeddings_of(model, images)
    findings = [finite(embeddings)]
    if findings[0].ok:
        assumed = [
            different(embeddings),
            repeatable(model, images, embeddings),
            independent_of_batch(model, images, embeddings),
            gradient(model, images),
        ]
        findings += [
            unit_length(embeddings, getattr(unwrapped(model), "distance", None)),
            *assumed[:3],
            normalized_once(model, images),
            assumed[3],
        ]
        if all(finding.ok for finding in assumed):  # else a small step shows nothing
            findings.append(gradient_is_slope(model, images))
    return findings


def pixel_range(images: Tensor) -> Finding:
    """Images handed over are float in [0, 1], and not divided by 255 twice."""
    name = "images in [0, 1]"
    if not images.is_floating_point():
        trouble = "a budget such as 8/255 means nothing there. Hand over as_float(images), from bytes."
        return found(name, False, f"the images are {images.dtype}", trouble)
    low, high = images.amin().item(), images.amax().item()
    seen = f"pixels from {low:.3g} to {high:.3g}"
    if low >= 0 and high <= 2 / 255:
        return found(name, False, seen, "all but black. Divided by 255 twice? Most was not checked.")
    trouble = "budgets and clipping assume [0, 1]. Divide by 255, the model normalizes. Most was not checked."
    return found(name, low >= 0 and high <= 1, seen, trouble)


def evaluation_mode(model: nn.Module) -> Finding:
    """No dropout or BatchNorm is live in the model as it was handed over."""
    live = [name or "itself" for name, module in model.named_modules() if _is_live(module)]
    some = f" ({', '.join(live[:3])}{', ...' if len(live) > 3 else ''})" if live else ""
    trouble = "a direct call of the model draws random numbers or mixes the images of a batch. Call model.eval()."
    seen = f"{len(live)} layers with dropout or BatchNorm in training mode{some}"
    return found("evaluation mode", not live, seen, trouble)


def finite(embeddings: Tensor) -> Finding:
    """No NaN, no infinity."""
    broken = ~torch.isfinite(embeddings).all(1)
    seen = f"{broken.sum()} of {len(embeddings)} embeddings with NaN or infinity"
    trouble = "they rank nowhere. Find the layer that overflows. Most was not checked."
    return found("finite embeddings", not broken.any(), seen, trouble)


def unit_length(embeddings: Tensor, distance: str | None) -> Finding:
    """Unit vectors where the distance is made for them."""
    lengths = embeddings.norm(dim=1)
    ok = distance not in ("N", "C") or bool((lengths - 1).abs().max() < 1e-3)
    seen = f'lengths from {lengths.min():.4g} to {lengths.max():.4g}, distance "{distance}"'
    trouble = 'this distance is for unit vectors, others break its margins and its tables. Normalize, or use "E".'
    return found("length of embeddings", ok, seen, trouble)


def different(embeddings: Tensor) -> Finding:
    """The embeddings are not all alike (a collapsed model has R@1 near chance, and looks robust)."""
    spread = (embeddings - embeddings.mean(0)).norm(dim=1).square().mean().sqrt() / _length(embeddings)
    trouble = (
        "a collapsed model hardly moves under attack, and finds nothing. Look at Recall@1, and that the images differ."
    )
    return found("different embeddings", spread > COLLAPSED, f"spread {_percent(spread)} of their length", trouble)


def without_tanh(outputs: Tensor) -> Finding:
    """The outputs of a hash network do not look as if they ended in a tanh.

    Args:
        outputs: Of a whole gallery, ``[N, bits]``: among many, raw ones that are not small go beyond 1.
    """
    largest = outputs.abs().max().item()
    seen = f"of {len(outputs)} x {outputs.shape[1]} outputs the largest is {largest:.4g}"
    trouble = (
        "all lie in [-1, 1]: do they end in a tanh? Attacks follow the tanh of what they get. Where one before it is "
        "flat, they find less, and more is left than there is. Leave it off, the codes are the same."
    )
    return found("outputs without a tanh", not BOUNDED < largest <= 1, seen, trouble)


def repeatable(model: nn.Module, images: Tensor, embeddings: Tensor) -> Finding:
    """A second pass gives the same embeddings."""
    with torch.no_grad():
        change = (embeddings_of(model, images) - embeddings).norm(dim=1).max() / _length(embeddings)
    seen = f"a second pass moves them by {_percent(change)} of their length"
    trouble = "an attack on one draw is measured on another, which hides what it found. Attack the mean of many draws."
    return found("repeatable embeddings", change < SAME, seen, trouble)


def independent_of_batch(model: nn.Module, images: Tensor, embeddings: Tensor) -> Finding:
    """The first four images embed alone as in their batch."""
    with torch.no_grad():
        alone = torch.cat([embeddings_of(model, image) for image in images[:4].split(1)])
    change = (alone - embeddings[:4]).norm(dim=1).max() / _length(embeddings)
    seen = f"alone instead of in the batch, images move by {_percent(change)} of their length"
    trouble = "results depend on who shares a batch. Give BatchNorm running statistics."
    return found("independent of the batch", change < SAME_IN_ANOTHER_BATCH, seen, trouble)


def normalized_once(model: nn.Module, images: Tensor) -> Finding:
    """Pixels are normalized inside the model, at most once, and as its first BatchNorm remembers."""
    name = "normalization inside"
    seen = normalization.entry(model, images)
    if seen is None:
        return Finding(name, True, "not judged: the pixels do not reach the first layer as (x - mean) / std")
    applied = f"the first layer sees pixels {'as they are' if seen.total.is_identity() else f'with {seen.total}'}"
    if seen.times > 1 or (seen.total.std.max() < 0.1 and seen.total.std.min() > 0.02):
        trouble = (
            "normalized twice. A budget then acts many times larger, on images unlike those of training. Remove one."
        )
        return found(name, False, applied, trouble)
    better = normalization.better_fit(model, images, seen)
    trouble = f"its first BatchNorm remembers images like {better}. Benign numbers drop; set mean and std of the model."
    return found(name, better is None, applied, trouble)


def gradient(model: nn.Module, images: Tensor) -> Finding:
    """The gradient of a fixed direction in embedding space reaches every image, and is finite.

    Of a hash model, in the space of relaxed codes: where the outputs are large, tanh is flat.
    """
    slopes = slopes_of(model, images, relaxed=True)
    lengths = torch.zeros(len(images)) if slopes is None else slopes.flatten(1).norm(dim=1)
    zero, broken = lengths == 0, ~torch.isfinite(lengths)
    seen = f"zero for {zero.sum()} and not finite for {broken.sum()} of {len(images)} images"
    advice = "rounding, thresholds, saturation" if slopes is not None else "no_grad, detach or NumPy"
    trouble = f"attacks that follow it stand still there, which is no robustness. Look for {advice} in forward."
    return found("gradient to the pixels", not (zero | broken).any(), seen, trouble)


def gradient_is_slope(model: nn.Module, images: Tensor) -> Finding:
    """A small step along the gradient, and a tiny one in any direction, change the embedding as the gradient foretells.

    It need not: a backward pass written by hand, or a detached branch that carries the embedding or a part of it, gives
    a gradient of something else.
    """
    trials = _foretold_along_it(model, images), _foretold_all_around(model, images[:FEW])
    count, total = min(((int(told.sum()), len(told)) for told in trials), key=lambda trial: trial[0] / trial[1])
    trouble = (
        "attacks follow something that is not the slope of the embedding. Look for detach, or a backward written by "
        "hand, and attack without gradients."
    )
    seen = f"foretells a small step for {count} of {total} images"
    return found("gradient is the slope", count >= FORETOLD * total, seen, trouble)


def _foretold_along_it(model: nn.Module, images: Tensor) -> Tensor:
    """Up to a factor of two, along the sign of the gradient: bool ``[B]``."""
    slopes, foretold = slopes_of(model, images), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    with torch.no_grad():
        start = _along_a_direction(model, images)
        for step in SMALL_STEPS:
            if foretold.all():
                break
            moved = (images + step * slopes.sign()).clamp(0, 1)
            expected = (slopes * (moved - images)).flatten(1).sum(1)
            happened = _along_a_direction(model, moved) - start
            foretold |= (happened > expected / 2) & (happened < expected * 2)
    return foretold


def _foretold_all_around(model: nn.Module, images: Tensor) -> Tensor:
    """All but exactly, in random directions, in which no part of the gradient outweighs another: bool ``[B]``.

    Where the model does not run in float64 this cannot be seen, and all are true.
    """
    generator, foretold = torch.Generator().manual_seed(0), torch.zeros(len(images), dtype=torch.bool)
    signs = 2.0 * torch.randint(2, (4, *images.shape), generator=generator) - 1
    off_the_ties = 0.01 * torch.rand(images.shape, generator=generator)  # of max pooling, where an image is flat
    try:
        exact = copy.deepcopy(model).double()
        place = images.double().clamp(0.01, 0.98) + off_the_ties.to(images)
        slopes = slopes_of(exact, place)
        with torch.no_grad():
            start = _along_a_direction(exact, place)
            expected = torch.stack([(slopes * sign.to(slopes)).flatten(1).sum(1) for sign in signs])
            for step in TINY_STEPS:
                moved = [_along_a_direction(exact, place + step * sign.to(place)) for sign in signs]
                happened = (torch.stack(moved) - start) / step
                foretold |= ((happened - expected).norm(dim=0) <= UNTOLD * happened.norm(dim=0)).cpu()
                if foretold.all():
                    break
    except (RuntimeError, TypeError):
        return torch.ones_like(foretold)
    return foretold if start.dtype == torch.float64 else torch.ones_like(foretold)


def slopes_of(model: nn.Module, images: Tensor, relaxed: bool = False) -> Tensor | None:
    """The gradient ``[B, C, H, W]`` of how far embeddings lie along a fixed direction; None if there is none.

    Relaxed, the embeddings of a hash model are the tanh of what it says.
    """
    with torch.enable_grad():
        pixels = images.clone().requires_grad_(True)
        along = _along_a_direction(model, pixels, relaxed)
        return torch.autograd.grad(along.sum(), pixels, allow_unused=True)[0] if along.requires_grad else None


def _along_a_direction(model: nn.Module, images: Tensor, relaxed: bool = False) -> Tensor:
    embeddings = embeddings_of(model, images)
    if relaxed and getattr(unwrapped(model), "distance", None) == "H":
        embeddings = torch.tanh(embeddings)
    direction = torch.randn(embeddings.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return embeddings @ direction.to(embeddings)


def _is_live(module: nn.Module) -> bool:
    """In training mode, and of a kind that works differently there."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd | StochasticDepth):
        return module.p > 0
    if isinstance(module, DropPath):
        return module.drop_prob > 0
    return has_batch_statistics(module)


def _length(embeddings: Tensor) -> Tensor:
    """Root mean square length."""
    return embeddings.norm(dim=1).square().mean().sqrt().clamp(min=1e-12)


def _percent(share: Tensor) -> str:
    return f"{100 * share.item():.3g} %"
