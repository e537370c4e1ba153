"""The recipes of hash networks by data set, the published schedules, and what they train and are judged on."""

from dataclasses import fields, replace
from math import ceil
from typing import get_args

import pytest
import torch

from robret_lib import data, recipes
from robret_lib.recipes import HashRecipe, defended_codes, for_codes, hash_data_of, named_hashing
from robret_lib.recipes.hash_recipe import WITH_SOURCES
from robret_lib.recipes.named_hashing import HASHING_GENERATION, OFFICIAL_CODES
from tests.small_codes import seeded

METHODS = get_args(recipes.HashingName)
DEFENSES = get_args(recipes.HashDefenseName)
TRAINED_ON = {"flickr25k": 4_496, "nus_wide": 10_500, "coco": 10_000}
"""Images of the published lists; of FLICKR-25K those that are there."""


def differing(one: HashRecipe, other: HashRecipe) -> set[str]:
    return {field.name for field in fields(HashRecipe) if getattr(one, field.name) != getattr(other, field.name)}


# Recipes


def test_the_recipes_of_fashion_mnist():
    quick, full = (for_codes("fashion-mnist", scale) for scale in ("quick", "full"))
    assert quick == HashRecipe("c2f2_half", 32, "csq", 1_200, 64)
    assert full == HashRecipe("c2f2", 32, "csq", 4_800, 64, generation=HASHING_GENERATION)
    assert (quick.optimizer, quick.lr, quick.weight_decay, quick.source) == ("rmsprop", 3e-4, 1e-5, "deephash")


@pytest.mark.parametrize("name", OFFICIAL_CODES)
def test_the_published_schedule_of_the_official_sets(name):
    """CgAT, `hashing.py`: 100 passes by SGD, 0.01, which falls to a tenth after the 34th and the 67th."""
    recipe, per_pass = for_codes(name, "full"), ceil(TRAINED_ON[name] / 64)
    assert recipe.steps == 100 * per_pass
    assert (recipe.backbone, recipe.bits, recipe.method, recipe.batch) == ("vgg11", 32, "dph", 64)
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 5e-4)
    assert recipe.pretrained and recipe.crop == 224 and recipe.generation == HASHING_GENERATION
    expected = {0: 1, 34 * per_pass - 1: 1, 34 * per_pass: 2, 67 * per_pass - 1: 2, 67 * per_pass: 3}
    expected[100 * per_pass - 1] = 3
    rates = {step: recipe.schedule.rate(step) for step in expected}
    assert rates == {step: pytest.approx(0.1 * 0.1**place) for step, place in expected.items()}


@pytest.mark.parametrize("name", OFFICIAL_CODES)
def test_in_batches_of_half_the_size_it_falls_after_the_same_passes(name):
    """SAAT's: AlexNet in batches of 32, twice the steps."""
    recipe = for_codes(name, "full")
    other = for_codes(name, "full", backbone="alexnet", batch=32, steps=2 * recipe.steps)
    per_pass = other.steps // 100
    assert per_pass >= ceil(TRAINED_ON[name] / 32)
    rates = [other.schedule.rate(place * per_pass + step) for place in (34, 67) for step in (-1, 0)]
    assert rates == pytest.approx([0.01, 0.001, 0.001, 0.0001])


@pytest.mark.parametrize("name", OFFICIAL_CODES)
def test_the_official_sets_have_no_quick_scale(name):
    with pytest.raises(ValueError, match=f"{name} at scale 'quick': expected scale=\"full\""):
        for_codes(name, "quick")


def test_another_scale_is_refused():
    for name in ("fashion-mnist", "coco", "some/set.npz"):
        with pytest.raises(ValueError, match=r"scale='Full': expected one of \('quick', 'full'\)"):
            for_codes(name, "Full")


def test_photographs_tune_a_small_network_on_crops():
    recipe = for_codes("some/set.npz", "quick")
    assert recipe == for_codes("grocery", "full") == named_hashing.TUNED_CODES
    assert (recipe.backbone, recipe.pretrained, recipe.crop) == ("efficientnet_lite0", True, 84)


def test_an_official_set_may_be_called_as_make_calls_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    assert for_codes("nus-wide", "full") == OFFICIAL_CODES["nus_wide"]
    for load in (lambda: hash_data_of("nus-wide", "full"), lambda: data.load("nus-wide")):
        with pytest.raises(data.DataError, match=f"looked for the file {tmp_path / 'nus_wide.npz'}"):
            load()


