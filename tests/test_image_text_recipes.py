"""Recipes of images and texts: what they say, trained once and kept under a name of their own, and those by name."""

import inspect
import json
import re
import sys
from dataclasses import fields, replace
from functools import partial
from typing import get_args

import pytest
import torch
from safetensors import safe_open
from torch.nn.utils import parameters_to_vector

from robret_lib import augmentation, data, hamming, hashing, models, recipes, training
from robret_lib.attacks import PGD
from robret_lib.attacks.search import ball, flips, parts, passes, schedules
from robret_lib.cross_modal import (
    DCMH,
    SSAH,
    CenterGuidedPairs,
    ImagesAndTexts,
    ImageTextModel,
    Semantic,
    center_guided,
    dcmh,
    networks,
    ssah,
    text_model,
)
from robret_lib.cross_modal import objective as pairs_objective
from robret_lib.data import DataError, Protocol, RetrievalData, Split, bag_of_words, labels, multi_hot
from robret_lib.defenses import collapse
from robret_lib.hashing import batch, hashnet, known_codes
from robret_lib.models import HashModel, embed
from robret_lib.recipes import (
    ImageTextRecipe,
    defended_images_and_texts,
    for_images_and_texts,
    image_text_data_of,
    image_text_objective,
    image_text_recipe,
    kept,
    named_image_text,
    trained,
)
from robret_lib.recipes.image_text_recipe import OF_A_DEFENSE, OF_A_NETWORK
from robret_lib.recipes.named_image_text import DRAWINGS, IMAGE_TEXT_GENERATION, OFFICIAL_PAIRS, PHOTOGRAPHS
from tests.small_codes import seeded
from tests.test_hash_recipes import DEFENDED as A_DEFENDED_HASH_RECIPE
from tests.test_hash_recipes import RECIPE as A_HASH_RECIPE
from tests.test_recipes import (
    CPU,
    assert_same_weights,
    imported_again,
    noted_trainings,
    some_data,
    weights_of,
)
from tests.test_recipes import DEFENDED as A_DEFENDED_RECIPE
from tests.test_recipes import RECIPE as A_RECIPE

# networks that were hardly trained
pytestmark = pytest.mark.filterwarnings("ignore:this training (is )?collapsed")

