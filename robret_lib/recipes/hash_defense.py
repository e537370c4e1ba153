"""What a recipe of a defended hash network minimizes, and what it knows before the first step."""

import torch
from torch import Tensor, nn

from robret_lib import defenses, hamming, models
from robret_lib.attacks import PGD
from robret_lib.augmentation import random_crop_and_flip
from robret_lib.data import RetrievalData, Split, as_float, center_crop
from robret_lib.hashing import HashObjective, train_prototypes
from robret_lib.recipes.hash_recipe import HashDefenseName, HashRecipe

DEFENSES: dict[HashDefenseName, type[defenses.AttackedCodes]] = {
    "atrdh": defenses.PrototypeTargeted,
    "cgat": defenses.CenterGuided,
    "saat": defenses.MainstayGuided,
    "pairs": defenses.PairGuided,
    "prototypes": defenses.PrototypeGuided,
}

AT_ONCE = 32
"""Training images that are embedded together as published; decides what dropout draws."""

PROTOTYPE_STEPS = 300
"""In which prototypes are fitted to the codes that are known, before anything is guided by them."""


def of_hash_defense(recipe: HashRecipe, clean: HashObjective, data: RetrievalData, original: nn.Module) -> nn.Module:
    """The objective of a recipe with a defense.

    Args:
        recipe: See `HashRecipe`.
        clean: The loss of its origin. The codes of the training set by the original network are filled in.
        data: Of the recipe.
        original: The network of its origin.
    """
    if recipe.mode == "fixed" or recipe.defense == "saat":
        clean.known.fill(searched_codes(recipe, data, original))
    elif recipe.defense == "cgat":
        clean.known.fill(published_codes(recipe, data.train, original))
    search = PGD(recipe.eps, recipe.inner_step, recipe.inner_steps, random_start=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)  # of the network of prototypes
        made = DEFENSES[recipe.defense](
            search,
            clean,
            adversarial_weight=recipe.adversarial_weight,
            hashing_weight=recipe.hashing_weight,
            quantization=recipe.quantization,
            mode=recipe.mode,
        )
    if recipe.mode == "fixed" and recipe.defense in ("atrdh", "prototypes"):
        drawn, known = torch.Generator().manual_seed(recipe.seed), clean.known
        fitted_to = known.labels, known.codes, known.labels
        train_prototypes(made.prototypes.network, *fitted_to, PROTOTYPE_STEPS, generator=drawn)
    return made


def searched_codes(recipe: HashRecipe, data: RetrievalData, model: nn.Module) -> Tensor:
    """Codes ``[N, bits]`` of the training images as they would be searched: of their middle, without dropout."""
    train = center_crop(data.train, recipe.crop) if recipe.crop else data.train
    return hamming.codes_of(models.embed(model, train.images)).cpu()


@torch.no_grad()
def published_codes(recipe: HashRecipe, train: Split, model: nn.Module) -> Tensor:
    """Codes ``[N, bits]`` as CgAT's code has them: of images as they are trained on, by a network with dropout."""
    if recipe.crop and not recipe.augmented:
        train = center_crop(train, recipe.crop)
    generator, device = torch.Generator().manual_seed(recipe.seed), next(model.parameters()).device
    found, training = [], model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        model.train()
        for images in train.images.split(AT_ONCE):
            crops = random_crop_and_flip(images, recipe.crop, generator) if recipe.crop and recipe.augmented else images
            found.append(hamming.codes_of(model(as_float(crops.to(device)))).cpu())
        model.train(training)
    return torch.cat(found)
