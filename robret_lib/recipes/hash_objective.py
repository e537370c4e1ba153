"""What a recipe of a hash network minimizes, and how its training is watched."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from robret_lib import hamming, hashing, models
from robret_lib.data import RetrievalData, multi_hot
from robret_lib.data import labels as data_labels
from robret_lib.defenses import collapse
from robret_lib.hashing import (
    batch,
    centers,
    continuation,
    csq,
    dch,
    dph,
    dpn,
    dpsh,
    dsdh,
    greedyhash,
    hashnet,
    known_codes,
    objective,
    orthohash,
    swd,
)
from robret_lib.recipes.hash_recipe import HashingName, HashRecipe

QUERIES, ITEMS = 200, 2_000
"""How many queries and gallery items, the first, are watched during a training."""

QUANTIZER = 0.1
"""Weight of the sliced Wasserstein distance in SAAT's variants."""

Made = Callable[[HashRecipe, int, int], nn.Module]
"""A loss, from a recipe, the size of the training set, and the number of classes."""

LOSSES: dict[HashingName, Made] = {
    "dph": lambda recipe, size, classes: hashing.DPH(),
    "dpsh": lambda recipe, size, classes: hashing.DPSH(recipe.source),
    "hashnet": lambda recipe, size, classes: hashing.HashNet(10 / recipe.bits if recipe.source == "saat" else 0.1),
    "hswd": lambda recipe, size, classes: hashing.HashNet(10 / recipe.bits),
    "csq": lambda recipe, size, classes: hashing.CSQ(classes, recipe.bits, _csq_weight(recipe), recipe.seed),
    "csq_c": lambda recipe, size, classes: hashing.CSQ(classes, recipe.bits, 0.0, recipe.seed),
    "dsdh": lambda recipe, size, classes: hashing.DSDH(size, classes, recipe.bits),
    "dsdh_c": lambda recipe, size, classes: hashing.DSDH(size, classes, recipe.bits),
    "dch": lambda recipe, size, classes: hashing.DCH(),
    "greedyhash": lambda recipe, size, classes: hashing.GreedyHash(
        classes, recipe.bits, learned=recipe.source != "cgat"
    ),
    "dpn": lambda recipe, size, classes: hashing.DPN(classes, recipe.bits, seed=recipe.seed),
    "orthohash": lambda recipe, size, classes: hashing.OrthoHash(classes, recipe.bits, seed=recipe.seed),
}

CONTINUATIONS = {"deephash": continuation.by_epoch, "saat": continuation.by_step}
"""Of HashNet. CgAT's code has none for the networks that can be reached in it."""

PARTS: dict[HashingName, ModuleType] = {
    "dph": dph,
    "dpsh": dpsh,
    "hashnet": hashnet,
    "hswd": hashnet,
    "csq": csq,
    "csq_c": csq,
    "dsdh": dsdh,
    "dsdh_c": dsdh,
    "dch": dch,
    "greedyhash": greedyhash,
    "dpn": dpn,
    "orthohash": orthohash,
}
PARTS_OF_ALL = batch, centers, continuation, data_labels, known_codes, objective, swd
"""The code that decides the weights besides."""


def of_hashing(recipe: HashRecipe, data: RetrievalData) -> hashing.HashObjective:
    """The hashing loss of a recipe for a training set, drawn with the seed of the network that learned by it first."""
    first, labels = recipe, multi_hot(data.train.labels, len(data.class_names))
    while first.origin is not None:
        first = first.origin
    with torch.random.fork_rng([]):
        torch.manual_seed(first.seed)  # of GreedyHash's classifier
        loss = LOSSES[first.method](first, *labels.shape)
    # SAAT attacks with a sharpness of 1 before each step, which its HashNet keeps
    grows = recipe.method == "hashnet" and recipe.defense is None
    sharper = CONTINUATIONS.get(recipe.source) if grows else None
    unseen = "zeros" if recipe.mode == "reference" else "left out"
    return hashing.HashObjective(
        loss,
        hashing.KnownCodes(labels, recipe.bits, unseen),
        sharper or continuation.constant,
        QUANTIZER if recipe.method in ("hswd", "csq_c", "dsdh_c") else 0.0,
    )


def watched(model: models.HashModel, data: RetrievalData) -> dict[str, float]:
    """MAP in percent of the first queries in the first items of the gallery, and how far their codes lie apart."""
    gallery, query = data.gallery, data.query
    codes = hamming.codes_of(models.embed(model, gallery.images[:ITEMS])).cpu()
    asked = hamming.codes_of(models.embed(model, query.images[:QUERIES])).cpu()
    own = torch.arange(len(asked)) if data.protocol.self_excluded else None
    labels = query.labels[:QUERIES].cpu(), gallery.labels[:ITEMS].cpu()
    return {"map": hamming.hamming_map(asked, codes, *labels, own=own), "spread": collapse.spread(codes)}


def _csq_weight(recipe: HashRecipe) -> float:
    return 0.05 if recipe.source == "saat" else 1e-4
