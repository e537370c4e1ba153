"""The recipes of the data sets: what they say of each defense, what data they take, and crops to learn on."""

from dataclasses import fields, replace
from functools import partial
from math import ceil
from typing import get_args

import pytest
import torch

from robret_lib import data, mining, models, objectives, recipes, training
from robret_lib.augmentation import random_crop_and_flip
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.recipes import Recipe, fashion_mnist, for_data, kept, named, official, trained, tuned_photographs
from robret_lib.recipes.recipe import READ_BY

DEFENSES = get_args(recipes.DefenseName)
MAKERS = {
    "fashion-mnist quick": partial(fashion_mnist, "quick"),
    "fashion-mnist full": partial(fashion_mnist, "full"),
    **{name: partial(official, name) for name in ("cub", "cars", "sop")},
    "photographs": tuned_photographs,
}
OF_THE_ATTACK = {"defense", "eps", "inner_step", "inner_steps", "watched_eps"}
"""What the recipe of any defense says beyond that of the undefended network."""

BESIDES = {
    "panum": {"sampler"},
    "hm": {"sampler"},
    "fare": {"origin"},
    "neighborhood": {"drawn_radius"},
}
"""And what that of one of them says as well."""


def differing(one, other):
    return {field.name for field in fields(Recipe) if getattr(one, field.name) != getattr(other, field.name)}


@pytest.mark.parametrize(
    ("name", "steps", "sharpness"), [("cub", 3975, 10.0), ("cars", 5400, 9.5), ("sop", 39900, 2.0)]
)
def test_the_published_recipes_of_the_official_sets(name, steps, sharpness):
    """RobRank: 75 passes over pairs in two processes of 56 each, Adam 1e-5, weight decay 4e-4, 512 dimensions; CA-TRIDE
    in one."""
    assert official(name) == Recipe(
        *("resnet18", 512, steps, 112, "N", "random", 1e-5, 4e-4, 0, named.GENERATION), pretrained=True, crop=224
    )
    images = {"cub": 5_864, "cars": 8_054, "sop": 59_551}[name]
    assert steps == 75 * ceil(ceil(images / 2) / 56)
    for defense in DEFENSES:
        recipe = official(name, defense=defense)
        step, count = {"ca_tride": (1, 16), "neighborhood": (2, 7), "panum": (0.004 * 255, 5)}.get(defense, (1, 32))
        eps = 0.01 if defense == "panum" else 8 / 255
        expected = pytest.approx(eps), pytest.approx(step / 255), count, pytest.approx(8 / 255)
        assert (recipe.eps, recipe.inner_step, recipe.inner_steps, recipe.watched_eps) == expected
    alone = official(name, defense="ca_tride")
    assert (alone.sharpness, alone.pairs, alone.steps) == (sharpness, 56, 75 * ceil(images / 56))


@pytest.mark.parametrize("defense", DEFENSES)
def test_a_tuned_network_for_photographs_is_attacked_in_steps_of_a_quarter_of_its_radius(defense):
    """Eight of them, as far as two radii; the kept neighborhood has its own."""
    recipe = tuned_photographs(defense=defense)
    attack = recipe.eps * 255, recipe.inner_step * 255, recipe.inner_steps, recipe.watched_eps * 255
    assert attack == pytest.approx((8, 2, 7, 2) if defense == "neighborhood" else (8, 2, 8, 2))
    assert recipe.pretrained and recipe.crop == 56 and recipe.generation == named.GENERATION


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_defense_changes_what_it_must_and_nothing_else(name, defense):
    maker = MAKERS[name]
    undefended, recipe = maker(), maker(defense=defense)
    assert recipe.defense == defense and undefended.defense is None
    alone = {"pairs", "steps"} | ({"sharpness"} if name in ("cars", "sop") else set())
    official_tride = defense == "ca_tride" and name in ("cub", "cars", "sop")
    allowed = OF_THE_ATTACK | BESIDES.get(defense, set()) | (alone if official_tride else set())
    assert differing(recipe, undefended) == allowed
    assert recipe.origin == (undefended if defense == "fare" else None)
    assert maker(defense=None) == undefended


