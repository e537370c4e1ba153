"""The run: what every attack shares. One loop over batches brings together what is wanted and how it is searched for.

An attack (`attack.Attack`) knows neither the search nor the batches; a search (`search.Search`) sees only a model,
images and a loss. They meet here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from robret_lib.attacks.attack import Attack, Benign
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.search.ball import check_images
from robret_lib.attacks.search.passes import Search
from robret_lib.data import as_float, check_labels
from robret_lib.models import EmbeddingModel, distance_of, embed

PLAN_BYTES = 512 * 2**20
"""What an attack may keep for one batch. Wide attacks on large galleries run in smaller batches than asked for."""

PART = 256
"""How many rows a search may ask a part of the loss for at once, where the attack keeps little."""

BYTES_PER_DISTANCE = 40
"""What a distance takes while a plan is prepared, with its place in the order and the running sum."""


@dataclass(frozen=True)
class Result:
    """What an attack did to B images.

    Args:
        images: Adversarial images, float ``[B, C, H, W]`` in [0, 1].
        targets: Gallery positions ``[B, m]``, or None for an attack without targets.
        benign, measured: The attack's measures by name, ``[B]`` each, before and after.
        passes, backward_passes: Forward and backward passes per image that the search made, counted; embedding the
            result to measure it is not among them.
    """

    images: Tensor
    targets: Tensor | None
    benign: dict[str, Tensor]
    measured: dict[str, Tensor]
    passes: float
    backward_passes: float


@torch.inference_mode(False)  # where the caller is in it, no search could take a gradient
def run(
    attack: Attack,
    model: EmbeddingModel,
    images: Tensor,
    gallery: Gallery,
    search: Search,
    own: Tensor | None = None,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Result:
    """Attack images and measure what became of them.

    Args:
        attack: What is wanted, such as `ranking.QueryAttack("raise")`.
        model: In [0, 1] pixels; the one that made the gallery.
        images: ``[B, C, H, W]``, uint8 or float in [0, 1].
        gallery: See `Gallery`; attacks that look at classes need its labels.
        search: How it is searched for, such as `PGD` or `AutoPGD`.
        own: Gallery positions ``[B]`` where the images are gallery items; None for queries from outside.
        labels: Classes of the images, int ``[B]`` or multi-hot ``[B, C]``; default: the gallery's at ``own``.
        generator: CPU generator of the targets and the search; None is torch's global one.
        batch_size: Images at once; changes speed and memory, not the result. Cut where an attack would keep more
            than half a GiB of distances.
        progress: Show a progress bar.

    Raises:
        TypeError: A class is given for an attack or a search.
        ValueError: Model, gallery, images, positions and labels that do not fit together; the message names both.
    """
    for given in (attack, search):
        if isinstance(given, type):
            raise TypeError(f"{given.__name__} is a class: expected {given.__name__}(...)")
    _check(model, images, gallery, own, labels, batch_size)
    spaces = _Spaces(images, gallery, own, labels)
    benign = spaces.add(model, gallery)
    targets = attack.targets(benign, generator)
    size = _rows_at_once(attack, gallery, batch_size)
    parts = []
    for start in tqdm(range(0, len(images), size), disable=not progress):
        rows = slice(start, start + size)
        batch = as_float(images[rows].to(benign.embeddings.device))
        wanted = _Wanted(attack, spaces, model, rows, None if targets is None else targets[rows])
        unattacked = wanted.plan.measures(benign.embeddings[rows])  # a plan may remember what the search showed it
        adversarial = search(spaces.counted(model), batch, wanted, generator)
        parts.append((adversarial.to(images.device), unattacked, wanted.plan.measures(embed(model, adversarial))))
    attacked, before, after = zip(*parts, strict=True)
    return Result(
        torch.cat(attacked),
        None if targets is None else targets.to(images.device),
        _joined(before, images.device),
        _joined(after, images.device),
        spaces.passes.forward / len(images),
        spaces.passes.backward / len(images),
    )


@dataclass
class _Passes:
    """How many images went through a network."""

    forward: int = 0
    backward: int = 0


class _Counted(nn.Module):
    """A network that counts the images which pass through it."""

    def __init__(self, network: nn.Module, passes: _Passes) -> None:
        super().__init__()
        self.network, self.passes = network, passes

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.network(images)
        self.passes.forward += len(images)
        if embeddings.requires_grad:
            embeddings.register_hook(self._backward)
        return embeddings

    def _backward(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)


class _Spaces:
    """The benign side in the embedding space of each network that takes part, computed when first asked for."""

    def __init__(self, images: Tensor, gallery: Gallery, own: Tensor | None, labels: Tensor | None) -> None:
        self.images, self.gallery = images, gallery
        device = gallery.embeddings.device
        self.own = None if own is None else own.to(device)
        if labels is None and own is not None and gallery.labels is not None:
            labels = gallery.labels[own.to(gallery.labels.device)]
        self.labels = None if labels is None else labels.to(device)
        self.passes = _Passes()
        self._benign: dict[nn.Module, Benign] = {}

    def add(self, network: EmbeddingModel, gallery: Gallery, attacked: Benign | None = None) -> Benign:
        embeddings = embed(network, self.images) if self.own is None else gallery.embeddings[self.own]
        benign = Benign(gallery, embeddings.to(gallery.embeddings), self.own, self.labels, attacked)
        self._benign[network] = benign
        return benign

    def counted(self, network: nn.Module) -> _Counted:
        return _Counted(network, self.passes)

    def benign(self, network: EmbeddingModel, gallery: Gallery | None = None) -> Benign:
        if network not in self._benign:
            if gallery is None and self.gallery.images is None:
                raise ValueError("the gallery has no images to embed with the surrogate: build it by Gallery.of")
            if gallery is not None and len(gallery) != len(self.gallery):
                raise ValueError(f"the surrogate's gallery has {len(gallery)} items, the attacked {len(self.gallery)}")
            check_device(network, self.gallery, "surrogate")
            gallery = gallery or Gallery.of(network, self.gallery.images, self.gallery.labels)
            self.add(network, gallery, next(iter(self._benign.values())))
        return self._benign[network]


class _Wanted:
    """The loss of some of the images in the space of a network: what a search is given as its `Loss`.

    Searches that ask for more than a loss find here: the same loss for another network (`on`) and for some of the
    images, each as often as is liked (`part`), how many of them are planned at once (`at_once`), the `gallery`, the
    loss to descend along (`at`), which images have all they want (`reached`), the loss of lists (`plan.answers`), and
    target labels (`plan.labels`).
    """

    def __init__(
        self, attack: Attack, spaces: _Spaces, network: EmbeddingModel, rows: slice | Tensor, targets: Tensor | None
    ) -> None:
        benign = spaces.benign(network)
        self.plan = attack.plan(benign[rows], targets)
        self.at, self.reached = self.plan.at, self.plan.reached
        self.gallery, self.at_once = benign.gallery, _rows_at_once(attack, benign.gallery, PART)
        self._made_of = attack, spaces, network, rows, targets

    def __call__(self, embeddings: Tensor) -> Tensor:
        return self.plan.loss(embeddings)

    def on(self, network: EmbeddingModel, gallery: Gallery | None = None) -> tuple[_Counted, "_Wanted"]:
        """Another network, counted, and the same loss in its space; its gallery, if that is known."""
        attack, spaces, _, rows, targets = self._made_of
        spaces.benign(network, gallery)
        return spaces.counted(network), _Wanted(attack, spaces, network, rows, targets)

    def part(self, chosen: Tensor) -> "_Wanted":
        """The loss of the images number ``chosen [R]`` among these; any may come more than once."""
        attack, spaces, network, rows, targets = self._made_of
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=chosen.device)
        return _Wanted(attack, spaces, network, rows[chosen], None if targets is None else targets[chosen])


def _rows_at_once(attack: Attack, gallery: Gallery, batch_size: int) -> int:
    return max(1, min(batch_size, PLAN_BYTES // (attack.rows * len(gallery) * BYTES_PER_DISTANCE)))


def _joined(parts: tuple[dict[str, Tensor], ...], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}


def _check(
    model: EmbeddingModel,
    images: Tensor,
    gallery: Gallery,
    own: Tensor | None,
    labels: Tensor | None,
    batch_size: int,
) -> None:
    if distance_of(model) != gallery.distance:
        raise ValueError(f"the model's distance is {distance_of(model)!r}, the gallery's {gallery.distance!r}")
    if not len(images):
        raise ValueError("0 images: expected at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    check_images(as_float(images[:8]))
    check_device(model, gallery, "model")
    if labels is not None:
        _check_labels(labels, images, gallery)
    if own is not None:
        _check_positions(own, images, gallery)
    expected = None if own is None else gallery.embeddings[own[:8].to(gallery.embeddings.device)]
    _check_embeddings(model, images[:8], gallery, expected)


def check_device(network: nn.Module, gallery: Gallery, what: str) -> None:
    """Raise a ValueError unless a network is where a gallery is; ``what`` says what the network is."""
    device = next(network.parameters(), gallery.embeddings).device
    if device != gallery.embeddings.device:
        raise ValueError(f"the {what} is on {device}, the gallery on {gallery.embeddings.device}: move one of them")


def _check_labels(labels: Tensor, images: Tensor, gallery: Gallery) -> None:
    check_labels(labels)
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: expected one label per image")
    if gallery.labels is not None and labels.shape[1:] != gallery.labels.shape[1:]:
        shapes = f"{tuple(labels.shape)} and {tuple(gallery.labels.shape)}"
        raise ValueError(f"labels of images and gallery of shapes {shapes}: expected both [N], or both [N, C]")


def _check_positions(own: Tensor, images: Tensor, gallery: Gallery) -> None:
    if not isinstance(own, Tensor) or own.ndim != 1 or own.dtype not in (torch.int64, torch.int32):
        given = f"{own.dtype} of shape {tuple(own.shape)}" if isinstance(own, Tensor) else type(own).__name__
        raise ValueError(f"own is {given}: expected gallery positions, int64 [B]")
    if len(images) != len(own):
        raise ValueError(f"{len(images)} images and {len(own)} gallery positions: expected one position per image")
    if own.min() < 0 or own.max() >= len(gallery):
        raise ValueError(f"own holds {int(own.min())} to {int(own.max())}: the gallery has {len(gallery)} items")


def _check_embeddings(model: EmbeddingModel, images: Tensor, gallery: Gallery, expected: Tensor | None) -> None:
    """A few images, embedded: has the gallery as many dimensions, and are they its items at their positions?"""
    found = embed(model, images).to(gallery.embeddings)
    dimensions = gallery.embeddings.shape[1]
    if found.shape[1] != dimensions:
        raise ValueError(
            f"the model gives {found.shape[1]} dimensions, the gallery has {dimensions}: of another model?"
        )
    if expected is None or _alike(found, expected):  # autocast stays below a hundredth
        return
    if not _alike(found, embed(model, images).to(found)):  # a model that draws random numbers
        return
    raise ValueError("the model does not embed these images as the gallery's items at own: other images or model?")


def _alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm(dim=1).max() <= 0.05 * expected.norm(dim=1).max())
