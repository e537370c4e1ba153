"""What an attack on the first answer looks at: the items of its classes, the image itself, and the answer."""

import torch
from torch import Tensor

from robret_lib.attacks.attack import Benign
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.ranking_losses import ItemSets
from robret_lib.distances import row_distance
from robret_lib.metrics import hits_at_k, relevance
from robret_lib.mining import Mode

NO_ITEM = -1
"""The target of an image that has none."""

CHUNK = 256
"""Images at once where targets are looked for among all items; decides memory, not the result."""

NO_SLOPE = 1e-6
"""An item nearer than this, in lengths of an embedding, is at the embedding itself but for rounding."""


def need_classes(attack: object, benign: Benign) -> None:
    """Raise a ValueError unless the classes of gallery and images are known."""
    if not has_classes(benign):
        name = type(attack).__name__
        raise ValueError(f"{name} needs classes: give labels to Gallery.of, and to run for images from outside")


def has_classes(benign: Benign) -> bool:
    """Are the classes of both gallery and images known?"""
    return benign.labels is not None and benign.gallery.labels is not None


def itself(benign: Benign, mode: Mode) -> Tensor | None:
    """Which gallery item ``[B]`` each image is, so that it is no answer; None where images are from outside.

    "fixed" goes by ``own``. "reference" takes the item nearest to the benign embedding, whatever ``own`` says, so
    that of several equal items it may leave out another one, and for an image from outside its first answer
    (RobRank, `AdvRank.eval_advrank`).
    """
    if mode == "fixed":
        return benign.own
    parts = benign.embeddings.split(CHUNK)
    return torch.cat([benign.gallery.exact_distances_from(part).argmin(1) for part in parts])


def others_and_own(benign: Benign, left_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The items that share no class with each image and those that do, bool ``[B, N]``, ``left_out [B]`` in neither."""
    gallery = benign.gallery
    own = relevance(benign.labels, gallery.labels.to(gallery.embeddings.device))
    others = ~own
    if left_out is not None:
        own.scatter_(1, left_out[:, None], False)
        others.scatter_(1, left_out[:, None], False)
    return others, own


def first_answer(embeddings: Tensor, benign: Benign, left_out: Tensor | None) -> dict[str, Tensor]:
    """``recall_at_1 [B]``: 100 where the first item but for ``left_out [B]`` shares a class with the image, else 0."""
    gallery = benign.gallery
    excluded = False if left_out is None else left_out
    hits = hits_at_k(embeddings, gallery.embeddings, benign.labels, gallery.labels, (1,), excluded)[1]
    return {"recall_at_1": 100 * hits.double()}


def closer_items(embeddings: Tensor, gallery: Gallery, items: Tensor, left_out: Tensor | None) -> Tensor:
    """How many items but for ``left_out [B]`` are closer to each embedding than each of ``items [B, m]``, int64."""
    distances = gallery.exact_distances_from(embeddings)
    to_items = distances.gather(1, items)
    if left_out is not None:
        distances.scatter_(1, left_out[:, None], torch.inf)
    return torch.stack([(distances < d[:, None]).sum(1) for d in to_items.T], dim=1)


def to_nearest(distances: Tensor, items: ItemSets, embeddings: Tensor, gallery: Gallery) -> Tensor:
    """Distance ``[B]`` to the nearest of a set, with its gradient; a constant 0 where the set is empty."""
    return _to_item(distances.masked_fill(items.left_out, torch.inf).argmin(1), items, embeddings, gallery)


def to_furthest(distances: Tensor, items: ItemSets, embeddings: Tensor, gallery: Gallery) -> Tensor:
    """Distance ``[B]`` to the furthest of a set, with its gradient; a constant 0 where the set is empty."""
    return _to_item(distances.masked_fill(items.left_out, -torch.inf).argmax(1), items, embeddings, gallery)


def _to_item(position: Tensor, items: ItemSets, embeddings: Tensor, gallery: Gallery) -> Tensor:
    found = row_distance(embeddings, gallery.embeddings[position], gallery.distance)
    if gallery.distance != "C":  # else the direction of a rounding error would be as steep as any
        found = torch.where(found > NO_SLOPE * gallery.length, found, found.detach())
    return found if items.empty is None else torch.where(items.empty, 0.0, found)