@pytest.mark.parametrize("name", MAKERS)
def test_the_kept_neighborhood_takes_steps_of_a_quarter_of_its_radius(name):
    """Also of another radius; in seven of them an image can go from most starts to any place in the ball."""
    maker = partial(MAKERS[name], defense="neighborhood")
    for recipe in (maker(), maker(eps=0.2)):
        assert recipe.inner_step == recipe.eps / 4 and recipe.inner_steps == 7
        assert (recipe.drawn_radius, recipe.clean_weight, recipe.decay, recipe.ramp) == (True, 0.5, 0.0, 0.5)
    assert maker(eps=0.2, inner_step=0.01).inner_step == 0.01
    assert maker(drawn_radius=False, decay=0.0) == replace(maker(), drawn_radius=False, decay=0.0)


@pytest.mark.parametrize("defense", DEFENSES)
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_asked_for_is_what_one_gets(name, defense):
    """Whatever the data set and the defense say of it."""
    origin = replace(MAKERS[name](), steps=9)
    changes = {"eps": 0.1, "inner_step": 0.01, "inner_steps": 3, "watched_eps": 0.0, "seed": 4, "steps": 7}
    changes |= {"origin": origin, "crop": 20}
    optional = {"sampler": "hard", "sharpness": 3.0, "drawn_radius": defense != "neighborhood", "mode": "reference"}
    changes |= {field: value for field, value in optional.items() if defense in READ_BY[field]}
    recipe = MAKERS[name](defense=defense, **changes)
    assert {field: getattr(recipe, field) for field in changes} == changes


