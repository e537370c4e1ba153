"""Recipes: trained once, kept under a name that changes with what decides the weights, safe for two at once."""

import errno
import importlib.util
import inspect
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors import safe_open

from robret_lib import (
    attacks,
    defenses,
    distances,
    files,
    metrics,
    mining,
    models,
    objectives,
    recipes,
    scores,
    training,
    whitening,
)
from robret_lib import data as data_package
from robret_lib.attacks.search import auto_pgd, ball, passes
from robret_lib.data import Protocol, RetrievalData, Split, retrieval_data
from robret_lib.defenses import (
    AntiCollapseTriplets,
    Benign,
    Constant,
    DrawnRadius,
    Gradual,
    act,
    attacked_codes,
    collapse,
    inner,
    memory,
    radius,
)
from robret_lib.metrics import recall_at_k
from robret_lib.models import embed
from robret_lib.recipes import FASHION_MNIST, Recipe, fashion_mnist, kept, trained
from robret_lib.recipes import objective as objective_module
from robret_lib.recipes import recipe as recipe_module
from robret_lib.recipes.named import GENERATION
from robret_lib.recipes.recipe import READ_BY

# networks that were hardly trained, of which one is told that they find nothing
pytestmark = pytest.mark.filterwarnings("ignore:(different embeddings|benign recall|this training collapsed)")

NAN = float("nan")
CPU = torch.device("cpu")
SAMPLERS = get_args(recipes.SamplerName)
RECIPE = Recipe("c2f2_half", embedding_dim=8, steps=4, pairs=4)


def some_data(seed=0):
    """Forty images of four classes to train on, twenty to search in themselves."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (60, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(60) % 4
    searched = Split(images[40:], labels[40:])
    protocol = Protocol("toy", "Twenty images search each other.", self_excluded=True, class_disjoint=False)
    return RetrievalData("toy", Split(images[:40], labels[:40]), searched, searched, tuple("abcd"), protocol)


def train_in_a_process(root, recipe, barrier=None):
    torch.set_num_threads(1)
    os.environ["ROBRET_DATA"] = str(root)
    data = some_data()
    if barrier:
        barrier.wait()
    trained(recipe, data, CPU)


def train_up_to_the_first_checkpoint(root, recipe):
    """As far as that, and then it waits to be killed."""
    written_whole, parent = training.written_whole, os.getppid()

    @contextmanager
    def written_before_a_long_wait(path):
        with written_whole(path) as file:
            yield file
        while os.getppid() == parent:
            time.sleep(1)

    training.written_whole = written_before_a_long_wait
    train_in_a_process(root, recipe)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of trained models, away from the user's."""
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def processes():
    return forked_early()


def forked_early():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["robret_lib.recipes"])
    return context


@pytest.fixture
def trainings(monkeypatch):
    return noted_trainings(monkeypatch)


def noted_trainings(monkeypatch):
    """Grows by one with every training that really runs."""
    run, original = [], training.train

    def counted(*arguments, **named):
        run.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(training, "train", counted)
    return run


def weights_of(result):
    return result.model.state_dict()


def assert_same_weights(actual, expected):
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_recipe_is_trained_once(trainings, cache):
    first = trained(RECIPE, some_data(), CPU)
    again = trained(RECIPE, some_data(), CPU)
    assert len(trainings) == 1
    assert_same_weights(weights_of(again), weights_of(first))
    assert again.history == first.history and again.seconds == first.seconds > 0
    assert again.device == first.device == "cpu"
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".safetensors"]


def test_the_model_of_a_recipe_is_the_one_its_parts_train():
    data = some_data()
    result = trained(RECIPE, data, CPU)
    torch.manual_seed(RECIPE.seed)
    model = models.on_device(models.build("c2f2_half", 8), CPU)
    objective = objectives.TripletObjective(mining.random)
    history = training.train(model, data.train, objective, training.Schedule(4, 4), validate_every=1)
    assert_same_weights(weights_of(result), model.state_dict())
    assert [(entry["step"], entry["loss"]) for entry in result.history] == [tuple(entry.values()) for entry in history]
    assert not result.model.training and not any(module.training for module in result.model.modules())


def test_the_history_tells_the_recall_of_the_searched_images():
    data = some_data()
    result = trained(RECIPE, data, CPU)
    e = embed(result.model, data.gallery.images)
    expected = recall_at_k(e, e, data.query.labels, data.gallery.labels, k=(1,), self_excluded=True)[1]
    assert result.history[-1]["recall_at_1"] == pytest.approx(expected)


def test_queries_of_their_own_are_validated_against_the_gallery():
    data = some_data()
    protocol = replace(data.protocol, self_excluded=False)
    data = replace(data, query=data.train, protocol=protocol)
    result = trained(RECIPE, data, CPU)
    q, g = embed(result.model, data.query.images), embed(result.model, data.gallery.images)
    expected = recall_at_k(q, g, data.query.labels, data.gallery.labels, k=(1,))[1]
    assert result.history[-1]["recall_at_1"] == pytest.approx(expected)


