"""Recipes of hash networks: trained once and kept under a name of their own, with the loss that they say."""

import inspect
import json
import re
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open

from robret_lib import data as data_package
from robret_lib import defenses, hamming, hashing, models, recipes, training
from robret_lib.attacks import PGD
from robret_lib.attacks.search import ball, passes
from robret_lib.data import Protocol, RetrievalData, Split, multi_hot
from robret_lib.defenses import attacked_codes, collapse, inner
from robret_lib.hashing import batch, continuation, dpsh, known_codes, objective, prototype
from robret_lib.models import HashModel, embed
from robret_lib.recipes import HashRecipe, for_codes, hash_defense, hash_objective, hash_recipe, kept, trained
from robret_lib.recipes.hash_objective import PARTS, PARTS_OF_ALL, of_hashing
from robret_lib.recipes.hash_recipe import OF_A_DEFENSE, OF_A_NETWORK, WITH_SOURCES
from robret_lib.recipes.named_hashing import HASHING_GENERATION
from tests.test_recipes import (
    CPU,
    assert_killed_and_resumed,
    assert_same_weights,
    forked_early,
    imported_again,
    noted_trainings,
    some_data,
    weights_of,
)
from tests.test_recipes import DEFENDED as A_DEFENDED_RECIPE
from tests.test_recipes import RECIPE as A_RECIPE

# networks that were hardly trained
pytestmark = pytest.mark.filterwarnings("ignore:this training (is )?collapsed")

METHODS = get_args(recipes.HashingName)
SOURCES = get_args(hash_recipe.Source)
NAN = float("nan")
RECIPE = HashRecipe("c2f2_half", bits=8, method="csq", steps=4, batch=8)
LONG = replace(RECIPE, generation=1)
DEFENDED = replace(RECIPE, defense="cgat", origin=RECIPE, eps=0.1, inner_step=0.05, inner_steps=2)
DEFENSES = get_args(hash_recipe.HashDefenseName)
IN_ALL_MODES = [(name, "fixed") for name in DEFENSES] + [(name, "reference") for name in hash_recipe.PUBLISHED]
QUANTIZED = {"hswd": hashing.HashNet, "csq_c": hashing.CSQ, "dsdh_c": hashing.DSDH}


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


def with_several_labels(data: RetrievalData) -> RetrievalData:
    """The same images; of some there are two labels, of one there is none."""

    def change(split: Split) -> Split:
        hot = multi_hot(split.labels, 4)
        hot[::5, 0] = 1
        hot[3] = 0
        return Split(split.images, hot)

    searched = change(data.gallery)
    return replace(data, train=change(data.train), query=searched, gallery=searched)