@pytest.mark.parametrize("defense", ["fare", "neighborhood"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_defense_that_nobody_published_for_retrieval_has_one_mode(name, defense):
    assert MAKERS[name](defense=defense, mode="reference") == MAKERS[name](defense=defense)


@pytest.mark.parametrize("name", MAKERS)
def test_the_origin_of_a_tuned_network_is_the_undefended_one(name):
    recipe = MAKERS[name](defense="fare", distance="C", seed=3, steps=7)
    assert recipe.origin == MAKERS[name](distance="C", seed=3)


def test_another_set_than_the_official_ones_is_refused():
    with pytest.raises(ValueError, match=r"name='CUB': expected one of \('cub', 'cars', 'sop'\)"):
        official("CUB")


@pytest.mark.parametrize("changes", [{}, {"defense": "hm", "seed": 2}])
def test_the_recipe_for_data_is_that_of_its_set(changes):
    for scale in ("quick", "full"):
        assert for_data("fashion-mnist", scale, **changes) == fashion_mnist(scale, **changes)
        assert for_data("grocery", scale, **changes) == tuned_photographs(**changes)
        assert for_data("some/set.npz", scale, **changes) == tuned_photographs(**changes)
    for name in ("cub", "cars", "sop"):
        assert for_data(name, "full", **changes) == official(name, **changes)
        with pytest.raises(ValueError, match=f"{name} at scale 'quick': expected scale=\"full\""):
            for_data(name, "quick", **changes)


# The data


def some_data(channels, side):
    """Forty images of four classes, one brighter than the other, to train on, twenty to search in themselves."""
    labels, generator = torch.arange(60) % 4, torch.Generator().manual_seed(0)
    noise = torch.randint(256, (60, channels, side, side), generator=generator)
    images = (noise * (labels + 1).view(-1, 1, 1, 1) // 4).to(torch.uint8)
    searched = Split(images[40:], labels[40:])
    protocol = Protocol("toy", "Twenty images search each other.", self_excluded=True, class_disjoint=False)
    return RetrievalData("toy", Split(images[:40], labels[:40]), searched, searched, tuple("abcd"), protocol)


@pytest.fixture
def loads(monkeypatch):
    """What was loaded: name, scale and size; in place of the set come random images of that size."""
    found = []

    def load(name, scale, size=None):
        found.append((name, scale, size))
        return some_data(3, size or 28)

    monkeypatch.setattr(named, "load", load)
    return found


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale='Quick': expected one of"):
        recipes.fashion_mnist("Quick")


def test_fashion_mnist_is_taken_as_it_is(loads):
    taken = recipes.data_of("fashion-mnist", "quick")
    assert loads == [("fashion-mnist", "quick", None)]
    assert torch.equal(taken.query.images, some_data(3, 28).query.images)


@pytest.mark.parametrize(
    ("name", "scale", "size", "crop"),
    [*((name, "full", 256, 224) for name in ("cub", "cars", "sop")), ("grocery", "quick", 64, 56)],
)
def test_photographs_are_searched_in_center_crops_and_trained_on_whole(loads, name, scale, size, crop):
    taken = recipes.data_of(name, scale)
    assert loads == [(name, scale, size)]
    whole, edge = some_data(3, size), (size - crop) // 2
    assert crop == for_data(name, scale).crop
    assert torch.equal(taken.train.images, whole.train.images)
    assert torch.equal(taken.query.images, data.mixed(whole).query.images[:, :, edge:-edge, edge:-edge])
    assert taken.query is taken.gallery


def test_the_groceries_come_at_the_size_of_their_recipe():
    taken = recipes.data_of("grocery", "quick")
    assert taken.train.images.shape[1:] == (3, 64, 64) and taken.query.images.shape[1:] == (3, 56, 56)
    assert torch.equal(taken.train.labels, data.load("grocery", "quick", size=64).train.labels)


# Crops


@pytest.fixture
def cropped(tmp_path, monkeypatch):
    """A recipe that learns on crops of 28 pixels, and images of 32 that are searched in their middle."""
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    recipe = Recipe("c2f2_half", embedding_dim=8, steps=4, pairs=4, crop=28)
    return recipe, data.center_cropped(some_data(1, 32), 28)


def test_a_recipe_with_crops_trains_on_random_crops_and_mirror_images(cropped):
    recipe, images = cropped
    found = trained(recipe, images, torch.device("cpu")).model.state_dict()
    torch.manual_seed(recipe.seed)
    model = models.on_device(models.build("c2f2_half", 8), "cpu")
    objective = objectives.TripletObjective(mining.random)
    schedule, augment = training.Schedule(4, 4), lambda batch, generator: random_crop_and_flip(batch, 28, generator)
    training.train(model, images.train, objective, schedule, augment=augment)
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_a_defense_attacks_the_crops(cropped, monkeypatch):
    """And they are the ones that are drawn without it."""
    recipe, images = cropped
    shown, forward = {}, objectives.TripletObjective.forward
    defended = replace(recipe, defense="est", eps=0.1, inner_step=0.05, inner_steps=2)

    def watching(of, forward):
        def watched(self, model, batch, labels, generator):
            shown.setdefault(of, []).append(batch)
            return forward(self, model, batch, labels, generator)

        return watched

    monkeypatch.setattr(objectives.TripletObjective, "forward", watching("plain", forward))
    est = type(kept._objective(defended, None))
    monkeypatch.setattr(est, "forward", watching("attacked", est.forward))
    for each in (recipe, defended):
        trained(each, images, torch.device("cpu"))
    assert len(shown["plain"]) == len(shown["attacked"]) == 4
    for plain, attacked in zip(shown["plain"], shown["attacked"], strict=True):
        assert plain.shape == (8, 1, 28, 28) and torch.equal(plain, attacked)


def test_the_origin_learns_on_crops_too(cropped):
    recipe, images = cropped
    tuned = replace(recipe, defense="fare", eps=0.1, inner_step=0.05, inner_steps=2, origin=replace(recipe, steps=2))
    assert trained(tuned, images, torch.device("cpu")).history[-1]["step"] == 4


@pytest.mark.parametrize(("defense", "share"), [("act", 12 / 77), ("ca_tride", 20 / 77), ("neighborhood", 1 / 4)])
def test_with_another_radius_the_steps_of_the_attack_are_the_same_share_of_it(defense, share):
    recipe = recipes.fashion_mnist("quick", defense=defense, eps=8 / 255)
    assert recipe.inner_step == pytest.approx(share * 8 / 255)
    assert recipes.fashion_mnist("quick", defense=defense).inner_step == pytest.approx(share * 77 / 255)
    assert recipes.fashion_mnist("quick", defense=defense, eps=8 / 255, inner_step=0.01).inner_step == 0.01