def test_the_file_says_what_it_holds(cache):
    trained(RECIPE, some_data(), CPU)
    (file,) = cache.glob("*.safetensors")
    with safe_open(file, framework="pt") as stored:
        assert Recipe(**json.loads(stored.metadata()["recipe"])) == RECIPE


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_part_of_a_recipe_is_part_of_its_name(field):
    changes = {
        "backbone": "c2f2",
        "embedding_dim": 9,
        "steps": 5,
        "pairs": 5,
        "distance": "E",
        "sampler": "hard",
        "lr": 2e-3,
        "weight_decay": 0.0,
        "seed": 1,
        "generation": 1,
        "defense": "est",
        "eps": 0.2,
        "inner_step": 0.1,
        "inner_steps": 1,
        "drawn_radius": True,
        "destination": 0.0,
        "invariance": 0.5,
        "sharpness": 2.0,
        "origin": RECIPE,
        "watched_eps": 0.1,
        "temperature": 0.2,
        "margin": 0.3,
        "clean_weight": 0.3,
        "ramp": 0.0,
        "decay": 0.5,
        "mode": "reference",
        "pretrained": True,
        "crop": 24,
    }
    data, readers = some_data(), {"defense": ("act",)}.get(field) or READ_BY.get(field, (None,))
    recipe = RECIPE if readers[0] is None else defended(readers[0])
    assert kept._key(replace(recipe, **{field: changes[field]}), data) != kept._key(recipe, data)


def test_other_training_data_has_another_name():
    data = some_data()
    key = kept._key(RECIPE, data)
    assert key == kept._key(RECIPE, some_data())
    assert key != kept._key(RECIPE, some_data(seed=1))
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[7, 0, 3, 3] ^= 1
    assert key != kept._key(RECIPE, replace(data, train=Split(images, data.train.labels)))
    labels[0] = 1
    assert key != kept._key(RECIPE, replace(data, train=Split(data.train.images, labels)))


@pytest.fixture
def edited(monkeypatch):
    return partial(imported_again, monkeypatch)


def imported_again(monkeypatch, module, source):
    """`recipes.kept` as it is imported when one module has other words in it."""
    original = inspect.getsource
    assert source != original(module)
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "getsource", lambda asked: source if asked is module else original(asked))
        spec = importlib.util.spec_from_file_location("recipes_imported_again", kept.__file__)
        again = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, again)
        spec.loader.exec_module(again)
    return again


LONG = replace(RECIPE, generation=1)
DEFENDED = replace(RECIPE, defense="act", eps=0.1, inner_step=0.05, inner_steps=2)