METHODS = get_args(recipes.ImageTextName)
NAN = float("nan")
RECIPE = ImageTextRecipe("c2f2_half", bits=8, method="dcmh", steps=4, batch=8, words=12, hidden=16)
SSAH_RECIPE = replace(RECIPE, method="ssah")
ATTACKED = {"defense": "center_guided", "eps": 0.1, "inner_step": 0.05, "inner_steps": 2, "flips": 2}
DEFENDED = replace(RECIPE, **ATTACKED, origin=RECIPE)
LONG = replace(RECIPE, generation=1)
WORDS = (("apple", "fruit"), ("dog", "animal"), ("car", "wheels"), ("house", "roof"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of trained models, away from the user's."""
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    return tmp_path / "models"


@pytest.fixture
def trainings(monkeypatch):
    return noted_trainings(monkeypatch)


@pytest.fixture
def edited(monkeypatch):
    return partial(imported_again, monkeypatch)


def split_of(images: torch.Tensor, classes: torch.Tensor, seed: int = 0) -> Split:
    """Each class has a bright quarter and two words, one of which may be missing; and there are words by chance."""
    images, chance = images // 4, torch.randint(6, (len(images), 2), generator=seeded(seed)).tolist()
    texts = []
    for image, label, (missing, other) in zip(images, classes.tolist(), chance, strict=True):
        image[:, 14 * (label // 2) :, 14 * (label % 2) :][:, :14, :14] += 190
        said = [word for place, word in enumerate(WORDS[label]) if place != missing]
        texts.append(" ".join(["a picture of", *said, f"thing{other}"]))
    return Split(images, classes, tuple(texts))


def some_pairs(seed: int = 0) -> RetrievalData:
    """Forty images with texts to train on; twelve ask, and twenty others are searched."""
    plain = some_data(seed)
    train, gallery = (split_of(part.images, part.labels, seed) for part in (plain.train, plain.gallery))
    query = split_of(plain.train.images[:12].flip(1), plain.train.labels[:12], seed=9)
    return replace(plain, train=train, query=query, gallery=gallery, protocol=Protocol("toy", "...", False, False))


def with_texts(split: Split, change) -> Split:
    return replace(split, texts=tuple(change(text) for text in split.texts))


# Trained once


@pytest.mark.parametrize("recipe", [RECIPE, SSAH_RECIPE], ids=METHODS)
def test_networks_of_images_and_texts_are_trained_once(recipe, trainings, cache):
    first, again = (trained(recipe, some_pairs(), CPU) for _ in range(2))
    assert len(trainings) == 1
    assert_same_weights(weights_of(again), weights_of(first))
    assert again.history == first.history and again.seconds == first.seconds > 0
    assert isinstance(again.model, ImageTextModel) and not any(part.training for part in again.model.modules())
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".safetensors"]
    begun = kept._initial_model(recipe, some_pairs()).state_dict()
    assert not any(torch.equal(value, begun[name]) for name, value in weights_of(first).items())


def test_the_networks_of_a_recipe_are_those_its_parts_train():
    data, result = some_pairs(), trained(replace(RECIPE, seed=3), some_pairs(), CPU)
    torch.manual_seed(3)
    images = models.build("c2f2_half", 8, distance="H")
    model = models.on_device(ImageTextModel(images, text_model(12, 8, (16,))), CPU)
    bags = bag_of_words.Vocabulary.of(data.train.texts, 12).bags(data.train.texts)
    hot = multi_hot(data.train.labels, 4)
    schedule = training.Schedule(4, batch=8, lr=1e-4, weight_decay=0.0, seed=3)
    history = training.train(model, data.train, ImagesAndTexts(DCMH(hot, 8), bags, hot), schedule)
    assert_same_weights(weights_of(result), model.state_dict())
    assert sum(entry["loss"] for entry in result.history) / 4 == pytest.approx(history[-1]["loss"])


def test_the_file_says_what_it_holds(cache):
    recipe = replace(DEFENDED, milestones=(0.5,), steps=1)
    trained(recipe, some_pairs(), CPU)
    told = []
    for file in cache.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            told.append(json.loads(stored.metadata()["recipe"]))
    (own,) = (each for each in told if each["origin"])
    origin = ImageTextRecipe(**own["origin"] | {"milestones": ()})
    assert ImageTextRecipe(**own | {"milestones": tuple(own["milestones"]), "origin": origin}) == recipe


@pytest.mark.parametrize("recipe", [RECIPE, SSAH_RECIPE, DEFENDED], ids=[*METHODS, "defended"])
def test_training_leaves_the_global_random_state_alone(recipe):
    """Also where the loss draws networks of its own."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained(replace(recipe, steps=1), some_pairs(), CPU)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("recipe", [RECIPE, SSAH_RECIPE], ids=METHODS)
def test_another_default_type_changes_nothing(recipe):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = trained(replace(recipe, steps=2), some_pairs(), CPU).model
    finally:
        torch.set_default_dtype(before)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_seed_draws_the_networks_of_the_loss():
    one, again, other = (
        image_text_objective.of_images_and_texts(replace(SSAH_RECIPE, seed=seed), some_pairs()).loss.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["of_labels.code.weight"], other["of_labels.code.weight"])


def test_crops_are_learned_on_and_the_middle_is_searched():
    images = torch.randint(256, (60, 1, 32, 32), generator=seeded(), dtype=torch.uint8)
    parts = [split_of(images[rows], torch.arange(60)[rows] % 4) for rows in (slice(40), slice(40, 50), slice(50, 60))]
    whole = RetrievalData("toy", *parts, tuple("abcd"), Protocol("toy", "...", False, False))
    cropped = data.center_cropped(whole, 28)
    assert cropped.query.texts == whole.query.texts
    found = trained(replace(RECIPE, crop=28), cropped, CPU)
    model = models.on_device(kept._initial_model(RECIPE, cropped), CPU)
    objective = image_text_objective.of_images_and_texts(RECIPE, cropped)
    crops = partial(augmentation.random_crop_and_flip, size=28)
    augment = lambda images, generator: crops(images, generator=generator)  # noqa: E731
    training.train(model, cropped.train, objective, RECIPE.schedule, augment=augment)
    assert_same_weights(weights_of(found), model.state_dict())
    defended = replace(DEFENDED, crop=28, steps=1, origin=replace(RECIPE, crop=28))
    assert trained(defended, cropped, CPU).history[-1]["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, DEFENDED], ids=["clean", "defended"])
def test_an_interrupted_training_goes_on_where_it_was(recipe, monkeypatch, cache):
    """Checkpoints come every 200 steps, and this one ends after 208."""

    class Interrupted(Exception):
        pass

    recipe, watched = replace(recipe, steps=210, batch=2), image_text_objective.watched

    def failing(*given):
        failing.calls += 1
        if failing.calls == 8:
            raise Interrupted
        return watched(*given)

    if recipe.origin:
        trained(recipe.origin, some_pairs(), CPU)
    failing.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(image_text_objective, "watched", failing)
        with pytest.raises(Interrupted):
            trained(recipe, some_pairs(), CPU)
    assert len(list(cache.glob("*.checkpoint"))) == 1
    resumed = trained(recipe, some_pairs(), CPU)
    for file in cache.iterdir():
        file.unlink()
    undisturbed = trained(recipe, some_pairs(), CPU)
    assert_same_weights(weights_of(resumed), weights_of(undisturbed))
    assert resumed.history == undisturbed.history


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", [RECIPE, SSAH_RECIPE, DEFENDED], ids=[*METHODS, "defended"])
def test_networks_trained_on_a_gpu_come_back_on_the_device_asked_for(recipe):
    made = trained(replace(recipe, steps=2), some_pairs(), torch.device("cuda"))
    assert made.device.startswith("cuda") and all(weight.is_cuda for weight in made.model.parameters())
    read = trained(replace(recipe, steps=2), some_pairs(), CPU)
    assert read.device == made.device and not any(weight.is_cuda for weight in read.model.parameters())
    assert_same_weights(weights_of(read), {name: weight.cpu() for name, weight in weights_of(made).items()})


# Networks and losses


def bags_of(recipe, part, pairs):
    return image_text_objective.vocabulary_of(recipe, pairs).bags(part.texts)


def test_a_vocabulary_is_that_of_the_texts_that_are_learned_on():
    pairs = some_pairs()
    pairs = replace(pairs, gallery=with_texts(pairs.gallery, lambda text: text + " zebra"))
    vocabulary = image_text_objective.vocabulary_of(replace(RECIPE, words=100), pairs)
    assert set(vocabulary.words) == {word for words in WORDS for word in words} | {
        "picture",
        *(f"thing{k}" for k in range(6)),
    }
    assert len(image_text_objective.vocabulary_of(RECIPE, pairs)) == 12
    objective = image_text_objective.of_images_and_texts(replace(RECIPE, words=100), pairs)
    assert torch.equal(objective.bags, vocabulary.bags(pairs.train.texts))


def test_texts_of_tags_are_taken_for_tags():
    pairs = some_pairs()
    pairs = replace(pairs, train=with_texts(pairs.train, lambda text: text.replace(" of", " of c++")))
    words = [
        image_text_objective.vocabulary_of(replace(RECIPE, words=100, tokens=each), pairs).words
        for each in ("words", "tags")
    ]
    assert not {"of", "a", "c++"} & {*words[0]} and {"of", "a", "c++"} <= {*words[1]}


@pytest.mark.parametrize("recipe", [RECIPE, SSAH_RECIPE], ids=METHODS)
def test_the_networks_of_each_method(recipe):
    model, pairs = image_text_objective.untrained(recipe, some_pairs()), some_pairs()
    loss = image_text_objective.of_images_and_texts(recipe, pairs).loss
    branches = model.images, model.texts
    assert all(isinstance(branch, HashModel) for branch in branches)
    assert [isinstance(branch.backbone, Semantic) for branch in branches] == [recipe.method == "ssah"] * 2
    assert type(loss) is {"dcmh": DCMH, "ssah": SSAH}[recipe.method]
    bags = bags_of(recipe, pairs.train, pairs)
    outputs = model(data.as_float(pairs.train.images[:3]), bags[:3])
    assert [tuple(each.shape) for each in outputs] == [(3, 8)] * 2
    hidden = [part.out_features for part in model.texts.modules() if isinstance(part, torch.nn.Linear)]
    assert hidden == ([16, 8] if recipe.method == "dcmh" else [16, 512, 8, 4])


def test_what_ssah_is_asked_for_reaches_the_loss():
    recipe = replace(SSAH_RECIPE, pairwise="squared", bits=6, hidden=9)
    loss = image_text_objective.of_images_and_texts(recipe, some_pairs()).loss
    assert loss.pairwise == "squared" and loss.known_codes.codes.shape == (40, 6)
    assert loss.of_labels.feature[0][0].out_features == 9
    assert loss.of_labels.labels.out_features == 4


def test_classes_are_those_of_the_data_also_where_nothing_is_trained_on_one():
    pairs = replace(some_pairs(), class_names=tuple("abcdef"))
    objective = image_text_objective.of_images_and_texts(RECIPE, pairs)
    assert objective.loss.known_images.labels.shape == (40, 6) and objective.classes == 6
    assert trained(replace(SSAH_RECIPE, steps=1), pairs, CPU).model.images.backbone.labels.out_features == 6


@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_data_without_texts_are_refused(part, trainings):
    pairs = some_pairs()
    pairs = replace(pairs, **{part: replace(getattr(pairs, part), texts=None)})
    with pytest.raises(DataError, match="toy has no texts: expected a packed file with a 'text' member, as openmoji"):
        trained(RECIPE, pairs, CPU)
    assert not trainings


def test_images_with_several_labels_are_trained_on():
    def change(split: Split) -> Split:
        hot = multi_hot(split.labels, 4)
        hot[::5, 0] = 1
        hot[3] = 0
        return replace(split, labels=hot)

    pairs = some_pairs()
    pairs = replace(pairs, **{part: change(getattr(pairs, part)) for part in ("train", "query", "gallery")})
    for recipe in (RECIPE, SSAH_RECIPE, replace(DEFENDED, steps=1)):
        assert set(trained(recipe, pairs, CPU).history[-1]) >= {"loss", "map"}


# How it is watched


def test_the_history_tells_the_map_both_ways_and_the_smaller_spread():
    pairs = some_pairs()
    result = trained(replace(RECIPE, steps=48, lr=1e-3), pairs, CPU)
    bags = [bags_of(RECIPE, part, pairs) for part in (pairs.query, pairs.gallery)]
    queries, items = (
        [hamming.codes_of(embed(branch, each)) for branch, each in zip(branches, inputs, strict=True)]
        for branches, inputs in (
            ((result.model.images, result.model.texts), (pairs.query.images, bags[0])),
            ((result.model.images, result.model.texts), (pairs.gallery.images, bags[1])),
        )
    )
    labels = pairs.query.labels, pairs.gallery.labels
    last = result.history[-1]
    assert [entry["step"] for entry in result.history] == list(range(6, 49, 6))
    assert set(last) == {"step", "loss", "image_to_text", "text_to_image", "map", "spread"}
    assert last["image_to_text"] == pytest.approx(hamming.hamming_map(queries[0], items[1], *labels))
    assert last["text_to_image"] == pytest.approx(hamming.hamming_map(queries[1], items[0], *labels))
    assert last["map"] == pytest.approx((last["image_to_text"] + last["text_to_image"]) / 2) and last["map"] > 70
    assert last["spread"] == pytest.approx(min(map(collapse.spread, items))) and last["spread"] > 0


def test_of_many_items_the_first_are_watched(monkeypatch):
    pairs = some_pairs()
    model = kept._initial_model(RECIPE, pairs)
    monkeypatch.setattr(image_text_objective, "QUERIES", 7)
    monkeypatch.setattr(image_text_objective, "ITEMS", 11)
    found = image_text_objective.watched(model, RECIPE, pairs)
    monkeypatch.undo()
    few = [
        Split(part.images[:n], part.labels[:n], part.texts[:n]) for part, n in ((pairs.query, 7), (pairs.gallery, 11))
    ]
    assert found == image_text_objective.watched(model, RECIPE, replace(pairs, query=few[0], gallery=few[1]))
    assert found != image_text_objective.watched(model, RECIPE, pairs)


def test_a_training_whose_codes_collapsed_is_told_with_its_map():
    """Here since all searched texts are one and the same."""
    pairs = some_pairs()
    pairs = replace(pairs, gallery=with_texts(pairs.gallery, lambda text: "apple"))
    with pytest.warns(
        RuntimeWarning, match=r"this training collapsed: from step 1 on, .*\(spread 0.0000, MAP \d+"
    ) as told:
        trained(RECIPE, pairs, CPU)
    assert told[-1].filename == __file__


# Defended


@pytest.mark.parametrize("origin", [RECIPE, SSAH_RECIPE], ids=METHODS)
def test_defended_networks_begin_with_the_weights_of_their_origin(origin, trainings, cache):
    recipe = replace(origin, **ATTACKED, origin=origin, steps=1, lr=1e-7)
    first = trained(recipe, some_pairs(), CPU)
    assert len(trainings) == 2 and len(list(cache.glob("*.safetensors"))) == 2
    again, begun = trained(recipe, some_pairs(), CPU), trained(origin, some_pairs(), CPU)
    assert len(trainings) == 2 and again.history == first.history
    assert_same_weights(weights_of(again), weights_of(first))
    change = {key: (value - weights_of(begun)[key]).abs().max() for key, value in weights_of(first).items()}
    assert (
        max(change.values()) < 1e-5
        and change["images.backbone.0.weight" if origin is RECIPE else "images.backbone.code.weight"] > 0
    )
    assert [type(each[2].loss).__name__ for each in trainings] == [type_of(origin), "CenterGuidedPairs"]


def type_of(recipe: ImageTextRecipe) -> str:
    return recipe.method.upper()


def test_what_a_defended_recipe_says_reaches_the_loss():
    pairs = some_pairs()
    original = trained(RECIPE, pairs, CPU).model
    loss = image_text_objective.of_images_and_texts(replace(DEFENDED, adversarial_weight=0.5), pairs, original).loss
    assert isinstance(loss, CenterGuidedPairs) and isinstance(loss.clean, DCMH) and loss.weight == 0.5
    assert loss.of_images == PGD(0.1, 0.05, 2, random_start=True)
    assert loss.of_texts == flips.WordFlips(2, tried=1)
    bags = bags_of(RECIPE, pairs.train, pairs)
    for known, branch, inputs in (
        (loss.known_images, original.images, pairs.train.images),
        (loss.known_texts, original.texts, bags),
    ):
        assert torch.equal(known.codes, hamming.codes_of(embed(branch, inputs)).float()) and known.seen.all()
    assert not loss.clean.known_images.seen.any()


def test_a_defended_network_may_be_the_origin_of_another(trainings):
    trained(replace(DEFENDED, origin=replace(DEFENDED, steps=2), steps=3), some_pairs(), CPU)
    assert [type(each[2].loss).__name__ for each in trainings] == ["DCMH", "CenterGuidedPairs", "CenterGuidedPairs"]


# The name


CHANGES = {
    "backbone": "c2f2",
    "bits": 9,
    "method": "ssah",
    "steps": 5,
    "batch": 9,
    "words": 11,
    "tokens": "tags",
    "hidden": 17,
    "pairwise": "squared",
    "mode": "reference",
    "lr": 1e-3,
    "optimizer": "sgd",
    "milestones": (0.5,),
    "weight_decay": 0.1,
    "seed": 1,
    "generation": 1,
    "pretrained": True,
    "crop": 24,
    "defense": None,
    "origin": replace(RECIPE, steps=5),
    "eps": 0.2,
    "inner_step": 0.1,
    "inner_steps": 1,
    "flips": 1,
    "adversarial_weight": 2.0,
}


@pytest.mark.parametrize("field", [field.name for field in fields(ImageTextRecipe)])
def test_every_part_of_a_recipe_is_part_of_its_name(field):
    pairs = some_pairs()
    if field == "defense":
        assert kept._key(DEFENDED, pairs) != kept._key(RECIPE, pairs)
        return
    recipe = DEFENDED if field in OF_A_DEFENSE else SSAH_RECIPE if field == "pairwise" else RECIPE
    assert kept._key(replace(recipe, **{field: CHANGES[field]}), pairs) != kept._key(recipe, pairs)
    assert kept._key(recipe, pairs) == kept._key(replace(recipe), some_pairs())


@pytest.mark.parametrize("part", ["train", "query", "gallery"])
def test_other_texts_are_another_file(part, trainings, cache):
    """Though it is one letter of one of them; those that are searched decide the history."""
    pairs = some_pairs()
    texts = list(getattr(pairs, part).texts)
    texts[5] += "s"
    other = replace(pairs, **{part: replace(getattr(pairs, part), texts=tuple(texts))})
    assert kept._key(LONG, pairs) != kept._key(LONG, other)
    for each in (pairs, other, pairs, other):
        trained(replace(RECIPE, steps=1), each, CPU)
    assert len(trainings) == 2 and len(list(cache.glob("*.safetensors"))) == 2


def test_words_moved_from_one_text_to_the_next_are_other_texts():
    pairs = some_pairs()
    first, second, *rest = pairs.train.texts
    moved = (f"{first} {second.split()[0]}", " ".join(second.split()[1:]), *rest)
    assert kept._key(RECIPE, pairs) != kept._key(RECIPE, replace(pairs, train=replace(pairs.train, texts=moved)))


def test_texts_rename_no_network_of_images_alone():
    pairs = some_pairs()
    bare = replace(pairs, **{part: replace(getattr(pairs, part), texts=None) for part in ("train", "query", "gallery")})
    assert all(kept._key(recipe, pairs) == kept._key(recipe, bare) for recipe in (A_RECIPE, A_HASH_RECIPE))


# the packages have functions of these names
CENTER_CODE, PGD_CODE = (sys.modules[f"robret_lib.{name}"] for name in ("hashing.center_code", "attacks.search.pgd"))
OF_ALL_PAIRS = (
    *(bag_of_words, labels, batch, known_codes, networks, pairs_objective),
    *(image_text_recipe, image_text_objective),
)
OF_THE_DEFENSE = ball, parts, passes, PGD_CODE, schedules, flips, center_guided, CENTER_CODE
ALONE = A_RECIPE, A_DEFENDED_RECIPE, A_HASH_RECIPE, A_DEFENDED_HASH_RECIPE
HASHED_TOO = labels, batch, known_codes


def renamed(again, *asked) -> list[bool]:
    return [again._key(recipe, some_pairs()) != kept._key(recipe, some_pairs()) for recipe in asked]


@pytest.mark.parametrize("module", [*OF_ALL_PAIRS, dcmh, ssah])
def test_other_code_of_pairs_renames_only_quick_networks_that_have_it(module, edited):
    again = edited(module, inspect.getsource(module) + "\nlast = 1\n")
    expected = [module is not ssah, module is not dcmh, module is not ssah]
    assert renamed(again, RECIPE, SSAH_RECIPE, DEFENDED) == expected
    shared = module in HASHED_TOO
    assert renamed(again, *ALONE) == [False, False, shared, shared]
    assert not any(
        renamed(again, LONG, replace(SSAH_RECIPE, generation=1), replace(DEFENDED, origin=LONG, generation=1))
    )


@pytest.mark.parametrize("module", OF_THE_DEFENSE)
def test_other_code_of_the_defense_renames_only_quick_networks_that_have_it(module, edited):
    again = edited(module, inspect.getsource(module) + "\nlast = 1\n")
    assert renamed(again, DEFENDED, RECIPE, SSAH_RECIPE) == [True, False, False]
    assert renamed(again, A_RECIPE, A_HASH_RECIPE) == [False, False]
    assert not any(renamed(again, replace(DEFENDED, origin=LONG, generation=1)))


@pytest.mark.parametrize("module", [models, training, data.retrieval_data])
def test_other_code_of_training_renames_quick_networks(module, edited):
    again = edited(module, inspect.getsource(module) + "\nlast = 1\n")
    assert renamed(again, RECIPE, SSAH_RECIPE, DEFENDED, LONG) == [True, True, True, False]


def test_other_code_of_the_origin_renames_a_defended_network(edited):
    recipe = replace(SSAH_RECIPE, **ATTACKED, origin=SSAH_RECIPE)
    again = edited(ssah, inspect.getsource(ssah) + "\nlast = 1\n")
    assert renamed(again, recipe, replace(recipe, generation=1), DEFENDED) == [True, True, False]


@pytest.mark.parametrize("module", [hamming, hashnet, named_image_text])
def test_code_that_decides_no_weight_renames_no_network(module, edited):
    again = edited(module, inspect.getsource(module) + "\nlast = 1\n")
    assert not any(renamed(again, RECIPE, SSAH_RECIPE, DEFENDED))


@pytest.mark.parametrize("module", [dcmh, image_text_objective, center_guided])
def test_other_words_rename_no_network(module, edited):
    assert not any(renamed(edited(module, "# a remark\n" + inspect.getsource(module)), RECIPE, SSAH_RECIPE, DEFENDED))


@pytest.mark.parametrize(
    ("modules", "of_all"),
    [((*OF_ALL_PAIRS, dcmh, ssah), ()), (OF_THE_DEFENSE, OF_ALL_PAIRS)],
    ids=["pairs", "defense"],
)
def test_what_these_modules_import_of_hashing_texts_and_searches_is_part_of_the_name(modules, of_all):
    """Of the package of hashing itself they take `KnownCodes`, and the center code, no more."""
    known = {module.__name__ for module in (*modules, *of_all)}
    pattern = r"from (robret_lib\.(?:hashing|cross_modal|attacks\.search)\.\w+|robret_lib\.data\.bag_of_words) import"
    found = {name for module in modules for name in re.findall(pattern, inspect.getsource(module))}
    of_the_loss = {module.__name__ for module in (dcmh, ssah, center_guided, flips)}
    assert found - known <= of_the_loss and found & known
    taken = [re.findall(r"from robret_lib\.hashing import (.*)", inspect.getsource(module)) for module in modules]
    assert {name.strip() for each in taken for line in each for name in line.split(",")} <= {
        "KnownCodes",
        "center_code",
    }
    assert hashing.KnownCodes.__module__ == known_codes.__name__


def test_networks_that_took_hours_keep_their_names():
    """A name is a promise: whoever has such a network must still find it. Raising the generation is what ends it."""
    recipe = for_images_and_texts("some/set.npz", "full", generation=1)
    assert kept._key(recipe, some_pairs()) == "a1d11ef19a5b0e6c"
    assert kept._key(replace(recipe, method="ssah"), some_pairs()) == "ec620a1133bfa77e"
    assert kept._key(replace(DEFENDED, origin=LONG, generation=1), some_pairs()) == "a594b15fcbfb1764"


# The code as the weights see it: where it changes them, IMAGE_TEXT_GENERATION has to be raised, and these numbers too

WEIGHTS_OF_THE_GENERATION = {
    (3, "dcmh"): 8.369820496148538,
    (3, "ssah"): -95.58953536406426,
    (3, "ssah, squared"): -90.25814820062566,
    (3, "center_guided"): -99.94539166024191,
}


def trained_a_little(defended=False, **changes):
    """How far seven steps of a full-scale recipe, of five a pass, move the weights along a fixed direction.

    The same on any machine whose processor has AVX2.
    """
    small = {"backbone": "c2f2_half", "pretrained": False, "crop": 0, "hidden": 16, "bits": 8, "lr": 1e-3}
    recipe = for_images_and_texts("some/set.npz", "full", **(small | {"steps": 7, "batch": 8} | changes))
    recipe = replace(recipe, **ATTACKED, origin=recipe) if defended else recipe
    pairs = some_pairs()
    train = Split(pairs.train.images.double() / 255, pairs.train.labels, pairs.train.texts)
    model = kept._initial_model(recipe, pairs)
    objective = image_text_objective.of_images_and_texts(recipe, pairs, model if defended else None).double()
    before = parameters_to_vector(model.double().parameters()).clone()
    training.train(model, train, objective, recipe.schedule)
    moved = parameters_to_vector(model.parameters()).detach() - before
    return (moved * torch.linspace(-1, 1, len(moved), dtype=torch.float64)).sum().item()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dcmh", {}),
        ("ssah", {"method": "ssah"}),
        ("ssah, squared", {"method": "ssah", "pairwise": "squared"}),
        ("center_guided", {"defended": True}),
    ],
)
def test_full_scale_weights_are_those_of_the_generation(name, changes):
    found = trained_a_little(**changes)
    assert found == pytest.approx(WEIGHTS_OF_THE_GENERATION.get((IMAGE_TEXT_GENERATION, name), NAN), rel=1e-6), (
        "full-scale networks of images and texts come out different now: raise IMAGE_TEXT_GENERATION, so that they are "
        f"trained again, and store {(IMAGE_TEXT_GENERATION + 1, name)}: {found!r}"
    )


def test_no_two_numbers_of_the_generation_are_the_same():
    assert len({round(number, 3) for number in WEIGHTS_OF_THE_GENERATION.values()}) == len(WEIGHTS_OF_THE_GENERATION)


def test_an_edit_that_changes_weights_is_noticed(monkeypatch):
    before = trained_a_little()
    monkeypatch.setattr(dcmh, "balanced", lambda similar: torch.ones_like(similar))
    assert trained_a_little() != pytest.approx(before, rel=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits=0: expected a whole number of at least 1"),
        ({"bits": 2.5}, "bits=2.5: expected a whole number"),
        ({"words": 0}, "words=0: expected a whole number of at least 1"),
        ({"hidden": -1}, "hidden=-1: expected a whole number of at least 1"),
        ({"method": "DCMH"}, r"method='DCMH': expected one of \('dcmh', 'ssah'\)"),
        ({"tokens": "letters"}, r"tokens='letters': expected one of \('words', 'tags'\)"),
        ({"pairwise": "l2"}, r"pairwise='l2': expected one of \('likelihood', 'squared'\)"),
        ({"pairwise": "squared"}, "pairwise='squared' with method='dcmh', which has one form only"),
        ({"mode": "published"}, "mode='published': expected 'fixed' or 'reference'"),
        ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"batch": None}, "batch=None: expected one of the two"),
        ({"lr": NAN}, "lr=nan: expected a finite number above 0"),
        ({"weight_decay": -1}, "weight_decay=-1: expected a finite number of at least 0"),
        ({"optimizer": "adamw"}, r"optimizer='adamw', .*expected one of \('adam', 'sgd', 'rmsprop'\)"),
        ({"milestones": (0.5, 67)}, "milestones=67: expected a share"),
        ({"crop": -3}, "crop=-3: expected a whole number of at least 0"),
    ],
    ids=str,
)
def test_a_recipe_that_nobody_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": "cgat"}, r"defense='cgat': expected one of \('center_guided',\), or None"),
        (
            {"origin": None},
            "defense='center_guided' with an origin of type NoneType: expected the ImageTextRecipe of the network that",
        ),
        ({"origin": A_HASH_RECIPE}, "defense='center_guided' with an origin of type HashRecipe"),
        ({"pretrained": True}, "pretrained=True with a defense, which begins with the weights of its origin"),
        ({"backbone": "c2f2"}, "backbone='c2f2' with an origin of backbone='c2f2_half': expected the same"),
        ({"bits": 16}, "bits=16 with an origin of bits=8: expected the same"),
        ({"method": "ssah"}, "method='ssah' with an origin of method='dcmh': expected the same"),
        ({"words": 9}, "words=9 with an origin of words=12: expected the same"),
        ({"tokens": "tags"}, "tokens='tags' with an origin of tokens='words': expected the same"),
        ({"hidden": 9}, "hidden=9 with an origin of hidden=16: expected the same"),
        (
            {"method": "ssah", "pairwise": "squared", "origin": SSAH_RECIPE},
            "pairwise='squared' with an origin of pairwise='likelihood': expected the same",
        ),
        ({"eps": 0.0}, "eps=0.0: expected a finite number above 0"),
        ({"eps": 8}, r"eps=8: expected a share in \[0, 1\]"),
        ({"eps": NAN}, "eps=nan: expected a share"),
        ({"inner_step": 0.0}, "inner_step=0.0: expected a finite number above 0"),
        ({"inner_step": 2}, r"inner_step=2: expected a share in \[0, 1\]"),
        ({"inner_steps": 0}, "inner_steps=0: expected a whole number of at least 1"),
        ({"flips": 0}, "flips=0: expected a whole number of at least 1"),
        ({"adversarial_weight": -1}, "adversarial_weight=-1: expected a finite number of at least 0"),
    ],
    ids=str,
)
def test_a_defended_recipe_that_nobody_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DEFENDED, **changes)


@pytest.mark.parametrize("field", OF_A_DEFENSE)
def test_what_nothing_but_a_defense_looks_at_is_refused_without_one(field):
    with pytest.raises(ValueError, match=f"{field}=.* without a defense that looks at it"):
        replace(RECIPE, **{field: CHANGES[field]})


def test_a_defended_network_shares_with_its_origin_what_it_and_its_loss_are_made_of():
    assert OF_A_NETWORK == ("backbone", "bits", "method", "words", "tokens", "hidden", "pairwise", "mode")
    others = {"seed": 3, "steps": 9, "batch": 4, "lr": 0.1, "optimizer": "sgd", "crop": 20, "generation": 1}
    assert replace(DEFENDED, origin=replace(RECIPE, **others)).origin.seed == 3


@pytest.mark.parametrize("changes", [{"backbone": "c3f3"}, {"pretrained": True}])
def test_a_network_that_nobody_has_is_refused_before_it_is_trained(changes, trainings):
    with pytest.raises(ValueError, match=r"backbone 'c3f3': expected|c2f2_half has no ImageNet weights"):
        trained(replace(RECIPE, **changes), some_pairs(), CPU)
    assert not trainings


# By name


def differing(one: ImageTextRecipe, other: ImageTextRecipe) -> set[str]:
    return {field.name for field in fields(ImageTextRecipe) if getattr(one, field.name) != getattr(other, field.name)}


def test_drawings_have_a_quick_recipe():
    assert for_images_and_texts("openmoji", "quick") == for_images_and_texts("openmoji", "full") == DRAWINGS
    assert DRAWINGS.generation is None and DRAWINGS.pretrained and not DRAWINGS.crop


def test_photographs_tune_a_small_network_on_crops():
    recipe = for_images_and_texts("some/set.npz", "quick")
    assert recipe == for_images_and_texts("some/set.npz", "full") == PHOTOGRAPHS
    assert (recipe.crop, recipe.generation, recipe.words, recipe.hidden) == (84, IMAGE_TEXT_GENERATION, 1_000, 8_192)


@pytest.mark.parametrize(
    ("name", "words", "tokens"),
    [("flickr25k_tags", 1_386, "tags"), ("nus_wide_tags", 1_000, "tags"), ("coco_captions", 2_026, "words")],
)
def test_official_sets_have_the_words_of_the_literature_and_no_quick_scale(name, words, tokens):
    assert len(OFFICIAL_PAIRS) == 3
    recipe = for_images_and_texts(name, "full")
    assert (recipe.words, recipe.tokens, recipe.crop, recipe.backbone) == (words, tokens, 224, "resnet18")
    assert recipe.steps == 50 * 79 and recipe.batch == 128 and recipe.generation == IMAGE_TEXT_GENERATION
    for call in (for_images_and_texts, defended_images_and_texts):
        with pytest.raises(ValueError, match=f"{name} at scale 'quick': expected scale=\"full\""):
            call(name, "quick")
        assert call(name.replace("_", "-"), "full") == call(name, "full")


@pytest.mark.parametrize("name", ["openmoji", "some/set.npz", "coco_captions"])
def test_what_is_asked_for_is_what_one_gets(name):
    changes = {"method": "ssah", "pairwise": "squared", "hidden": 7, "bits": 48, "seed": 4, "steps": 7, "crop": 20}
    recipe = for_images_and_texts(name, "full", **changes)
    assert {field: getattr(recipe, field) for field in changes} == changes
    assert differing(recipe, for_images_and_texts(name, "full")) == {*changes}


@pytest.mark.parametrize("name", ["some/set.npz", "coco_captions"])
def test_the_networks_of_ssah_are_as_wide_as_published(name):
    recipe = for_images_and_texts(name, "full", method="ssah")
    assert recipe.hidden == 4_096 and differing(recipe, for_images_and_texts(name, "full")) == {"method", "hidden"}


TUNED = {"defense", "origin", "eps", "inner_step", "inner_steps", "flips", "pretrained", "steps"}


@pytest.mark.parametrize("name", ["openmoji", "some/set.npz", "coco_captions"])
def test_a_defense_tunes_the_network_of_the_data_set(name):
    recipe, origin = defended_images_and_texts(name, "full"), for_images_and_texts(name, "full")
    assert recipe.origin == origin and not recipe.pretrained and recipe.defense == "center_guided"
    assert differing(recipe, origin) == TUNED and recipe.steps == origin.steps // 3
    assert recipe.eps == 8 / 255 and recipe.flips == 3
    assert recipe.inner_step * recipe.inner_steps > recipe.eps > recipe.inner_step


def test_what_is_asked_of_a_defense_is_what_one_gets():
    origin = for_images_and_texts("openmoji", "quick", bits=16, method="ssah", seed=2, steps=2)
    assert defended_images_and_texts("openmoji", "quick", origin).steps == 1
    changes = {"eps": 0.1, "inner_step": 0.02, "inner_steps": 2, "flips": 1, "steps": 7, "lr": 0.5}
    changes |= {"adversarial_weight": 0.5, "seed": 4, "generation": 9}
    recipe = defended_images_and_texts("openmoji", "quick", origin, **changes)
    assert {field: getattr(recipe, field) for field in changes} == changes
    assert recipe.origin == origin and (recipe.bits, recipe.method) == (16, "ssah")
    assert differing(recipe, origin) <= {*changes, *TUNED}


@pytest.mark.parametrize("origin", [None, DRAWINGS])
def test_a_name_or_a_scale_that_nobody_knows_has_no_recipe(origin):
    calls = partial(defended_images_and_texts, origin=origin), for_images_and_texts
    for name, scale, message in (
        ("openmoji", "Full", r"scale='Full': expected 'quick' or 'full'"),
        ("coco_captions", "quick", "coco_captions at scale 'quick': expected scale=\"full\""),
        ("emoji", "full", "no data set 'emoji': looked for the file .*"),
    ):
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call(name, scale)


# Data


@pytest.fixture
def packed(tmp_path):
    """Writes forty pictures under a name: 10 train, 6 ask, 24 are searched besides; a text has its number."""

    def write(name: str, side: int) -> tuple[str, ...]:
        pictures = torch.nn.functional.interpolate(torch.rand(40, 3, 3, 3, generator=seeded()) * 255, side)
        hot = (torch.rand(40, 3, generator=seeded(1)) < 0.5).int()
        split = ["train"] * 10 + ["query"] * 6 + ["database"] * 24
        texts = tuple(f"number{k} größe" for k in range(40))
        pictures = pictures.to(torch.uint8)
        data.write_packed(tmp_path / f"{name}.npz", pictures, hot, list("abc"), split=split, texts=texts)
        return texts

    return write


@pytest.mark.parametrize(
    ("name", "scale", "stored", "train", "searched"),
    [
        ("openmoji", "quick", 50, 48, 48),
        ("few", "quick", 100, 96, 84),
        ("few", "full", 100, 96, 84),
        ("flickr25k_tags", "full", 60, 256, 224),
        ("flickr25k-tags", "full", 60, 256, 224),
    ],
)
def test_images_come_with_their_texts_mixed_and_in_the_size_of_the_recipe(name, scale, stored, train, searched, packed):
    texts = packed(name.replace("-", "_"), stored)
    found = image_text_data_of(name, scale)
    assert found.train.images.shape == (10, 3, train, train) and found.train.texts == texts[:10]
    assert found.query.images.shape == (6, 3, searched, searched)
    assert found.gallery.images.shape == (34, 3, searched, searched)
    assert sorted(found.query.texts) == sorted(texts[10:16]) and found.query.texts != texts[10:16]
    assert set(found.gallery.texts) == {*texts[:10], *texts[16:]} and found.gallery.texts != (*texts[:10], *texts[16:])
    plain = data.load(name, scale, size=train)
    plain = plain if train == searched else data.center_cropped(plain, searched)
    for part in ("query", "gallery"):
        mine, theirs = getattr(found, part), getattr(plain, part)
        for place, text in enumerate(mine.texts):
            where = theirs.texts.index(text)
            assert torch.equal(mine.images[place], theirs.images[where])
            assert torch.equal(mine.labels[place], theirs.labels[where])


def test_a_packed_file_with_texts_is_trained_on(packed):
    packed("few", 32)
    pairs = image_text_data_of("few", "quick")
    recipe = for_images_and_texts("few", "quick", backbone="resnet18", pretrained=False, hidden=8, steps=1, batch=4)
    pairs = replace(pairs, gallery=pairs.query)
    assert trained(recipe, pairs, CPU).model.texts.backbone[1].in_features == 11


@pytest.mark.parametrize("name", ["openmoji", "coco_captions", "some/set.npz"])
def test_data_that_are_not_there_are_missed(name):
    with pytest.raises(DataError, match=f"no data set '{name}': looked for the file .*{name}"):
        image_text_data_of(name, "full")
