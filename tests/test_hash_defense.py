"""What a recipe of a defended hash network minimizes, and the codes that are known before its first step."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from robret_lib import data as data_package
from robret_lib import models, training
from robret_lib.attacks import PGD
from robret_lib.augmentation import random_crop_and_flip
from robret_lib.data import RetrievalData, multi_hot
from robret_lib.defenses.prototypes import Prototypes
from robret_lib.hamming import codes_of
from robret_lib.hashing import center_code
from robret_lib.models import HashModel, embed
from robret_lib.recipes import hash_defense, kept, trained
from robret_lib.recipes.hash_defense import of_hash_defense, published_codes, searched_codes
from robret_lib.recipes.hash_objective import of_hashing
from tests.test_hash_recipes import DEFENSES, IN_ALL_MODES, RECIPE, defended, with_borders
from tests.test_recipes import CPU, assert_same_weights, some_data

# networks that were hardly trained
pytestmark = pytest.mark.filterwarnings("ignore:this training (is )?collapsed")

CROPPED = {"crop": 28}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of trained models, away from the user's."""
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))


def larger() -> RetrievalData:
    """Images of 32 pixels to train on, of which 28 are to be cut."""
    noise = torch.randint(256, (40, 1, 32, 32), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    wide = with_borders(some_data())
    return replace(wide, train=replace(wide.train, images=noise))


def network() -> HashModel:
    """With dropout."""
    torch.manual_seed(2)
    return HashModel(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 8)))


def made(recipe, data=None, original=None):
    data = larger() if data is None else data
    return of_hash_defense(recipe, of_hashing(recipe, data), data, network() if original is None else original)


# What it is made of


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_every_defense_is_made_with_what_the_recipe_says(name, mode):
    numbers = {"hashing_weight": 0.5, "adversarial_weight": 2.0, "quantization": 0.25, "crop": 28}
    defense = made(defended(name, mode=mode, **numbers))
    assert type(defense) is hash_defense.DEFENSES[name] and defense.mode == mode
    assert defense.search == PGD(0.1, 0.05, 2, random_start=True)
    assert (defense.hashing_weight, defense.adversarial_weight, defense.quantization) == (0.5, 2.0, 0.25)
    assert type(defense.clean.loss).__name__ == "CSQ"
    assert defense.clean.known.unseen == ("zeros" if mode == "reference" else "left out")
    assert torch.equal(defense.clean.known.labels, multi_hot(larger().train.labels, 4))


def test_the_network_of_prototypes_is_drawn_with_the_seed():
    """Whatever the global state of randomness, which stays as it was."""
    original, drawn = network(), []
    for seed, begun in ((0, 5), (0, 6), (1, 6)):
        torch.manual_seed(begun)
        expected = torch.rand(2)
        torch.manual_seed(begun)
        drawn.append(made(defended("atrdh", seed=seed, **CROPPED), original=original).state_dict())
        assert torch.equal(torch.rand(2), expected)
    one, again, other = drawn
    weights = [key for key in one if "network" in key and key.endswith(".weight")]
    assert weights and all(torch.equal(one[key], again[key]) for key in weights)
    assert not any(torch.equal(one[key], other[key]) for key in weights)


@pytest.mark.parametrize("method", ["csq", "dpn", "orthohash", "greedyhash"])
def test_what_the_loss_has_of_its_own_is_what_the_origin_has_learned_by(method):
    """Its centers, whatever the seed of the tuning, also where the origin was tuned itself."""
    named = {"method": method, "bits": 12} | ({"source": "cgat"} if method == "greedyhash" else {})
    first = replace(RECIPE, seed=3, **named)
    tuned = defended("cgat", origin=first, seed=4, **named)
    states = [
        of_hashing(recipe, some_data()).loss.state_dict()
        for recipe in (first, tuned, replace(tuned, origin=tuned, seed=5))
    ]
    assert states[0] and all(torch.equal(state[key], states[0][key]) for state in states for key in states[0])
    without = of_hashing(replace(first, seed=4), some_data()).loss.state_dict()
    assert not all(torch.equal(without[key], states[0][key]) for key in without)


@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_hashnet_grows_no_sharper_beside_a_defense(mode):
    """Its origin is done with that; in SAAT's code the sharpness is 1 after every attack."""
    origin = replace(RECIPE, method="hashnet", source="saat")
    tuned = of_hashing(defended("saat", method="hashnet", source="saat", origin=origin, mode=mode), some_data())
    assert tuned.continuation(10_000, 100) == 1.0 != of_hashing(origin, some_data()).continuation(10_000, 100)


