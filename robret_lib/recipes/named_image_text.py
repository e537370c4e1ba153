"""The recipes of networks of images and texts, by data set."""

from dataclasses import replace

from robret_lib.data import RetrievalData, center_cropped, check_name, load, mixed, official_name
from robret_lib.recipes.image_text_recipe import ImageTextName, ImageTextRecipe

IMAGE_TEXT_GENERATION = 3
"""Raise it where an edit of the code changes the weights of full-scale networks; see `named.GENERATION`."""

SIDE = 48
"""Of the drawings of OpenMoji, in pixels."""

DRAWINGS = ImageTextRecipe(
    "efficientnet_lite0",
    bits=32,
    method="dcmh",
    steps=600,
    batch=32,
    hidden=1_024,
    lr=3e-4,
    pretrained=True,
)
"""Of OpenMoji, in two minutes."""

PHOTOGRAPHS = ImageTextRecipe(
    "efficientnet_lite0",
    bits=32,
    method="dcmh",
    steps=1_900,
    batch=64,
    lr=1e-4,
    generation=IMAGE_TEXT_GENERATION,
    pretrained=True,
    crop=84,
)
"""A small network for small photographs and their captions: squares of 96 pixels, cropped to 84."""

OFFICIAL_PAIRS = {
    # SAAT-Cross: ResNet-18, batches of 128; 500 passes over 10,000 images there, 50 here, with ImageNet weights
    name: replace(PHOTOGRAPHS, backbone="resnet18", batch=128, steps=50 * 79, words=words, tokens=tokens, crop=224)
    for name, words, tokens in (
        ("flickr25k_tags", 1_386, "tags"),
        ("nus_wide_tags", 1_000, "tags"),
        ("coco_captions", 2_026, "words"),
    )
}
"""Of the official sets with texts, by name; the numbers of words are at most those of the literature: a tag
that no training text has is not known."""

OF_METHOD: dict[ImageTextName, dict[str, object]] = {"dcmh": {}, "ssah": {"hidden": 4_096}}
"""Where SSAH differs: its published networks of texts and labels have 4,096 units."""

TUNING = {
    "defense": "center_guided",
    "eps": 8 / 255,
    "inner_step": 2 / 255,
    "inner_steps": 7,
    "flips": 3,
    "pretrained": False,
}
"""Of the defense: the attack on images of CgAT; three words of each text."""

TUNING_OF_DRAWINGS = TUNING | {"inner_step": 4 / 255, "inner_steps": 4}
"""Which reaches as far in half the time."""


def for_images_and_texts(name: str, scale: str, **changes: object) -> ImageTextRecipe:
    """The recipe for a data set with texts, with the named fields changed.

    Args:
        name: "openmoji"; "flickr25k_tags", "nus_wide_tags" and "coco_captions" at scale "full"; else a packed set of
            photographs with a ``text`` member, by a name that `data.load` knows or a path that ends in .npz.
        scale: "quick" or "full".
        changes: Fields of `ImageTextRecipe`.

    Raises:
        ValueError: Another scale, one of the official sets at scale "quick", or no such set.
    """
    if scale not in ("quick", "full"):
        raise ValueError(f"scale={scale!r}: expected 'quick' or 'full'")
    check_name(name)
    name = official_name(name)
    if name == "openmoji":
        return replace(DRAWINGS, **changes)
    if name in OFFICIAL_PAIRS and scale != "full":
        raise ValueError(f'{name} at scale {scale!r}: expected scale="full"')
    undefended = OFFICIAL_PAIRS.get(name, PHOTOGRAPHS)
    return replace(undefended, **(OF_METHOD.get(changes.get("method"), {}) | changes))


def defended_images_and_texts(
    name: str, scale: str, origin: ImageTextRecipe | None = None, **changes: object
) -> ImageTextRecipe:
    """The recipe of a defended network for a data set, with the named fields changed.

    Args:
        name, scale: As of `for_images_and_texts`; errors as well.
        origin: Of the network that it tunes; None is that of `for_images_and_texts`.
        changes: Fields of `ImageTextRecipe`, of the tuning.
    """
    of_the_set = for_images_and_texts(name, scale)
    origin = of_the_set if origin is None else origin
    tuning = TUNING_OF_DRAWINGS if name == "openmoji" else TUNING
    return replace(origin, **(tuning | {"origin": origin, "steps": max(1, origin.steps // 3)} | changes))


def image_text_data_of(name: str, scale: str) -> RetrievalData:
    """What the recipe of `for_images_and_texts` trains and is judged on: images as they are, or their middle; `mixed`.

    Names are those of `for_images_and_texts`, errors those of `data.load`.
    """
    name = official_name(name)
    if name == "openmoji":
        return mixed(load(name, scale, size=SIDE))
    crop = OFFICIAL_PAIRS.get(name, PHOTOGRAPHS).crop
    return mixed(center_cropped(load(name, scale, size=crop * 8 // 7), crop))