@pytest.mark.parametrize("name", ["flickr", "nus-wide-81", "ms_coco", "Fashion-MNIST", "", "some/set", "nus-wide/x"])
def test_a_name_that_nobody_knows_has_no_recipe(name, packed):
    """But that of a packed file has one, and so has a path that one will have."""
    official = "'cub', 'cars', 'sop', 'flickr25k', 'nus_wide', 'coco', .* and 'coco_captions'"
    known = f"'fashion-mnist', {official} .* 'grocery', .*now: few"
    for call in (for_codes, hash_data_of):
        with pytest.raises(ValueError, match=f"no data set '{name}': .* Known are {known}"):
            call(name, "full")
    for there in ("few", "not-yet.npz", "cub", "grocery"):
        assert for_codes(there, "full") == named_hashing.TUNED_CODES


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_with_settings_that_exist(method):
    """CgAT's for the official sets; elsewhere DeepHash-pytorch's, but of HashNet, which would need more passes."""
    for name, scale in (("fashion-mnist", "quick"), ("fashion-mnist", "full"), ("some/set.npz", "full")):
        recipe = for_codes(name, scale, method=method)
        assert recipe.source == ("saat" if method == "hashnet" else "deephash")
        assert differing(recipe, for_codes(name, scale)) <= {"method", "source"}
    trained = method in WITH_SOURCES and method != "greedyhash"  # CgAT never trains its classifier
    for name in OFFICIAL_CODES:
        assert for_codes(name, "full", method=method).source == ("cgat" if trained else "deephash")


@pytest.mark.parametrize("name", ["fashion-mnist", "coco", "some/set.npz"])
def test_what_is_asked_for_is_what_one_gets(name):
    for source in ("cgat", "deephash", "saat"):
        changes = {"method": "hashnet", "source": source, "bits": 48, "seed": 4, "steps": 7, "lr": 0.5, "crop": 20}
        recipe = for_codes(name, "full", **changes)
        assert {field: getattr(recipe, field) for field in changes} == changes
        assert differing(recipe, for_codes(name, "full")) <= set(changes)


def test_the_settings_of_a_method_that_has_but_one_are_refused():
    for name in ("fashion-mnist", "coco"):
        with pytest.raises(ValueError, match="source='saat' with method='dch', in which all sources agree"):
            for_codes(name, "full", method="dch", source="saat")


# Recipes of defended networks

PUBLISHED = {
    "cgat": (30, "sgd", 0.01, 0.9, 5e-4, 0.0),
    "saat": (20, "sgd", 0.05, 0.0, 1e-5, 1e-4),
    "atrdh": (100, "adam", 1e-4, 0.5, 0.0, 0.0),
}
"""Passes, optimizer, its rate, momentum or beta_1 and weight decay, and the weight of quantization."""

ELSEWHERE = [("fashion-mnist", "quick"), ("fashion-mnist", "full"), ("some/set.npz", "quick"), ("some/set.npz", "full")]
OFFICIAL = [(name, "full") for name in OFFICIAL_CODES]