# The codes that are known


@pytest.mark.parametrize("name", DEFENSES)
def test_codes_are_known_as_they_would_be_searched(name):
    """Of the middle of the images, without dropout; the network is left in its mode."""
    original = network().train()
    known = made(defended(name, **CROPPED), original=original).clean.known
    middle = data_package.center_crop(larger().train, 28).images
    assert known.seen.all() and original.training
    assert torch.equal(known.codes, codes_of(embed(original, middle)).float())
    whole = made(defended(name), some_data()).clean.known
    assert torch.equal(whole.codes, codes_of(embed(original, some_data().train.images)).float())


def test_the_codes_of_cgat_as_published_are_those_of_crops_and_with_dropout():
    """In batches of 32."""
    recipe, generator = defended("cgat", mode="reference", seed=3, **CROPPED), torch.Generator().manual_seed(3)
    known, original = made(recipe).clean.known, network().train()
    torch.manual_seed(3)
    parts = larger().train.images.split(32)
    outputs = [original(random_crop_and_flip(part, 28, generator) / 255) for part in parts]
    assert known.seen.all() and torch.equal(known.codes, codes_of(torch.cat(outputs)).float())
    assert not torch.equal(known.codes, made(defended("cgat", **CROPPED)).clean.known.codes)


def test_the_codes_of_saat_as_published_are_those_that_are_searched():
    as_published, fixed = (made(defended("saat", mode=mode, **CROPPED)) for mode in ("reference", "fixed"))
    assert torch.equal(as_published.clean.known.codes, fixed.clean.known.codes)


@pytest.mark.parametrize("name", ["atrdh", "prototypes"])
def test_prototypes_are_fitted_before_anything_is_guided_by_them(name):
    """To the codes that are known, so that most are near the center codes; as published they are as drawn."""
    defense = made(defended(name, **CROPPED))
    labels, known = torch.eye(4, dtype=torch.uint8), defense.clean.known
    centers = center_code(labels, known.codes, known.labels)
    drawn = Prototypes(known).codes(labels)
    assert (defense.prototypes.codes(labels) == centers).float().mean() > 0.8
    assert (drawn == centers).float().mean() < 0.8


def test_atrdh_as_published_knows_no_codes():
    known = made(defended("atrdh", mode="reference", **CROPPED)).clean.known
    assert not known.seen.any() and not known.codes.any() and not known.all().labels.any()


def test_published_codes_depend_on_the_seed_alone(monkeypatch):
    """Batch after batch; the network is left in its mode, and the global state of randomness as it was."""
    monkeypatch.setattr(hash_defense, "AT_ONCE", 16)
    recipe, train, codes = defended("cgat", mode="reference", **CROPPED), larger().train, []
    for seed, begun in ((0, True), (0, False), (1, False)):
        original = network().train(begun)
        torch.manual_seed(9)
        expected = torch.rand(2)
        torch.manual_seed(9)
        codes.append(published_codes(replace(recipe, seed=seed), train, original))
        assert torch.equal(torch.rand(2), expected)
        assert {module.training for module in original.modules()} == {begun}
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])
    assert codes[0].shape == (40, 8) and set(codes[0].unique().tolist()) == {-1, 1}
    whole = published_codes(replace(recipe, crop=0), data_package.center_crop(train, 28), network())
    assert not torch.equal(whole, searched_codes(recipe, larger(), network()))


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_a_defended_network_is_the_one_that_its_parts_train(name, mode):
    data = data_package.center_cropped(larger(), 28)
    origin = replace(RECIPE, crop=28)
    recipe = defended(name, mode=mode, origin=origin, steps=2, crop=28)
    found, original = (trained(each, data, CPU).model for each in (recipe, origin))
    model = models.on_device(models.build("c2f2_half", 8, distance="H"), CPU)
    model.load_state_dict(original.state_dict())
    defense = of_hash_defense(recipe, of_hashing(recipe, data), data, original)
    training.train(model, data.train, defense, recipe.schedule, augment=partial(kept._cropped, size=28))
    assert_same_weights(found.state_dict(), model.state_dict())
    assert not torch.equal(model.backbone[0].weight, original.backbone[0].weight)
