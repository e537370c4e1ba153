"""What a recipe of images and texts trains, what that minimizes, and how its training is watched."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robret_lib import hamming, models
from robret_lib.attacks import PGD
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.cross_modal.center_guided import CenterGuidedPairs
from robret_lib.cross_modal.dcmh import DCMH
from robret_lib.cross_modal.networks import ImageTextModel, semantic_image_model, semantic_text_model, text_model
from robret_lib.cross_modal.objective import ImagesAndTexts
from robret_lib.cross_modal.ssah import SSAH
from robret_lib.data import DataError, RetrievalData, center_crop, multi_hot
from robret_lib.data.bag_of_words import Vocabulary
from robret_lib.defenses import collapse
from robret_lib.hashing import KnownCodes
from robret_lib.recipes.hash_objective import ITEMS, QUERIES
from robret_lib.recipes.image_text_recipe import ImageTextName, ImageTextRecipe

LOSSES: dict[ImageTextName, Callable[[ImageTextRecipe, Tensor], nn.Module]] = {
    "dcmh": lambda recipe, labels: DCMH(labels, recipe.bits, recipe.mode),
    "ssah": lambda recipe, labels: SSAH(labels, recipe.bits, recipe.pairwise, hidden=recipe.hidden, mode=recipe.mode),
}


def vocabulary_of(recipe: ImageTextRecipe, data: RetrievalData) -> Vocabulary:
    """The words that a network of this recipe knows: those of the texts that it learns on.

    Raises:
        DataError: A part of the data set has no texts.
    """
    if any(split.texts is None for split in (data.train, data.query, data.gallery)):
        raise DataError(f"{data.name} has no texts: expected a packed file with a 'text' member, as openmoji")
    return Vocabulary.of(data.train.texts, recipe.words, recipe.tokens)


def untrained(recipe: ImageTextRecipe, data: RetrievalData) -> ImageTextModel:
    """The two networks before training; torch's global generator draws their weights."""
    images = models.build(recipe.backbone, recipe.bits, recipe.pretrained, "H")
    words = len(vocabulary_of(recipe, data))
    if recipe.method == "dcmh":
        return ImageTextModel(images, text_model(words, recipe.bits, (recipe.hidden,)))
    classes = len(data.class_names)
    images = semantic_image_model(images, recipe.bits, classes)
    return ImageTextModel(images, semantic_text_model(words, recipe.bits, classes, recipe.hidden))


def of_images_and_texts(
    recipe: ImageTextRecipe, data: RetrievalData, original: ImageTextModel | None = None
) -> ImagesAndTexts:
    """The objective of a recipe for a training set; ``original`` is the network of its origin."""
    bags = vocabulary_of(recipe, data).bags(data.train.texts)
    labels = multi_hot(data.train.labels, len(data.class_names))
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)  # of SSAH's networks of labels
        loss = LOSSES[recipe.method](recipe, labels)
    if original is not None:
        loss = _defended(recipe, loss, data, bags, labels, original)
    return ImagesAndTexts(loss, bags, labels)


def watched(model: ImageTextModel, recipe: ImageTextRecipe, data: RetrievalData) -> dict[str, float]:
    """MAP in percent of the first queries in the first items, both ways, its mean, and how far codes lie apart."""
    vocabulary = vocabulary_of(recipe, data)
    queries, gallery = (
        _codes(model, split.images[:few], vocabulary.bags(split.texts[:few]))
        for split, few in ((data.query, QUERIES), (data.gallery, ITEMS))
    )
    labels = data.query.labels[:QUERIES].cpu(), data.gallery.labels[:ITEMS].cpu()
    found = {
        "image_to_text": hamming.hamming_map(queries[0], gallery[1], *labels),
        "text_to_image": hamming.hamming_map(queries[1], gallery[0], *labels),
    }
    spread = min(collapse.spread(codes) for codes in gallery)
    return found | {"map": sum(found.values()) / 2, "spread": spread}


def _defended(
    recipe: ImageTextRecipe,
    loss: nn.Module,
    data: RetrievalData,
    bags: Tensor,
    labels: Tensor,
    original: ImageTextModel,
) -> CenterGuidedPairs:
    train = center_crop(data.train, recipe.crop) if recipe.crop else data.train
    known = [KnownCodes(labels, recipe.bits) for _ in range(2)]
    for each, codes in zip(known, _codes(original, train.images, bags), strict=True):
        each.fill(codes)
    of_images = PGD(recipe.eps, recipe.inner_step, recipe.inner_steps, random_start=True)
    of_texts = WordFlips(recipe.flips, tried=1)
    return CenterGuidedPairs(loss, of_images, of_texts, *known, recipe.adversarial_weight)


def _codes(model: ImageTextModel, images: Tensor, bags: Tensor) -> list[Tensor]:
    pairs = (model.images, images), (model.texts, bags)
    return [hamming.codes_of(models.embed(branch, inputs)).cpu() for branch, inputs in pairs]
