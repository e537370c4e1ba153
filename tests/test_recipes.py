"""Recipes: trained once, kept under a name that changes with what decides the weights, safe for two at once."""

import inspect
import json
import multiprocessing
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open

from robret_lib import metrics, mining, models, objectives, recipes, training
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.metrics import recall_at_k
from robret_lib.models import embed
from robret_lib.recipes import FASHION_MNIST, Recipe, fashion_mnist, trained

CPU = torch.device("cpu")
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
    written_whole = training.written_whole

    @contextmanager
    def written_before_a_long_wait(path):
        with written_whole(path) as file:
            yield file
        while True:
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["robret_lib.recipes"])
    return context


@pytest.fixture
def trainings(monkeypatch):
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
    model = models.build("c2f2_half", 8)
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
    }
    data = some_data()
    assert recipes._key(replace(RECIPE, **{field: changes[field]}), data) != recipes._key(RECIPE, data)


def test_other_training_data_has_another_name():
    data = some_data()
    key = recipes._key(RECIPE, data)
    assert key == recipes._key(RECIPE, some_data())
    assert key != recipes._key(RECIPE, some_data(seed=1))
    images, labels = data.train.images.clone(), data.train.labels.clone()
    images[7, 0, 3, 3] ^= 1
    assert key != recipes._key(RECIPE, replace(data, train=Split(images, data.train.labels)))
    labels[0] = 1
    assert key != recipes._key(RECIPE, replace(data, train=Split(data.train.images, labels)))


@pytest.mark.parametrize("module", [models, mining, objectives, training, metrics])
def test_other_code_has_another_name_other_words_have_not(module, monkeypatch):
    source = inspect.getsource(module)
    key = recipes._key(RECIPE, some_data())

    def key_with(changed):
        assert changed != source
        original = inspect.getsource
        with monkeypatch.context() as patch:
            patch.setattr(inspect, "getsource", lambda asked: changed if asked is module else original(asked))
            return recipes._key(RECIPE, some_data())

    docstring = inspect.getdoc(module)
    assert key_with("# a remark\n" + source) == key
    assert key_with(source.replace(docstring.splitlines()[0], "Other words.")) == key
    assert key_with(source.replace("\n\n\n", "\n\n\n\n")) == key
    assert key_with(source + "\nlast = 1\n") != key


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
    assert fashion_mnist("full") == Recipe("c2f2", 512, 8 * -(-60_000 // 128), 128, "N", "random", 1e-3, 1e-7, 0)
    assert fashion_mnist("quick", seed=4, distance="C") == replace(FASHION_MNIST["quick"], seed=4, distance="C")


@pytest.mark.slow
def test_a_killed_recipe_goes_on_where_it_was(processes, tmp_path, cache):
    """Checkpoints come every 200 steps; killed after the first, it ends the same."""
    recipe = Recipe("c2f2_half", embedding_dim=2, steps=260, pairs=8)
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