@pytest.mark.parametrize("name", OFFICIAL_CODES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_official_sets_are_tuned_as_published(name, defense):
    """By what nobody has published as by CgAT."""
    passes, *expected = PUBLISHED.get(defense, PUBLISHED["cgat"])
    recipe, per_pass = defended_codes(name, "full", defense), ceil(TRAINED_ON[name] / 32)
    given = recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.quantization
    assert given == tuple(expected)
    assert recipe.batch == 32 and recipe.steps == passes * per_pass
    assert (recipe.hashing_weight, recipe.adversarial_weight, recipe.mode) == (1, 1, "fixed")
    assert recipe.augmented == (defense not in ("saat", "atrdh"))  # their codes train on center crops
    half, most = recipe.steps / 2, recipe.steps * 3 / 4
    assert [recipe.schedule.rate(step) / recipe.lr for step in (0, ceil(half) - 1)] == [1, 1]
    later = [
        recipe.schedule.rate(step) / recipe.lr for step in (ceil(half), ceil(most) - 1, ceil(most), recipe.steps - 1)
    ]
    assert later == pytest.approx([0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("name", "scale"), ELSEWHERE)
def test_elsewhere_all_defenses_have_as_many_updates(name, scale):
    """And differ in nothing but the defense, but for SAAT's weight of quantization."""
    made = {defense: defended_codes(name, scale, defense) for defense in DEFENSES}
    for defense, recipe in made.items():
        assert differing(recipe, made["cgat"]) <= {"defense"} | ({"quantization"} if defense == "saat" else set())
        assert recipe.quantization == (1e-4 if defense == "saat" else 0.0) and recipe.defense == defense


@pytest.mark.parametrize("name", OFFICIAL_CODES)
@pytest.mark.parametrize("defense", DEFENSES)
def test_the_inner_attack_is_the_published_one(name, defense):
    recipe = defended_codes(name, "full", defense)
    assert (recipe.eps, recipe.inner_step, recipe.inner_steps) == (8 / 255, 2 / 255, 7)


@pytest.mark.parametrize(("name", "scale"), ELSEWHERE)
def test_elsewhere_the_inner_attack_may_reach_the_border_of_the_ball(name, scale):
    recipe = defended_codes(name, scale, "cgat")
    assert recipe.inner_step * recipe.inner_steps > recipe.eps > recipe.inner_step


@pytest.mark.parametrize(("name", "scale"), [*ELSEWHERE, *OFFICIAL])
@pytest.mark.parametrize("defense", DEFENSES)
def test_a_defense_tunes_the_network_of_the_data_set(name, scale, defense):
    """Which has begun with ImageNet weights or with none; a network of hours stays one."""
    recipe, origin = defended_codes(name, scale, defense), for_codes(name, scale)
    assert recipe.origin == origin and not recipe.pretrained
    tuned = {
        "steps",
        "batch",
        "lr",
        "optimizer",
        "momentum",
        "milestones",
        "weight_decay",
        "pretrained",
        "quantization",
        "augmented",
    }
    assert differing(recipe, origin) <= tuned | {"defense", "origin", "eps", "inner_step", "inner_steps"}


@pytest.mark.parametrize(("name", "scale"), [ELSEWHERE[0], OFFICIAL[0]])
@pytest.mark.parametrize("defense", DEFENSES)
def test_what_is_asked_of_a_defense_is_what_one_gets(name, scale, defense):
    changes = {"eps": 0.1, "inner_step": 0.02, "inner_steps": 2, "steps": 7, "batch": 9, "lr": 0.5, "momentum": 0.25}
    changes |= {"optimizer": "sgd", "weight_decay": 0.125, "milestones": (), "seed": 4}
    changes |= {"mode": "reference" if defense in PUBLISHED else "fixed"}
    changes |= {"hashing_weight": 0.0, "adversarial_weight": 2.0, "quantization": 0.5, "generation": 9}
    origin = for_codes(name, scale, method="dpsh", bits=16, seed=2)
    recipe = defended_codes(name, scale, defense, origin, **changes)
    assert {field: getattr(recipe, field) for field in changes} == changes and recipe.origin == origin
    assert (recipe.method, recipe.bits, recipe.source) == ("dpsh", 16, origin.source)
    assert differing(recipe, origin) <= {*changes, "defense", "origin", "pretrained", "augmented"}


@pytest.mark.parametrize("defense", DEFENSES)
def test_the_optimizer_of_the_origin_is_not_that_of_the_tuning(defense):
    origin = for_codes("fashion-mnist", "quick", optimizer="sgd", momentum=0.9)
    recipe = defended_codes("fashion-mnist", "quick", defense, origin)
    assert recipe.schedule == defended_codes("fashion-mnist", "quick", defense).schedule
    assert (recipe.origin.optimizer, recipe.origin.momentum) == ("sgd", 0.9)


@pytest.mark.parametrize("origin", [None, for_codes("fashion-mnist", "quick")])
def test_a_name_a_scale_or_a_defense_that_nobody_knows_has_no_defended_recipe(origin):
    for name, scale, message in (
        ("fashion-mnist", "Full", "scale='Full': expected one of"),
        ("coco", "quick", "coco at scale 'quick': expected scale=\"full\""),
        ("flickr", "full", "no data set 'flickr'"),
    ):
        with pytest.raises(ValueError, match=message):
            defended_codes(name, scale, "cgat", origin)
    for name, scale in (("fashion-mnist", "quick"), ("coco", "full")):
        with pytest.raises(ValueError, match=r"defense='CgAT': expected one of \('atrdh', .*\), or None"):
            defended_codes(name, scale, "CgAT", origin)


def test_an_official_set_by_its_other_name_is_tuned_alike():
    assert defended_codes("nus-wide", "full", "cgat") == defended_codes("nus_wide", "full", "cgat")


# Data


@pytest.mark.parametrize(("scale", "searched"), [("quick", 10_000), ("full", 60_000)])
def test_fashion_mnist_is_divided_as_for_hashing(scale, searched):
    if not data.fashion_mnist_folder(data.data_root()).exists():
        pytest.skip("Fashion-MNIST is not prepared: make data DATASET=fashion-mnist")
    found = hash_data_of("fashion-mnist", scale)
    assert [part.labels.bincount().tolist() for part in (found.train, found.query, found.gallery)] == [
        [500] * 10,
        [100] * 10,
        [searched // 10] * 10,
    ]
    description = f"1,000 queries search {searched:,} other images, among them the 5,000 that were trained on."
    assert found.protocol.description == description and not found.protocol.self_excluded
    assert found.train.images.shape == (5_000, 1, 28, 28)
    assert found.gallery.labels[:50].unique().numel() == 10  # mixed
    items, asked = ({row.tobytes() for row in part.images.numpy()} for part in (found.gallery, found.query))
    assert {row.tobytes() for row in found.train.images.numpy()} <= items
    assert len(items & asked) < 5  # the set has a few images twice


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Forty photographs of 100 pixels with some of three labels: 10 train, 6 ask, 24 are searched besides."""
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    pictures = torch.nn.functional.interpolate(torch.rand(40, 3, 3, 3, generator=seeded()) * 255, 100).to(torch.uint8)
    labels = (torch.rand(40, 3, generator=seeded(1)) < 0.5).int()
    split = ["train"] * 10 + ["query"] * 6 + ["database"] * 24
    data.write_packed(tmp_path / "few.npz", pictures, labels, list("abc"), split=split)
    return labels


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_photographs_with_several_labels_are_searched_in_center_crops(packed, scale):
    """Train lies in the gallery; squares of 96 pixels are learned on, their middle is searched."""
    found = hash_data_of("few", scale)
    assert found.train.images.shape == (10, 3, 96, 96)
    assert found.query.images.shape == (6, 3, 84, 84) and found.gallery.images.shape == (34, 3, 84, 84)
    assert torch.equal(found.train.labels, packed[:10].to(torch.uint8))
    assert found.protocol.name == "queries against the rest" and found.class_names == tuple("abc")
    middles = {row.numpy().tobytes(): label for row, label in zip(*_parts(found.gallery), strict=True)}
    for row, label in zip(*_parts(data.center_crop(found.train, 84)), strict=True):
        assert torch.equal(middles[row.numpy().tobytes()], label)
    again = hash_data_of("few", scale)
    assert torch.equal(again.gallery.images, found.gallery.images)
    unmixed = data.center_cropped(data.load("few", scale, size=96), 84)
    assert not torch.equal(unmixed.gallery.labels, found.gallery.labels)
    assert torch.equal(data.mixed(unmixed).gallery.labels, found.gallery.labels)


def _parts(split: data.Split) -> tuple[torch.Tensor, torch.Tensor]:
    return split.images, split.labels


@pytest.mark.parametrize("name", OFFICIAL_CODES)
def test_the_official_sets_are_learned_on_at_256_pixels_and_searched_in_224(name, monkeypatch):
    loads = []

    def load(name, scale, size):
        loads.append((name, scale, size))
        part = data.Split(torch.zeros(4, 3, size, size, dtype=torch.uint8), torch.eye(4))
        return data.RetrievalData(name, part, part, part, tuple("abcd"), data.Protocol("toy", "...", False, False))

    monkeypatch.setattr(named_hashing, "load", load)
    found = hash_data_of(name, "full")
    assert loads == [(name, "full", 256)] and found.train.images.shape[2:] == (256, 256)
    assert found.query.images.shape[2:] == (224, 224) and for_codes(name, "full").crop == 224


def test_a_recipe_and_its_data_fit_each_other(packed, monkeypatch):
    """What is cropped from is at least as large as the crop, and the crop is what is searched."""
    recipe = replace(for_codes("few", "full"), steps=1, batch=4, pretrained=False, generation=None)
    result = recipes.trained(recipe, hash_data_of("few", "full"), torch.device("cpu"))
    assert set(result.history[-1]) == {"step", "loss", "map", "spread"}