def with_patterns(data: RetrievalData) -> RetrievalData:
    """The same images, in which each class has a bright quarter of its own: something to learn."""

    def change(split: Split) -> Split:
        images = split.images // 4
        for image, label in zip(images, split.labels.tolist(), strict=True):
            image[:, 14 * (label // 2) :, 14 * (label % 2) :][:, :14, :14] += 190
        return Split(images, split.labels)

    searched = change(data.gallery)
    return replace(data, train=change(data.train), query=searched, gallery=searched)


# Trained once


def test_a_hash_network_is_trained_once(trainings, cache):
    first, again = (trained(RECIPE, some_data(), CPU) for _ in range(2))
    assert len(trainings) == 1
    assert_same_weights(weights_of(again), weights_of(first))
    assert again.history == first.history and again.seconds == first.seconds > 0
    assert isinstance(again.model, HashModel) and not again.model.training
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".safetensors"]


def test_the_network_of_a_recipe_is_the_one_its_parts_train():
    data = some_data()
    result = trained(RECIPE, data, CPU)
    torch.manual_seed(RECIPE.seed)
    model = models.on_device(models.build("c2f2_half", 8, distance="H"), CPU)
    known = hashing.KnownCodes(multi_hot(data.train.labels, 4), 8)
    schedule = training.Schedule(4, batch=8, lr=3e-4, weight_decay=1e-5, optimizer="rmsprop")
    history = training.train(model, data.train, hashing.HashObjective(hashing.CSQ(4, 8), known), schedule)
    assert_same_weights(weights_of(result), model.state_dict())
    assert sum(entry["loss"] for entry in result.history) / 4 == pytest.approx(history[-1]["loss"])


def test_the_file_says_what_it_holds(cache):
    trained(replace(RECIPE, milestones=(0.5,)), some_data(), CPU)
    (file,) = cache.glob("*.safetensors")
    with safe_open(file, framework="pt") as stored:
        told = json.loads(stored.metadata()["recipe"])
    assert HashRecipe(**told | {"milestones": tuple(told["milestones"])}) == replace(RECIPE, milestones=(0.5,))


@pytest.mark.parametrize("labels", ["single", "several"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_network(method, labels):
    data = some_data() if labels == "single" else with_several_labels(some_data())
    recipe = replace(RECIPE, method=method, steps=2)
    result, begun = trained(recipe, data, CPU), kept._initial_model(recipe, data)
    assert [set(entry) for entry in result.history] == [{"step", "loss", "map", "spread"}] * 2
    assert not torch.equal(result.model.backbone[-1].weight, begun.backbone[-1].weight)
    assert embed(result.model, data.query.images).shape == (20, 8)


def test_training_leaves_the_global_random_state_alone():
    """Also where the objective draws, as GreedyHash its classifier."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained(replace(RECIPE, method="greedyhash"), some_data(), CPU)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("method", "bits"), [("csq", 12), ("dpn", 8), ("orthohash", 8), ("greedyhash", 8)])
def test_the_seed_draws_what_the_loss_has_of_its_own(method, bits):
    """Always alike; Hadamard's centers, for bits that are a power of two, are not drawn."""
    torch.manual_seed(5)
    one, again, other = (
        of_hashing(replace(RECIPE, method=method, bits=bits, seed=seed), some_data()).loss.state_dict()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_crops_are_learned_on():
    """And the middle is searched."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 4
    parts = Split(images[:40], labels[:40]), *[Split(images[40:], labels[40:])] * 2
    whole = RetrievalData("toy", *parts, tuple("abcd"), Protocol("toy", "...", True, False))
    recipe, data = replace(RECIPE, crop=28), data_package.center_cropped(whole, 28)
    found = trained(recipe, data, CPU).model
    torch.manual_seed(0)
    model = models.on_device(models.build("c2f2_half", 8, distance="H"), CPU)
    crops = partial(kept._cropped, size=28)
    training.train(model, data.train, of_hashing(recipe, data), recipe.schedule, augment=crops)
    assert_same_weights(found.state_dict(), model.state_dict())


def test_the_middle_is_learned_on_where_nothing_is_augmented():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 32, 32), generator=generator, dtype=torch.uint8)
    parts = Split(images[:40], torch.arange(40) % 4), *[Split(images[40:], torch.arange(20) % 4)] * 2
    whole = RetrievalData("toy", *parts, tuple("abcd"), Protocol("toy", "...", True, False))
    data = data_package.center_cropped(whole, 28)
    recipe = replace(RECIPE, crop=28, augmented=False)
    middle = replace(data, train=data_package.center_crop(data.train, 28))
    expected = trained(replace(RECIPE, crop=0), middle, CPU)
    assert_same_weights(weights_of(trained(recipe, data, CPU)), weights_of(expected))


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was(tmp_path, cache):
    """HashNet remembers the codes of all images, and its tanh has just grown sharper."""
    recipe = HashRecipe("c2f2_half", bits=4, method="hashnet", source="saat", steps=260, batch=8)
    assert_killed_and_resumed(recipe, forked_early(), tmp_path, cache)


@pytest.mark.slow
def test_a_killed_training_of_a_defended_network_goes_on_where_it_was(tmp_path, cache):
    """The prototypes, too, go on learning from where they were; the origin is not trained again."""
    origin = HashRecipe("c2f2_half", bits=4, method="dph", steps=2, batch=8)
    tuned = {"defense": "atrdh", "eps": 0.1, "inner_step": 0.1, "inner_steps": 1, "mode": "reference"}
    assert_killed_and_resumed(
        replace(origin, steps=202, batch=2, origin=origin, **tuned), forked_early(), tmp_path, cache
    )


# Defended


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_a_defended_network_is_trained_and_kept_once(name, mode, trainings, cache):
    """Its origin first, whose weights it begins with."""
    recipe = defended(name, mode=mode, steps=1, lr=1e-7)
    first = trained(recipe, some_data(), CPU)
    assert len(trainings) == 2 and len(list(cache.glob("*.safetensors"))) == 2
    again, origin = trained(recipe, some_data(), CPU), trained(RECIPE, some_data(), CPU)
    assert len(trainings) == 2 and again.history == first.history
    assert_same_weights(weights_of(again), weights_of(first))
    change = {key: (value - weights_of(origin)[key]).abs().max() for key, value in weights_of(first).items()}
    assert max(change.values()) < 1e-5 and change["backbone.0.weight"] > 0
    assert isinstance(first.model, HashModel) and set(first.history[-1]) == {"step", "loss", "map", "spread"}
    assert type(trainings[1][2]) is hash_defense.DEFENSES[name]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "greedyhash"])
def test_networks_of_every_method_are_defended(method):
    data, origin = with_several_labels(some_data()), of_method(method)
    found = trained(defended("saat", method=method, origin=origin, mode="reference"), data, CPU)
    assert not torch.equal(
        weights_of(found)["backbone.0.weight"], weights_of(trained(origin, data, CPU))["backbone.0.weight"]
    )


def test_a_defended_network_may_be_the_origin_of_another(trainings):
    recipe = defended("saat", origin=replace(DEFENDED, steps=2), steps=3)
    trained(recipe, some_data(), CPU)
    assert [type(each[2]).__name__ for each in trainings] == ["HashObjective", "CenterGuided", "MainstayGuided"]


# The name


@pytest.mark.parametrize("field", [field.name for field in fields(HashRecipe)])
def test_every_part_of_a_recipe_is_part_of_its_name(field):
    changes = {
        "backbone": "c2f2",
        "bits": 9,
        "method": "dpsh",
        "source": "saat",
        "steps": 5,
        "batch": 9,
        "lr": 1e-3,
        "optimizer": "adam",
        "momentum": 0.5,
        "milestones": (0.5,),
        "weight_decay": 0.0,
        "seed": 1,
        "generation": 1,
        "pretrained": True,
        "crop": 24,
        "augmented": False,
        "defense": "saat",
        "origin": replace(RECIPE, steps=5),
        "eps": 0.2,
        "inner_step": 0.1,
        "inner_steps": 1,
        "hashing_weight": 0.5,
        "adversarial_weight": 2.0,
        "quantization": 1e-4,
        "mode": "reference",
    }
    data, recipe = some_data(), DEFENDED if field == "defense" or field in OF_A_DEFENSE else RECIPE
    recipe = replace(recipe, crop=28) if field == "augmented" else recipe
    recipe = replace(recipe, optimizer="sgd" if field == "momentum" else "rmsprop")
    assert kept._key(replace(recipe, **{field: changes[field]}), data) != kept._key(recipe, data)
    assert kept._key(recipe, data) == kept._key(replace(recipe), some_data())


def test_other_data_have_another_name():
    data = some_data()
    labels = with_several_labels(data)
    outside = replace(data, protocol=replace(data.protocol, self_excluded=False))
    keys = {kept._key(RECIPE, each) for each in (data, some_data(seed=1), labels, outside)}
    assert len(keys) == 4


def of_method(method: recipes.HashingName) -> HashRecipe:
    return replace(RECIPE, method=method)


def defended(name: recipes.HashDefenseName, **changes: object) -> HashRecipe:
    return replace(DEFENDED, defense=name, **changes)


OTHERS = A_RECIPE, A_DEFENDED_RECIPE, replace(A_RECIPE, generation=1), recipes.photographs(embedding_dim=8)


@pytest.mark.parametrize("module", [hash_recipe, hash_objective, *PARTS_OF_ALL, *dict.fromkeys(PARTS.values())])
def test_other_code_of_hashing_renames_only_quick_networks_that_have_it(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    renamed = {name for name in METHODS if again._key(of_method(name), data) != kept._key(of_method(name), data)}
    assert renamed == {name for name in METHODS if module in (hash_recipe, hash_objective, *PARTS_OF_ALL, PARTS[name])}
    for recipe in (*OTHERS, *(replace(of_method(name), generation=1) for name in METHODS)):
        assert again._key(recipe, data) == kept._key(recipe, data)


@pytest.mark.parametrize("module", [models, training, data_package.retrieval_data])
def test_other_code_of_training_renames_quick_networks(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    assert all(again._key(of_method(name), data) != kept._key(of_method(name), data) for name in METHODS)
    assert again._key(LONG, data) == kept._key(LONG, data)


PARTS_OF_ALL_DEFENSES = ball, passes, kept._PGD, inner, attacked_codes, hash_defense
PARTS_OF_A_DEFENSE = [*dict.fromkeys(part for parts in kept.HASH_PARTS.values() for part in parts)]
NOT_DEFENDED = [*(of_method(name) for name in METHODS), LONG, *OTHERS]


@pytest.mark.parametrize("module", [*PARTS_OF_ALL_DEFENSES, *PARTS_OF_A_DEFENSE])
def test_other_code_of_a_defense_renames_only_quick_networks_that_have_it(module, edited):
    """And no network without a defense of codes: `attacks.pgd` those that have a defense of embeddings."""
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    renamed = {name for name in DEFENSES if again._key(defended(name), data) != kept._key(defended(name), data)}
    assert renamed == {name for name in DEFENSES if module in (*PARTS_OF_ALL_DEFENSES, *kept.HASH_PARTS[name])}
    long = [defended(name, generation=1, origin=LONG) for name in DEFENSES]
    for recipe in (*NOT_DEFENDED, *long):
        shared = recipe is A_DEFENDED_RECIPE and module in (ball, passes, kept._PGD, inner)
        assert (again._key(recipe, data) != kept._key(recipe, data)) == shared


def test_every_defense_is_of_the_modules_that_make_it():
    """Those of its class, of those that it is made of, and what they import from there."""
    assert set(kept.HASH_PARTS) == set(hash_defense.DEFENSES) == set(DEFENSES)
    of_all = {part.__name__ for part in (*PARTS_OF_ALL_DEFENSES, *PARTS_OF_ALL)}
    for name, parts in kept.HASH_PARTS.items():
        made = {each.__module__ for each in hash_defense.DEFENSES[name].__mro__}
        for part in parts:
            made |= {*re.findall(r"from (robret_lib\.(?:defenses|hashing)\.\w+) import", inspect.getsource(part))}
        found = {module for module in made if module.startswith("robret_lib")} - of_all
        assert found == {part.__name__ for part in parts}, name


@pytest.mark.parametrize("name", DEFENSES)
def test_other_code_of_the_origin_renames_a_defended_network(name, edited):
    again, data = edited(dpsh, inspect.getsource(dpsh) + "\nlast = 1\n"), some_data()
    recipe = defended(name, method="dpsh", origin=of_method("dpsh"))
    assert again._key(recipe, data) != kept._key(recipe, data)
    assert again._key(defended(name), data) == kept._key(defended(name), data)
    long = replace(recipe, generation=1, origin=replace(recipe.origin, generation=1))
    assert again._key(long, data) == kept._key(long, data)
    assert kept._key(replace(long, origin=recipe.origin), data) != kept._key(long, data)


CENTER_CODE = sys.modules["robret_lib.hashing.center_code"]  # the package has a function of this name


@pytest.mark.parametrize("module", [hamming, CENTER_CODE, prototype, collapse])
def test_code_that_decides_no_weight_renames_no_network(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    assert all(again._key(of_method(name), data) == kept._key(of_method(name), data) for name in METHODS)


@pytest.mark.parametrize("module", [hash_objective, batch, dpsh])
def test_other_words_rename_no_network(module, edited):
    again, data = edited(module, "# a remark\n" + inspect.getsource(module)), some_data()
    assert all(again._key(of_method(name), data) == kept._key(of_method(name), data) for name in METHODS)


def test_every_module_of_hashing_is_part_of_a_method_or_of_all():
    """But for codes at the center of labels, in closed form and by a network: attacks and defenses make them."""
    folder = Path(batch.__file__).parent
    names = {part.__name__ for part in (*PARTS_OF_ALL, *PARTS.values())} - {"robret_lib.data.labels"}
    parts = {name.removeprefix("robret_lib.hashing.") for name in names}
    assert parts == {path.stem for path in folder.glob("*.py")} - {"__init__", "center_code", "prototype"}
    assert set(PARTS) == set(hash_objective.LOSSES) == set(METHODS)
    for method in METHODS:
        loss = of_hashing(of_method(method), some_data()).loss
        assert type(loss).__module__ == PARTS[method].__name__, method


@pytest.mark.parametrize("method", METHODS)
def test_another_default_type_changes_nothing(method):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = trained(replace(of_method(method), steps=2), some_data(), CPU).model
    finally:
        torch.set_default_dtype(before)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_networks_that_took_hours_keep_their_names():
    """A name is a promise: whoever has such a network must still find it. Raising the generation is what ends it."""
    recipe = for_codes("fashion-mnist", "full", generation=1)
    assert kept._key(recipe, some_data()) == "7d8f0e54753e0969"
    tuned = replace(DEFENDED, generation=1, origin=LONG)
    assert kept._key(tuned, some_data()) == "10729aa360162a45"


# The code as the weights see it: where it changes them, HASHING_GENERATION has to be raised, and these numbers with it

WEIGHTS_OF_THE_GENERATION = {
    (1, "dph"): 87.7592765235925,
    (1, "dpsh"): 114.89935585803414,
    (1, "hashnet"): 236.89660056519568,
    (1, "csq"): 146.14612797938406,
    (1, "dsdh"): 85.87328732889429,
    (1, "dch"): -25.33697978539717,
    (1, "greedyhash"): 227.96225048026673,
    (1, "dpn"): -113.86146270881216,
    (1, "orthohash"): 69.19746588968985,
    (1, "hswd"): 163.07637245996133,
    (1, "csq_c"): 160.8588575865046,
    (1, "dsdh_c"): 218.83429476662963,
    (1, "dpsh, cgat"): 90.77430361120285,
    (1, "dpsh, saat"): -102.68276860439755,
    (1, "hashnet, cgat"): 175.07325467141442,
    (1, "csq, saat"): 186.28339340065156,
    (1, "greedyhash, cgat"): 232.83003918985477,
    (1, "dph, published schedule"): 0.010093108188276464,
    (1, "atrdh, fixed"): 89.81866236717411,
    (1, "atrdh, reference"): 12.555046201491287,
    (1, "cgat, fixed"): 40.388730269681,
    (1, "cgat, reference"): 42.615875158640605,
    (1, "saat, fixed"): 28.642601143594185,
    (1, "saat, reference"): 29.10714117066579,
    (1, "pairs, fixed"): 119.39859565792477,
    (1, "pairs, reference"): 93.63087402541959,
    (1, "prototypes, fixed"): 20.79333652196093,
    (1, "prototypes, reference"): 46.71710232392618,
    (1, "saat, weights"): 14.752715760754128,
}

ELSEWHERE = [("dpsh", "cgat"), ("dpsh", "saat"), ("hashnet", "cgat"), ("csq", "saat"), ("greedyhash", "cgat")]
"""Settings that no other recipe here has."""


def trained_a_little(method, **changes):
    """How far seven steps of a full-scale recipe, of five a pass, move the weights along a fixed direction.

    The same on any machine whose processor has AVX2.
    """
    recipe = for_codes("fashion-mnist", "full", method=method, **({"steps": 7, "batch": 8} | changes))
    data, model = with_several_labels(some_data()), kept._initial_model(recipe, some_data()).double()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    training.train(model, data.train, of_hashing(recipe, data).double(), recipe.schedule)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    return (moved * torch.linspace(-1, 1, len(moved), dtype=torch.float64)).sum().item()


def tuned_a_little(name, mode, **changes):
    """The same of a defended network, from its first weights, on crops of larger images; as any recipe has them."""
    origin = for_codes("fashion-mnist", "full")
    attack = {"eps": 0.1, "inner_step": 0.05, "inner_steps": 3}
    schedule = {"steps": 7, "batch": 8, "optimizer": "adam", "lr": 1e-3, "momentum": 0.5, "milestones": (0.5, 0.75)}
    recipe = replace(origin, defense=name, origin=origin, mode=mode, crop=28, **(attack | schedule | changes))
    data, model = with_several_labels(with_borders(some_data())), kept._initial_model(recipe, some_data())
    objective = hash_defense.of_hash_defense(recipe, of_hashing(recipe, data), data, model).double()
    before = torch.nn.utils.parameters_to_vector(model.double().parameters()).clone()
    training.train(model, data.train, objective, recipe.schedule, augment=partial(kept._cropped, size=28))
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    return (moved * torch.linspace(-1, 1, len(moved), dtype=torch.float64)).sum().item()


def with_borders(data: RetrievalData) -> RetrievalData:
    """Two pixels more on each side of what is trained on."""
    images = torch.nn.functional.pad(data.train.images, (2, 2, 2, 2), value=99)
    return replace(data, train=Split(images, data.train.labels))


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_full_scale_weights_of_a_defense_are_those_of_the_generation(name, mode):
    assert_of_the_generation(tuned_a_little(name, mode), f"{name}, {mode}")


def test_full_scale_weights_by_the_weights_of_a_defense_are_those_of_the_generation():
    weights = {"hashing_weight": 0.5, "adversarial_weight": 2.0, "quantization": 1e-2}
    assert_of_the_generation(tuned_a_little("saat", "fixed", **weights), "saat, weights")


@pytest.mark.parametrize("method", METHODS)
def test_full_scale_weights_are_those_of_the_generation(method):
    assert_of_the_generation(trained_a_little(method), method)


@pytest.mark.parametrize(("method", "source"), ELSEWHERE)
def test_full_scale_weights_by_other_settings_are_those_of_the_generation(method, source):
    assert_of_the_generation(trained_a_little(method, source=source), f"{method}, {source}")


def test_full_scale_weights_by_the_published_schedule_are_those_of_the_generation():
    changes = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "milestones": (0.34, 0.67), "weight_decay": 5e-4}
    assert_of_the_generation(trained_a_little("dph", **changes), "dph, published schedule")


def test_no_two_numbers_of_the_generation_are_the_same():
    """As where a setting did not reach the loss."""
    assert len({round(number, 3) for number in WEIGHTS_OF_THE_GENERATION.values()}) == len(WEIGHTS_OF_THE_GENERATION)


def assert_of_the_generation(found, name):
    assert found == pytest.approx(WEIGHTS_OF_THE_GENERATION.get((HASHING_GENERATION, name), NAN), rel=1e-6), (
        "full-scale hash networks come out different now: raise HASHING_GENERATION, so that they are trained again, "
        f"and store {(HASHING_GENERATION + 1, name)}: {found!r}"
    )


@pytest.mark.parametrize("edit", ["weight", "quantizer", "unseen codes", "sharpness", "head", "rate"])
def test_an_edit_that_changes_weights_is_noticed(edit, monkeypatch):
    method = {"quantizer": "hswd", "sharpness": "hashnet"}.get(edit, "dpsh")
    before = trained_a_little(method)
    if edit == "weight":
        monkeypatch.setitem(dpsh.WEIGHT, "deephash", 0.11)
    elif edit == "quantizer":
        monkeypatch.setattr(hash_objective, "QUANTIZER", 0.11)
    elif edit == "unseen codes":
        known = hashing.KnownCodes
        monkeypatch.setattr(hashing, "KnownCodes", lambda labels, bits, unseen: known(labels, bits, "zeros"))
    elif edit == "sharpness":
        monkeypatch.setitem(hash_objective.CONTINUATIONS, "saat", lambda step, epoch: 1 + 0.01 * step)
    elif edit == "head":
        build = models.build
        monkeypatch.setattr(models, "build", lambda *given: _with_another_head(build(*given)))
    else:
        monkeypatch.setitem(training.OPTIMIZERS, "rmsprop", partial(torch.optim.RMSprop, alpha=0.9))
    assert trained_a_little(method) != pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("edit", ["centers", "attack", "known codes", "draw"])
def test_an_edit_of_a_defense_that_changes_weights_is_noticed(edit, monkeypatch):
    before = WEIGHTS_OF_THE_GENERATION[1, "cgat, reference"]
    if edit == "centers":
        monkeypatch.setattr(
            defenses.CenterGuided, "has_both_sides", lambda self, shared: shared.new_ones(len(shared), 1)
        )
    elif edit == "attack":
        monkeypatch.setattr(hash_defense, "PGD", lambda *numbers, random_start: PGD(*numbers, random_start=False))
    elif edit == "known codes":
        monkeypatch.setattr(hash_defense, "published_codes", lambda recipe, train, model: torch.ones(40, 32))
    else:
        monkeypatch.setattr(defenses.cgat, "codes_of", lambda votes: votes.sign())
        before = WEIGHTS_OF_THE_GENERATION[1, "cgat, fixed"]
    assert tuned_a_little("cgat", "fixed" if edit == "draw" else "reference") != pytest.approx(before, rel=1e-5)


def _with_another_head(model):
    torch.nn.init.constant_(model.backbone[-1].bias, 0.01)
    return model


# What a recipe says reaches the loss


@pytest.mark.parametrize(
    ("method", "source", "expected"),
    [
        ("dpsh", "cgat", {"source": "cgat"}),
        ("dpsh", "deephash", {"source": "deephash"}),
        ("dpsh", "saat", {"source": "saat"}),
        ("hashnet", "cgat", {"alpha": 0.1}),
        ("hashnet", "deephash", {"alpha": 0.1}),
        ("hashnet", "saat", {"alpha": 10 / 8}),
        ("hswd", "deephash", {"alpha": 10 / 8}),
        ("csq", "cgat", {"quantization": 1e-4}),
        ("csq", "deephash", {"quantization": 1e-4}),
        ("csq", "saat", {"quantization": 0.05}),
        ("csq_c", "deephash", {"quantization": 0.0}),
        ("greedyhash", "cgat", {"learned": False}),
        ("greedyhash", "deephash", {"learned": True}),
        ("greedyhash", "saat", {"learned": True}),
    ],
)
def test_each_source_reaches_the_loss(method, source, expected):
    loss = of_hashing(replace(RECIPE, method=method, source=source), some_data()).loss
    assert {name: getattr(loss, name) for name in expected} == expected


def test_the_weight_of_dpsh_has_three_published_values():
    assert [dpsh.WEIGHT[source] for source in SOURCES] == [0.001, 0.1, 50]


def test_an_untrained_classifier_stays_as_it_was_drawn():
    for source, stays in (("cgat", True), ("deephash", False)):
        recipe = replace(RECIPE, method="greedyhash", source=source)
        objective_of, begun = (of_hashing(recipe, some_data()) for _ in range(2))
        training.train(kept._initial_model(recipe, some_data()), some_data().train, objective_of, recipe.schedule)
        assert torch.equal(objective_of.loss.classifier.weight, begun.loss.classifier.weight) == stays


@pytest.mark.parametrize("method", METHODS)
def test_hashnet_alone_grows_sharper_in_the_way_of_its_source(method):
    wanted = {"cgat": continuation.constant, "deephash": continuation.by_epoch, "saat": continuation.by_step}
    for source in SOURCES if method in WITH_SOURCES else ("deephash",):
        made = of_hashing(replace(RECIPE, method=method, source=source), some_data())
        assert made.continuation is (wanted[source] if method == "hashnet" else continuation.constant)


@pytest.mark.parametrize("method", METHODS)
def test_the_variants_of_saat_have_the_quantizer(method):
    made = of_hashing(of_method(method), some_data())
    assert made.quantizer == (0.1 if method in QUANTIZED else 0.0)
    assert type(made.loss) is QUANTIZED.get(method, type(made.loss))
    assert isinstance(made, objective.HashObjective) and isinstance(made.known, known_codes.KnownCodes)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in WITH_SOURCES])
@pytest.mark.parametrize("source", ["cgat", "saat"])
def test_a_source_is_refused_where_all_agree(method, source):
    with pytest.raises(ValueError, match=f"source='{source}' with method='{method}', in which all sources agree"):
        replace(RECIPE, method=method, source=source)


def test_classes_are_those_of_the_data_also_where_nothing_is_trained_on_one():
    data = replace(some_data(), class_names=tuple("abcdef"))
    assert of_hashing(RECIPE, data).loss.centers.shape == (6, 8)
    assert of_hashing(RECIPE, data).known.labels.shape == (40, 6)


def test_the_schedule_is_what_the_recipe_says():
    changes = {"optimizer": "sgd", "momentum": 0.9, "milestones": (0.34, 0.67), "lr": 0.01, "weight_decay": 5e-4}
    expected = training.Schedule(4, None, 0.01, 5e-4, 3, 0.0, 8, optimizer="sgd", momentum=0.9, milestones=(0.34, 0.67))
    assert replace(RECIPE, **changes, seed=3).schedule == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits=0: expected a whole number of at least 1"),
        ({"bits": 2.5}, "bits=2.5: expected a whole number"),
        ({"method": "CSQ"}, r"method='CSQ': expected one of \('dph', .*\)"),
        ({"source": "torch"}, r"source='torch': expected one of \('cgat', 'deephash', 'saat'\)"),
        ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"batch": None}, "batch=None: expected one of the two"),
        ({"lr": NAN}, "lr=nan: expected a finite number above 0"),
        ({"weight_decay": -1}, "weight_decay=-1: expected a finite number of at least 0"),
        ({"optimizer": "adamw"}, r"optimizer='adamw', momentum=0.0: expected one of \('adam', 'sgd', 'rmsprop'\)"),
        ({"momentum": 0.9}, "optimizer='rmsprop', momentum=0.9: expected .* and no momentum of rmsprop"),
        ({"optimizer": "sgd", "momentum": 2}, "momentum=2: expected a share"),
        ({"milestones": (0.5, 67)}, "milestones=67: expected a share"),
        ({"crop": -3}, "crop=-3: expected a whole number of at least 0"),
        ({"augmented": False}, "augmented=False without a crop, which alone is random"),
        ({"mode": "Reference"}, "mode='Reference': expected 'fixed' or 'reference'"),
    ],
    ids=str,
)
def test_a_recipe_that_nobody_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


def test_a_recipe_of_embeddings_learns_no_codes():
    with pytest.raises(ValueError, match='distance="H": expected "N", "E" or "C"; codes are learned by a HashRecipe'):
        replace(A_RECIPE, distance="H")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": "CgAT"}, r"defense='CgAT': expected one of \('atrdh', 'cgat', .*\), or None"),
        (
            {"origin": None},
            "defense='cgat' with an origin of type NoneType: expected the HashRecipe of the network that",
        ),
        ({"origin": A_RECIPE}, "defense='cgat' with an origin of type Recipe: expected the HashRecipe"),
        ({"pretrained": True}, "pretrained=True with a defense, which begins with the weights of its origin"),
        (
            {"defense": "pairs", "mode": "reference"},
            "mode='reference' with defense='pairs', which nobody has published",
        ),
        ({"bits": 16}, "bits=16 with an origin of bits=8: expected the same"),
        ({"backbone": "c2f2"}, "backbone='c2f2' with an origin of backbone='c2f2_half': expected the same"),
        ({"method": "dph"}, "method='dph' with an origin of method='csq': expected the same"),
        ({"source": "saat"}, "source='saat' with an origin of source='deephash': expected the same"),
        ({"eps": 0.0}, "eps=0.0: expected a finite number above 0"),
        ({"eps": 8}, r"eps=8: expected a share in \[0, 1\]"),
        ({"eps": NAN}, "eps=nan: expected a share"),
        ({"inner_step": 0.0}, "inner_step=0.0: expected a finite number above 0"),
        ({"inner_step": 2}, r"inner_step=2: expected a share in \[0, 1\]"),
        ({"inner_steps": 0}, "inner_steps=0: expected a whole number of at least 1"),
        ({"hashing_weight": -1}, "hashing_weight=-1: expected a finite number of at least 0"),
        ({"adversarial_weight": NAN}, "adversarial_weight=nan: expected a finite number of at least 0"),
        ({"quantization": -1e-4}, "quantization=-0.0001: expected a finite number of at least 0"),
        ({"mode": "old"}, "mode='old': expected 'fixed' or 'reference'"),
        (
            {"method": "greedyhash", "origin": replace(RECIPE, method="greedyhash")},
            "defense='cgat' of method='greedyhash': the classifier that it has learned is not kept .*; source='cgat'",
        ),
    ],
    ids=str,
)
def test_a_defended_recipe_that_nobody_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DEFENDED, **changes)


@pytest.mark.parametrize("field", OF_A_DEFENSE)
def test_what_nothing_but_a_defense_looks_at_is_refused_without_one(field):
    value = getattr(DEFENDED, field)
    value = value if value != getattr(RECIPE, field) else {"mode": "reference"}.get(field, 0.5)
    with pytest.raises(ValueError, match=f"{field}=.* without a defense that looks at it"):
        replace(RECIPE, **{field: value})


def test_a_defended_network_shares_with_its_origin_what_its_loss_is_of():
    assert OF_A_NETWORK == ("backbone", "bits", "method", "source")
    others = {"seed": 3, "steps": 9, "batch": 4, "lr": 0.1, "optimizer": "sgd", "crop": 20, "generation": 1}
    assert replace(DEFENDED, origin=replace(RECIPE, **others)).origin.seed == 3
    classifier = replace(RECIPE, method="greedyhash", source="cgat")
    assert replace(DEFENDED, method="greedyhash", source="cgat", origin=classifier).origin == classifier


@pytest.mark.parametrize("changes", [{"backbone": "c3f3"}, {"pretrained": True}])
def test_a_network_that_nobody_has_is_refused_before_it_is_trained(changes, trainings):
    with pytest.raises(ValueError, match=r"backbone 'c3f3': expected|c2f2_half has no ImageNet weights"):
        trained(replace(RECIPE, **changes), some_data(), CPU)
    assert not trainings


# How it is watched


@pytest.mark.parametrize("itself", [True, False])
def test_the_history_tells_the_map_of_the_searched_images_and_the_spread_of_their_codes(itself):
    data = with_patterns(some_data())
    if not itself:
        data = replace(data, query=data.train, protocol=replace(data.protocol, self_excluded=False))
    result = trained(replace(RECIPE, steps=32), data, CPU)
    codes, asked = (hamming.codes_of(embed(result.model, split.images)) for split in (data.gallery, data.query))
    own = torch.arange(20) if itself else None
    expected = hamming.hamming_map(asked, codes, data.query.labels, data.gallery.labels, own=own)
    assert [entry["step"] for entry in result.history] == [4, 8, 12, 16, 20, 24, 28, 32]
    assert result.history[-1]["map"] == pytest.approx(expected) and expected > 80
    assert result.history[-1]["spread"] == pytest.approx(collapse.spread(codes)) and collapse.spread(codes) > 0


def test_of_many_images_the_first_are_watched(monkeypatch):
    data = replace(some_data(), protocol=Protocol("toy", "...", False, False))
    monkeypatch.setattr(hash_objective, "QUERIES", 7)
    monkeypatch.setattr(hash_objective, "ITEMS", 11)
    found = hash_objective.watched(kept._initial_model(RECIPE, data), data)
    few = [Split(split.images[:n], split.labels[:n]) for split, n in ((data.query, 7), (data.gallery, 11))]
    monkeypatch.undo()
    assert found == hash_objective.watched(
        kept._initial_model(RECIPE, data), replace(data, query=few[0], gallery=few[1])
    )


def test_a_training_whose_codes_collapsed_is_told_with_its_map(trainings):
    """Here since all searched images are one and the same; also when the network comes from the cache."""
    data = some_data()
    same = Split(torch.zeros_like(data.gallery.images), data.gallery.labels)
    data = replace(data, query=same, gallery=same)
    for at_once in (4, 0):
        with pytest.warns(
            RuntimeWarning, match=r"this training collapsed: from step 1 on, .* \(spread 0.0000, MAP \d+\.\d %\)"
        ) as told:
            result = trained(RECIPE, data, CPU)
        assert len(told) == at_once + 1 and told[-1].filename == __file__
        assert all("this training is collapsed: spread 0.0000" in str(each.message) for each in told[:-1])
    assert len(trainings) == 1
    assert f"MAP {result.history[-1]['map']:.1f} %" in str(told[-1].message)


# Whitened


def test_a_whitened_network_has_balanced_codes():
    """Its outputs are without a mean, so that a bit halves the images it was fitted to, about."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
    part = Split(images, torch.arange(32) % 4)
    data = RetrievalData("toy", part, part, part, tuple("abcd"), Protocol("toy", "...", True, False))
    result = trained(recipes.photographs(embedding_dim=8, distance="H"), data, CPU)
    outputs = embed(result.model, images)
    ones = (hamming.codes_of(outputs) > 0).sum(0)
    assert isinstance(result.model, HashModel) and result.history == []
    assert outputs.mean(0).abs().max() < 0.05 * outputs.std()
    assert ((ones > 8) & (ones < 24)).all()
