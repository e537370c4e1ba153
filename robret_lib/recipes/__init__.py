"""The models the chapters train, each from a recipe, trained once and kept for the next chapter."""

from robret_lib.recipes.hash_recipe import WITH_SOURCES, HashDefenseName, HashingName, HashRecipe, Source
from robret_lib.recipes.image_text_recipe import ImageTextDefenseName, ImageTextName, ImageTextRecipe
from robret_lib.recipes.kept import Trained, trained
from robret_lib.recipes.named import (
    FASHION_MNIST,
    INNER_ATTACK,
    data_of,
    fashion_mnist,
    for_data,
    official,
    photographs,
    tuned_photographs,
)
from robret_lib.recipes.named_hashing import defended_codes, for_codes, hash_data_of
from robret_lib.recipes.named_image_text import (
    defended_images_and_texts,
    for_images_and_texts,
    image_text_data_of,
)
from robret_lib.recipes.recipe import DefenseName, DestinationName, Recipe, SamplerName, Whitened

__all__ = [
    "FASHION_MNIST",
    "INNER_ATTACK",
    "WITH_SOURCES",
    "DefenseName",
    "DestinationName",
    "HashDefenseName",
    "HashRecipe",
    "HashingName",
    "ImageTextDefenseName",
    "ImageTextName",
    "ImageTextRecipe",
    "Recipe",
    "SamplerName",
    "Source",
    "Trained",
    "Whitened",
    "data_of",
    "defended_codes",
    "defended_images_and_texts",
    "fashion_mnist",
    "for_codes",
    "for_data",
    "for_images_and_texts",
    "hash_data_of",
    "image_text_data_of",
    "official",
    "photographs",
    "trained",
    "tuned_photographs",
]