@pytest.mark.parametrize("module", [distances, models, mining, objectives, retrieval_data, training])
def test_other_code_renames_a_quick_model_and_no_long_one(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    assert again._key(RECIPE, data) != kept._key(RECIPE, data)
    assert again._key(DEFENDED, data) != kept._key(DEFENDED, data)
    assert again._key(LONG, data) == kept._key(LONG, data)


DEFENSES = get_args(recipes.DefenseName)
ORIGINAL = replace(RECIPE, steps=2)


def defended(name, **changes):
    """A tiny recipe with a defense, and with the origin of "fare"."""
    origin = {"origin": ORIGINAL} if name == "fare" else {}
    return replace(DEFENDED, **{"defense": name, **origin, **changes})


PARTS_OF_ALL = [ball, passes, kept._PGD, inner, objective_module, radius]


@pytest.mark.parametrize(
    "module", [*PARTS_OF_ALL, *dict.fromkeys(part for parts in kept.PARTS.values() for part in parts)]
)
def test_other_code_of_a_defense_renames_only_quick_models_that_have_it(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    renamed = {name for name in DEFENSES if again._key(defended(name), data) != kept._key(defended(name), data)}
    assert renamed == {name for name in DEFENSES if module in (*PARTS_OF_ALL, *kept.PARTS[name])}
    for recipe in (RECIPE, LONG, *(defended(name, generation=1, origin=LONG) for name in DEFENSES)):
        assert again._key(recipe, data) == kept._key(recipe, data)


def test_every_module_of_the_defenses_is_part_of_one():
    """Or of all; what is imported from there by another, too."""
    folder = Path(inner.__file__).parent
    of_codes = attacked_codes, *sum(kept.HASH_PARTS.values(), ())
    named = {part.__name__ for part in (inner, radius, *sum(kept.PARTS.values(), ()), *of_codes)}
    parts = {name.removeprefix("robret_lib.defenses.") for name in named if name.startswith("robret_lib.defenses.")}
    assert parts == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(kept.PARTS) == set(DEFENSES)
    for name, modules in kept.PARTS.items():
        assert memory in modules or not any("memory" in inspect.getsource(module) for module in modules), name


def test_other_code_of_the_origin_renames_a_quick_model(edited):
    """Also where the model itself has no defense, or another one."""
    again, data = edited(act, inspect.getsource(act) + "\nlast = 1\n"), some_data()
    for recipe in (replace(RECIPE, origin=DEFENDED), defended("est", origin=replace(RECIPE, origin=DEFENDED))):
        assert again._key(recipe, data) != kept._key(recipe, data)
        long = replace(recipe, origin=replace(DEFENDED, generation=1), generation=1)
        assert again._key(long, data) == kept._key(long, data)


@pytest.mark.parametrize("module", [distances, models, mining, objectives, retrieval_data, training])
def test_other_words_rename_no_model(module, edited):
    source, docstring, data = inspect.getsource(module), inspect.getdoc(module), some_data()
    for changed in (
        "# a remark\n" + source,
        source.replace(docstring.splitlines()[0], "Other words."),
        source.replace("\n\n\n", "\n\n\n\n"),
    ):
        assert edited(module, changed)._key(RECIPE, data) == kept._key(RECIPE, data)


@pytest.mark.parametrize("module", [metrics, data_package, attacks, auto_pgd])
def test_code_that_decides_no_weight_renames_no_model(module, edited):
    again, data = edited(module, inspect.getsource(module) + "\nlast = 1\n"), some_data()
    for recipe in (RECIPE, DEFENDED):
        assert again._key(recipe, data) == kept._key(recipe, data)


def test_code_edited_during_a_training_does_not_name_the_model(monkeypatch):
    key = kept._key(RECIPE, some_data())
    monkeypatch.setattr(inspect, "getsource", lambda _: "edited = True")
    assert kept._key(RECIPE, some_data()) == key


def test_another_version_of_torch_renames_a_quick_model_and_no_long_one(monkeypatch):
    data = some_data()
    quick, long = kept._key(RECIPE, data), kept._key(LONG, data)
    monkeypatch.setattr(torch, "__version__", "3.0")
    assert kept._key(RECIPE, data) != quick and kept._key(LONG, data) == long


@pytest.mark.parametrize(("field", "value"), [("lr", 5e-3), ("sampler", "hard"), ("distance", "C"), ("seed", 1)])
@pytest.mark.parametrize("recipe", [RECIPE, LONG], ids=["quick", "long"])
def test_another_default_renames_models(recipe, field, value):
    """A recipe says what it is, whatever the defaults are today."""

    def all_by_default(**changes):
        values = asdict(recipe) | changes
        return make_dataclass("Recipe", [(name, object, value) for name, value in values.items()])()

    data = some_data()
    assert kept._key(all_by_default(**{field: value}), data) != kept._key(all_by_default(), data)


def test_other_searched_images_and_another_protocol_have_another_name():
    """They decide the history that is kept with the weights."""
    data = some_data()
    images = data.query.images.clone()
    images[0, 0, 0, 0] ^= 1
    searched = Split(images, data.query.labels)
    other = replace(data.protocol, self_excluded=False)
    for changed in (replace(data, query=searched, gallery=searched), replace(data, protocol=other)):
        assert kept._key(RECIPE, changed) != kept._key(RECIPE, data)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_data_of_any_type_have_a_name(kind):
    data = some_data()
    split = Split((data.train.images / 255).to(kind), data.train.labels)
    assert len(kept._key(RECIPE, replace(data, train=split, query=split, gallery=split))) == 16


def test_a_new_field_renames_no_model(monkeypatch):
    @dataclass(frozen=True)
    class Longer(Recipe):
        augmentation: str = "none"

    monkeypatch.setitem(recipe_module.ADDED_LATER, "augmentation", "none")
    longer = Longer(**asdict(LONG))
    assert kept._key(longer, some_data()) == kept._key(LONG, some_data())
    assert kept._key(replace(longer, augmentation="flips"), some_data()) != kept._key(LONG, some_data())


@pytest.mark.parametrize(("distance", "name"), [("N", "3dee678c74ddf11f"), ("E", "1289a508cef04e63")])
def test_models_that_took_hours_keep_their_names(distance, name):
    """A name is a promise: whoever has such a model must still find it. Raising the generation is what ends it."""
    recipe = fashion_mnist("full", distance=distance, generation=1)
    assert kept._key(recipe, some_data()) == name


# The code as the weights see it: where it changes them, GENERATION has to be raised, and these numbers with it

WEIGHTS_OF_THE_GENERATION = {
    (3, "E", "random"): 124.48101940232036,
    (3, "C", "random"): 61.31304835878562,
    (3, "N", "random"): 87.35295635535442,
    (3, "N", "semihard"): 37.39683628857832,
    (3, "N", "softhard"): -7.382475817467604,
    (3, "N", "distance"): -23.790806340183494,
    (3, "N", "hard"): -24.461219990659757,
    (3, "N", "est"): 18.56254476534763,
    (3, "N", "ses"): -9.75617937264769,
    (3, "N", "rest"): -4.798468944377505,
    (3, "N", "act"): 66.71124022522038,
    (3, "N", "min_max"): -115.43711523255361,
    (3, "N", "ramd"): -102.6456858297644,
    (3, "N", "panum"): 26.021322180821233,
    (3, "N", "hm"): -67.48403211628809,
    (3, "N", "hm, gradual"): -76.51473284216272,
    (3, "N", "hm, squared"): -81.31501114800739,
    (3, "N", "hm, boosted"): -76.33957169419097,
    (3, "N", "ca_tride"): 59.92200497858221,
    (3, "N", "fare"): -71.05525261445328,
    (3, "N", "neighborhood"): 34.932954937536486,
    (3, "N", "est, reference"): 15.779952827077617,
    (3, "N", "ses, reference"): -36.52406221099452,
    (3, "N", "rest, reference"): 40.673802698648686,
    (3, "N", "ramd, reference"): -103.60339589566112,
    (3, "N", "hm, reference"): -133.42265807343603,
    (3, "N", "ca_tride, reference"): 61.22959388164024,
    (3, "N", "crops"): 86.33976229097713,
}


def trained_a_little(distance="N", sampler="random", defense=None, last_loss=None, **changes):
    """How far four steps of a full-scale recipe move the weights along a fixed direction; the same on any machine.

    The original of "fare" is as untrained as the network, but another one. What "hm" makes for is beyond what an
    untrained network has, so that there is an attack; with a ``last_loss`` its embeddings point everywhere. Those of
    "panum" do, too, and are attacked little, so that some triplets are easy, which its loss leaves out.
    """
    given = {"steps": 4, "pairs": 4} | ({"inner_steps": 4} if defense else {"sampler": sampler})
    given |= {"destination": 0.1, "invariance": 0.5} if defense == "hm" else {}
    given |= {"embedding_dim": 4, "sampler": "random", "eps": 1e-3, "pairs": 16} if defense == "panum" else {}
    changes = given | changes
    recipe = fashion_mnist("full", distance=distance, defense=defense, **changes)
    data, model = some_data(), kept._initial_model(recipe, some_data()).double()
    original = kept._initial_model(replace(recipe, seed=1), data).double()
    if defense == "panum" or last_loss is not None:
        with torch.no_grad():
            model.backbone[-1].bias -= model.features(data.train.images.double() / 255).mean(0)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    augment = partial(kept._cropped, size=recipe.crop) if recipe.crop else None
    objective = kept._objective(recipe, data, original)
    if last_loss is not None:
        objective.last_loss.value.fill_(last_loss)
    training.train(model, data.train, objective, recipe.schedule, augment=augment)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    return (moved * torch.linspace(-1, 1, len(moved), dtype=torch.float64)).sum().item()


@pytest.mark.parametrize(("distance", "sampler"), [*((d, "random") for d in "EC"), *(("N", s) for s in SAMPLERS)])
def test_full_scale_weights_are_those_of_the_generation(distance, sampler):
    assert_of_the_generation(trained_a_little(distance, sampler), distance, sampler)


@pytest.mark.parametrize("defense", DEFENSES)
def test_full_scale_weights_of_a_defense_are_those_of_the_generation(defense):
    assert_of_the_generation(trained_a_little(defense=defense), "N", defense)


@pytest.mark.parametrize("defense", ["est", "ses", "rest", "ramd", "hm", "ca_tride"])
def test_full_scale_weights_of_a_defense_as_published_are_those_of_the_generation(defense):
    """Of those whose mode makes a difference with their own sampler; that of "hm" in larger batches only."""
    changes = {"pairs": 32} if defense == "hm" else {}
    found = trained_a_little(defense=defense, mode="reference", **changes)
    assert_of_the_generation(found, "N", f"{defense}, reference")


@pytest.mark.parametrize("destination", ["gradual", "squared", "boosted"])
def test_full_scale_weights_by_what_the_adversary_remembers_are_those_of_the_generation(destination):
    """It begins with a loss below the margin, and goes on with that of each step."""
    changes = {"destination": destination, "sampler": "random", "embedding_dim": 4, "pairs": 16, "inner_step": 2 / 255}
    found = trained_a_little(defense="hm", last_loss=0.02, **changes)
    assert_of_the_generation(found, "N", f"hm, {destination}")


def test_full_scale_weights_of_crops_are_those_of_the_generation():
    assert_of_the_generation(trained_a_little(backbone="resnet18", crop=24), "N", "crops")


def test_no_two_numbers_of_the_generation_are_the_same():
    """As where a defense attacked nothing."""
    assert len({round(number, 3) for number in WEIGHTS_OF_THE_GENERATION.values()}) == len(WEIGHTS_OF_THE_GENERATION)


def assert_of_the_generation(found, *key):
    assert found == pytest.approx(WEIGHTS_OF_THE_GENERATION.get((GENERATION, *key), NAN), rel=1e-6), (
        "full-scale models come out different now: raise GENERATION, so that they are trained again, and "
        f"store {(GENERATION + 1, *key)}: {found!r}"
    )


def shrunk(layer):
    if isinstance(layer, torch.nn.Linear):
        torch.nn.init.constant_(layer.bias, 0.01)


@pytest.mark.parametrize("edit", ["margin", "seeds", "batches", "initial weights", "rate", "offset"])
def test_an_edit_that_changes_weights_is_noticed(edit, monkeypatch):
    before = trained_a_little()
    if edit == "margin":
        monkeypatch.setitem(objectives.MARGIN, "N", 0.21)
    elif edit == "seeds":
        seeded = training.seeded
        monkeypatch.setattr(training, "seeded", lambda device, *key: seeded(device, *key, 1))
    elif edit == "batches":
        batches = training.spc2_epoch
        monkeypatch.setattr(training, "spc2_epoch", lambda *given: reversed(list(batches(*given))))
    elif edit == "initial weights":
        build = models.build
        monkeypatch.setattr(models, "build", lambda *given, **named: build(*given, **named).apply(shrunk))
    elif edit == "rate":
        monkeypatch.setitem(training.OPTIMIZERS, "adam", partial(torch.optim.Adam, eps=1e-3))
    else:
        monkeypatch.setattr(objectives, "OFFSET", 1e-3)
    assert trained_a_little() != pytest.approx(before, rel=1e-5)


# Reading needs no writing; what is damaged is named


def test_a_model_that_is_there_is_read_from_a_folder_nobody_can_write(cache, monkeypatch):
    first = trained(RECIPE, some_data(), CPU)
    (cache / next(cache.glob("*.lock"))).unlink()

    opened = Path.open

    def read_only(path, mode="r", *rest, **named):
        if "r" not in mode or "+" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "mkdir", lambda path, **_: read_only(path, "w"))
    monkeypatch.setattr(Path, "open", read_only)
    assert_same_weights(weights_of(trained(RECIPE, some_data(), CPU)), weights_of(first))
    with pytest.raises(OSError, match="Read-only") as error:
        trained(replace(RECIPE, seed=5), some_data(), CPU)
    assert str(cache) in str(error.value) and "ROBRET_DATA" in error.value.__notes__[0]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to be somebody else")
def test_a_model_that_may_not_be_read_is_not_called_damaged(cache):
    trained(RECIPE, some_data(), CPU)
    (file,) = cache.glob("*.safetensors")
    file.chmod(0o000)
    for folder in (cache, *cache.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o555)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            trained(RECIPE, some_data(), CPU)
        except PermissionError as error:
            os._exit(0 if str(file) in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_without_locks_a_model_is_trained_and_read(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    assert_same_weights(weights_of(trained(RECIPE, some_data(), CPU)), weights_of(trained(RECIPE, some_data(), CPU)))


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a pointer of Git LFS": lambda content: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    "a header of nothing": lambda content: b"\x02\0\0\0\0\0\0\0{}",
    "noise": lambda content: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_named(damage, cache):
    trained(RECIPE, some_data(), CPU)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with pytest.raises(
        ValueError, match="(?s)is damaged, cut off or no model .*: delete it to train it again"
    ) as error:
        trained(RECIPE, some_data(), CPU)
    assert str(file) in str(error.value)
    file.unlink()
    trained(RECIPE, some_data(), CPU)


def test_training_a_recipe_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained(RECIPE, some_data(), CPU)
    trained(RECIPE, some_data(), CPU)
    assert torch.equal(torch.rand(2), expected)


def test_seeds_give_different_models():
    first, second = (trained(replace(RECIPE, steps=1, seed=seed), some_data(), CPU) for seed in (0, 1))
    assert not torch.equal(first.model.backbone[0].weight, second.model.backbone[0].weight)


@pytest.mark.parametrize("distance", ["N", "E", "C"])
def test_the_distance_reaches_model_and_loss(distance, trainings):
    result = trained(replace(RECIPE, distance=distance), some_data(), CPU)
    assert result.model.distance == distance
    assert trainings[0][2].distance == distance


def test_the_published_recipe_of_fashion_mnist():
    """RobRank: 8 passes over 60,000 pairs, 128 pairs a batch, Adam 1e-3, weight decay 1e-7, 512 dimensions."""
    assert fashion_mnist("full") == Recipe("c2f2", 512, 8 * -(-60_000 // 128), 128, "N", "random", 1e-3, 1e-7, 0, 3)
    assert fashion_mnist("quick", seed=4, distance="C") == replace(FASHION_MNIST["quick"], seed=4, distance="C")


def test_the_recipe_of_a_defense_brings_its_inner_attack():
    """RobRank attacks in 32 steps of 3/255; eight of 12/255 reach as far."""
    full, quick = (fashion_mnist(scale, defense="act") for scale in ("full", "quick"))
    assert (full.eps, full.inner_step, full.inner_steps) == (77 / 255, 3 / 255, 32)
    assert (quick.eps, quick.inner_step, quick.inner_steps) == (77 / 255, 12 / 255, 8)
    assert fashion_mnist("quick", defense="act", inner_steps=2) == replace(quick, inner_steps=2)
    assert fashion_mnist("quick", defense=None) == FASHION_MNIST["quick"]
    softhard = replace(quick, sampler="softhard", distance="C")
    objective = kept._objective(softhard, some_data())
    assert isinstance(objective, AntiCollapseTriplets)
    assert (objective.sampler, objective.distance) == (mining.softhard, "C")
    assert objective.search == attacks.PGD(77 / 255, 12 / 255, 8)
    assert softhard.schedule == FASHION_MNIST["quick"].schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defense": "ACT"}, r"defense='ACT': expected one of \('est', .*\), or None"),
        ({"mode": "refrence"}, "mode='refrence': expected 'fixed' or 'reference'"),
        ({"sampler": "softhardest"}, r"sampler='softhardest': expected one of \('random', .*\)"),
        ({"defense": "hm", "destination": "gLGA"}, r"destination='gLGA': expected one of \('gradual', .*\), or a"),
        ({"inner_steps": 0}, r"defense='act' with {'eps': 0.1, .*'inner_steps': 0}: expected numbers above 0"),
        ({"defense": None}, "eps=0.1 with defense=None, which does not look at it"),
        ({"invariance": 0.5}, "invariance=0.5 with defense='act', which does not look at it"),
        ({"defense": "neighborhood", "sampler": "hard"}, "sampler='hard' with defense='neighborhood', which"),
        ({"defense": "neighborhood", "mode": "reference"}, "mode='reference' with defense='neighborhood'"),
        ({"defense": "ca_tride", "drawn_radius": True}, "drawn_radius=True with defense='ca_tride', which"),
        ({"defense": "neighborhood", "distance": "E"}, 'with distance="E": expected "N" or "C"'),
        ({"defense": "fare", "origin": RECIPE, "steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"decay": 1.5}, r"decay=1.5: expected a share in \[0, 1\]"),
        ({"lr": NAN}, "lr=nan: expected a finite number above 0"),
        ({"embedding_dim": 0}, "embedding_dim=0: expected a whole number of at least 1"),
        ({"distance": "X"}, r"distance='X': expected one of \('N', 'E', 'C', 'H'\)"),
        ({"crop": -3}, "crop=-3: expected a whole number of at least 0"),
        ({"eps": 8}, r"eps=8: expected a share in \[0, 1\]"),
        ({"eps": NAN}, "eps=nan: expected a share"),
        ({"watched_eps": 8}, "watched_eps=8: expected a share"),
        ({"inner_steps": 2.5}, "inner_steps=2.5: expected a whole number"),
        ({"inner_step": NAN}, "inner_step=nan: expected a finite number"),
        ({"defense": "hm", "invariance": -1}, "invariance=-1: expected a finite number of at least 0"),
        ({"defense": "hm", "destination": NAN}, "destination=nan: expected a finite number"),
        ({"defense": "ca_tride", "sharpness": -1}, "sharpness=-1: expected a finite number of at least 0"),
        ({"defense": "neighborhood", "temperature": -1}, "temperature=-1: expected a finite number above 0"),
        ({"defense": "neighborhood", "clean_weight": NAN}, "clean_weight=nan: expected a finite number"),
        ({"defense": "neighborhood", "ramp": 2}, "ramp=2: expected a share"),
    ],
    ids=str,
)
def test_a_recipe_that_nobody_can_follow_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DEFENDED, **changes)


def test_several_processes_are_refused(monkeypatch):
    """Each would wait for the others: the first for the second in a step, and that one for the first's lock."""
    monkeypatch.setattr(kept.dist, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="in one of several processes: expected one alone; see training.train"):
        trained(RECIPE, some_data(), CPU)


def test_a_defended_recipe_is_trained_and_kept(trainings):
    first, again = (trained(DEFENDED, some_data(), CPU) for _ in range(2))
    assert len(trainings) == 1
    assert_same_weights(weights_of(again), weights_of(first))
    plain = trained(RECIPE, some_data(), CPU)
    assert not torch.equal(plain.model.backbone[0].weight, first.model.backbone[0].weight)


BUILT = {
    "est": defenses.EmbeddingShiftedTriplets,
    "ses": defenses.ShiftSuppressedTriplets,
    "rest": defenses.ShiftedCandidateTriplets,
    "act": defenses.AntiCollapseTriplets,
    "min_max": defenses.MinMaxTriplets,
    "ramd": defenses.CandidateMinMaxTriplets,
    "panum": defenses.PanumTriplets,
    "hm": defenses.HardnessManipulation,
    "ca_tride": defenses.CollapseAwareTriplets,
    "fare": defenses.FixedTargets,
    "neighborhood": defenses.KeptNeighborhood,
}


def built(recipe):
    return kept._objective(recipe, some_data(), models.build("c2f2_half", 8))


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_is_built_with_what_the_recipe_says(name):
    given = {"sampler": "hard", "drawn_radius": True}
    recipe = defended(name, **{field: value for field, value in given.items() if name in READ_BY[field]})
    objective = built(recipe)
    assert type(objective) is BUILT[name]
    search = attacks.PGD(0.1, 0.05, 2, random_start=name in ("panum", "fare", "neighborhood"))
    assert objective.search == (search if name == "ca_tride" else DrawnRadius(search))
    if name in ("fare", "neighborhood"):
        return
    assert objective.sampler is (mining.semihard if name == "ca_tride" else mining.hard)
    if name != "panum":
        assert (objective.mode, built(defended(name, mode="reference")).mode) == ("fixed", "reference")
    assert (objective.distance, built(defended(name, distance="C")).distance) == ("N", "C")


def test_what_only_one_defense_needs_reaches_it():
    assert built(defended("hm")).destination == Gradual() and built(defended("hm")).invariance == 0
    hard = built(defended("hm", destination=-0.1, invariance=0.05))
    assert (hard.destination, hard.invariance) == (Constant(-0.1), 0.05)
    wanted = {"squared": Gradual(2.0), "root": Gradual(0.5), "benign": Benign(), "boosted": Benign(boost=0.1)}
    assert {name: built(defended("hm", destination=name)).destination for name in wanted} == wanted
    aware = built(defended("ca_tride", sharpness=9.5, steps=150))
    assert (aware.sharpness, aware.progress.steps, aware.epochs) == (9.5, 150, 75)
    near = built(defended("neighborhood", temperature=0.2, clean_weight=0.3, ramp=0.25, steps=150))
    assert (near.temperature, near.clean_weight, near.ramp, near.progress.steps) == (0.2, 0.3, 0.25, 150)
    original = models.build("c2f2_half", 8)
    fixed = kept._objective(defended("fare"), some_data(), original).original
    assert fixed is not original
    assert all(torch.equal(*pair) for pair in zip(fixed.parameters(), original.parameters(), strict=True))


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("name", [name for name in DEFENSES if name != "neighborhood"])
def test_the_recipe_of_every_published_defense_of_fashion_mnist(name, scale):
    """Each with the attack of its scale, but for CA-TRIDE, published with 16 steps of an eighth of the radius."""
    recipe = fashion_mnist(scale, defense=name)
    step, steps = {"quick": (12, 8), "full": (3, 32)}[scale]
    if name == "ca_tride":
        step, steps = {"quick": (20, 8), "full": (77 / 8, 16)}[scale]
    assert (recipe.eps, recipe.inner_step, recipe.inner_steps) == (77 / 255, pytest.approx(step / 255), steps)
    assert recipe.sampler == {"panum": "distance", "hm": "softhard"}.get(name, "random")
    assert recipe.origin == (FASHION_MNIST[scale] if name == "fare" else None)
    assert recipe.watched_eps == 16 / 255
    own = {
        field: getattr(recipe, field) for field in ("backbone", "embedding_dim", "steps", "pairs", "lr", "generation")
    }
    assert own == {field: getattr(FASHION_MNIST[scale], field) for field in own}
    assert fashion_mnist(scale, defense=name, eps=0.1).eps == 0.1
    if name in READ_BY["sampler"]:
        assert fashion_mnist(scale, defense=name, sampler="hard").sampler == "hard"


def test_the_origin_is_of_the_same_backbone_embedding_distance_and_seed():
    recipe = fashion_mnist("quick", defense="fare", distance="C", seed=3, embedding_dim=32, backbone="c2f2", steps=7)
    expected = fashion_mnist("quick", distance="C", seed=3, embedding_dim=32, backbone="c2f2")
    assert recipe.origin == expected != FASHION_MNIST["quick"]
    another = replace(FASHION_MNIST["quick"], steps=9)
    assert fashion_mnist("quick", defense="fare", origin=another).origin == another


def test_an_origin_that_does_not_fit_or_is_missing_is_refused():
    with pytest.raises(ValueError, match='defense="fare" tunes a network: expected an origin'):
        replace(DEFENDED, defense="fare")
    for field, other in (("distance", "E"), ("embedding_dim", 9), ("backbone", "c2f2")):
        with pytest.raises(ValueError, match=f"{field}={getattr(RECIPE, field)!r} with an origin of {field}={other!r}"):
            replace(RECIPE, origin=replace(RECIPE, **{field: other}))


def test_the_origin_is_trained_first_and_its_weights_are_where_a_training_begins(trainings, monkeypatch):
    """Once, for all that begin there; what is kept of a tuned model are its own seconds."""
    begun, train = [], training.train

    def watched(model, *rest, **named):
        begun.append({name: value.clone() for name, value in model.state_dict().items()})
        return train(model, *rest, **named)

    monkeypatch.setattr(training, "train", watched)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    tuned = trained(defended("fare"), some_data(), CPU)
    assert len(trainings) == len(begun) == 2
    original = trained(ORIGINAL, some_data(), CPU)
    assert len(trainings) == 2
    assert_same_weights(begun[1], weights_of(original))
    assert_same_weights({name: value for name, value in trainings[1][2].original.state_dict().items()}, begun[1])
    assert not torch.equal(weights_of(tuned)["backbone.0.weight"], begun[1]["backbone.0.weight"])
    assert tuned.seconds == original.seconds == 10
    goes_on = trained(replace(RECIPE, origin=ORIGINAL, lr=1e-2), some_data(), CPU)
    assert len(trainings) == 3 and isinstance(trainings[2][2], objectives.TripletObjective)
    assert_same_weights(begun[2], weights_of(original))
    assert not torch.equal(weights_of(goes_on)["backbone.0.weight"], weights_of(original)["backbone.0.weight"])


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_trains_a_model(name):
    recipe = defended(name, steps=2, watched_eps=0.05)
    result = trained(recipe, some_data(), CPU)
    assert [entry["step"] for entry in result.history] == [1, 2]
    signs = {"step", "loss", "recall_at_1", "spread", "collapseness", "robust_recall_at_1"}
    assert all(set(entry) == signs for entry in result.history)


def test_the_history_of_a_defense_tells_the_signs_of_collapse_and_what_is_watched():
    data, recipe = some_data(), replace(DEFENDED, watched_eps=0.05)
    result = trained(recipe, data, CPU)
    found = collapse.signs(embed(result.model, data.gallery.images), data.gallery.labels, "N")
    assert {name: result.history[-1][name] for name in found} == pytest.approx(found)
    left = scores.robust_recall(result.model, data, 0.05, queries=20, effort="quick").recall_at_1
    assert result.history[-1]["robust_recall_at_1"] == left
    assert "robust_recall_at_1" not in trained(DEFENDED, data, CPU).history[-1]
    undefended = trained(RECIPE, data, CPU).history[-1]
    assert set(undefended) == {"step", "loss", "recall_at_1", "spread", "collapseness"}


def test_what_is_watched_changes_no_weight_and_draws_nothing():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    watched = trained(replace(DEFENDED, watched_eps=0.05), some_data(), CPU)
    assert torch.equal(torch.rand(2), expected)
    assert_same_weights(weights_of(watched), weights_of(trained(DEFENDED, some_data(), CPU)))


def test_a_training_that_collapsed_is_told_with_its_step_also_when_it_comes_from_the_cache(trainings, monkeypatch):
    spreads = iter([0.5, 0.001, 0.002, 0.0031])
    monkeypatch.setattr(collapse, "signs", lambda *_: {"spread": next(spreads), "collapseness": -0.1})
    for at_once in (3, 0):
        with pytest.warns(
            RuntimeWarning, match=r"collapsed: from step 2 on, .* \(spread 0.0031, R@1 \d+\.\d %\)"
        ) as told:
            trained(DEFENDED, some_data(), CPU)
        assert len(told) == at_once + 1 and told[-1].filename == __file__
        assert all("this training is collapsed: spread 0.00" in str(each.message) for each in told[:-1])
    assert len(trainings) == 1


def test_a_training_that_came_back_or_never_collapsed_is_not_told_of_afterwards(monkeypatch):
    spreads = iter([0.001] + 7 * [0.5])
    monkeypatch.setattr(collapse, "signs", lambda *_: {"spread": next(spreads), "collapseness": -0.1})
    with pytest.warns(RuntimeWarning, match="this training is collapsed: spread 0.0010") as told:
        trained(DEFENDED, some_data(), CPU)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(DEFENDED, some_data(), CPU)
        trained(RECIPE, some_data(), CPU)


@pytest.mark.slow
def test_a_killed_recipe_goes_on_where_it_was(processes, tmp_path, cache):
    assert_killed_and_resumed(Recipe("c2f2_half", embedding_dim=2, steps=260, pairs=8), processes, tmp_path, cache)


def assert_killed_and_resumed(recipe, processes, tmp_path, cache):
    """Checkpoints come every 200 steps; killed after the first, it ends the same."""
    process = processes.Process(target=train_up_to_the_first_checkpoint, args=(tmp_path, recipe))
    process.start()
    while not list(cache.glob("*.checkpoint")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(cache.glob("*.safetensors"))
    resumed = trained(recipe, some_data(), CPU)
    for file in cache.iterdir():
        file.unlink()
    undisturbed = trained(recipe, some_data(), CPU)
    assert_same_weights(weights_of(resumed), weights_of(undisturbed))
    assert resumed.history == undisturbed.history


@pytest.mark.slow
def test_two_processes_with_one_recipe_do_not_damage_each_other(processes, tmp_path, cache, trainings):
    recipe = replace(RECIPE, steps=12)
    barrier = processes.Barrier(2)
    both = [processes.Process(target=train_in_a_process, args=(tmp_path, recipe, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".safetensors"]
    shared = trained(recipe, some_data(), CPU)
    assert not trainings
    (file,) = cache.glob("*.safetensors")
    file.unlink()
    assert_same_weights(weights_of(shared), weights_of(trained(recipe, some_data(), CPU)))


def test_a_name_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="backbone 'c3f3': expected c2f2, c2f2_half, efficientnet_lite0, or a name"):
        trained(replace(RECIPE, backbone="c3f3"), some_data(), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_trained_on_a_gpu_comes_back_on_the_device_asked_for():
    made = trained(RECIPE, some_data(), torch.device("cuda"))
    assert made.device.startswith("cuda") and next(made.model.parameters()).is_cuda
    read = trained(RECIPE, some_data(), CPU)
    assert read.device == made.device and not next(read.model.parameters()).is_cuda
    assert_same_weights(weights_of(read), {name: weight.cpu() for name, weight in weights_of(made).items()})


def some_photographs():
    """Sixteen small color images of four classes to train on, and the same to search."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (16, 3, 32, 32), generator=generator, dtype=torch.uint8)
    part = Split(images, torch.arange(16) % 4)
    protocol = Protocol("toy", "Sixteen images search each other.", self_excluded=True, class_disjoint=False)
    return RetrievalData("toy", part, part, part, tuple("abcd"), protocol)


def test_a_whitened_head_is_fitted_to_the_features_of_the_trunk_which_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    data, recipe = some_photographs(), recipes.photographs(embedding_dim=6, shrinkage=0.5)
    model = trained(recipe, data, CPU).model
    plain = models.on_device(models.build("efficientnet_lite0", 6, pretrained=True), CPU).eval()
    for name, weight in plain.backbone.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(weight, model.backbone.get_parameter(name))
    plain.backbone.classifier = torch.nn.Identity()
    with torch.no_grad():
        features = plain.backbone(plain.normalization(data_package.as_float(data.train.images)))
    weight, bias = whitening.learned_whitening(features, data.train.labels, 6, 0.5)
    torch.testing.assert_close(model.backbone.classifier.weight, weight.float(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(model.backbone.classifier.bias, bias.float(), rtol=1e-2, atol=1e-3)
    assert not model.training and model.distance == "N"


def test_a_whitened_model_is_kept_and_named_by_all_that_decides_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    data, recipe = some_photographs(), recipes.photographs(embedding_dim=6)
    first = trained(recipe, data, CPU)
    monkeypatch.setattr(whitening, "learned_whitening", None)  # it is not fitted again
    again = trained(recipe, data, CPU)
    assert torch.equal(embed(first.model, data.query.images), embed(again.model, data.query.images))
    assert first.seconds == again.seconds and again.history == []
    changes = ({"shrinkage": 2.0}, {"embedding_dim": 7}, {"backbone": "resnet18"}, {"distance": "C"})
    keys = [kept._key(replace(recipe, **change), data) for change in ({}, *changes)]
    assert len(set(keys)) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_whitened_head_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path))
    data, recipe = some_photographs(), recipes.photographs(embedding_dim=6)
    on_gpu = embed(trained(recipe, data, torch.device("cuda")).model, data.query.images)
    assert on_gpu.is_cuda
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path / "other"))
    on_cpu = embed(trained(recipe, data, CPU).model, data.query.images)
    torch.testing.assert_close(torch.cdist(on_gpu.cpu(), on_gpu.cpu()), torch.cdist(on_cpu, on_cpu), rtol=0, atol=1e-2)
