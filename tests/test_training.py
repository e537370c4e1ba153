"""Training: one loop against the same loop written out, and real kills at any moment without a trace in the weights."""

import io
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from robret_lib import mining, training
from robret_lib.attacks import PGD
from robret_lib.augmentation import random_crop_and_flip
from robret_lib.data import Split
from robret_lib.defenses import AntiCollapseTriplets, Benign, CollapseAwareTriplets, DrawnRadius, HardnessManipulation
from robret_lib.files import written_whole
from robret_lib.mining import spc2_epoch
from robret_lib.objectives import MetricLearningObjective, TripletObjective
from robret_lib.training import Schedule, seeded, train

ROOT = Path(__file__).parents[1]
SCHEDULE = Schedule(steps=20, pairs=8, lr=1e-2, weight_decay=1e-3, seed=5)
EPOCH = 5  # batches of eight pairs from 37 images

# Everything below is imported by name in processes of its own that get killed; it must stay importable and quick.


def some_split():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(37) % 4
    patterns = torch.rand(4, 1, 6, 6, generator=generator)[labels]
    return Split(0.5 * patterns + 0.5 * torch.rand(37, 1, 6, 6, generator=generator), labels)


def small_model():
    """With dropout and batch statistics: everything that a resumed training could get wrong."""
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 5)
    return nn.Sequential(*layers)


class Interrupted(Exception):
    pass


class ScaledTriplets(nn.Module):
    """A triplet loss with a weight of its own and a draw from the generator; counts its calls.

    After ``free_calls`` it waits for the file ``signal``: work is left, however slow those are who look at it. It
    gives up when ``parent``, if there is one, has ended. It fails after ``last`` calls.
    None of that is a setting of the loss.
    """

    def __init__(self, free_calls=math.inf, signal=None, parent=None, last=math.inf):
        super().__init__()
        self.margin, self._calls = nn.Parameter(torch.tensor(0.5)), 0
        self._free_calls, self._signal, self._parent, self._last = free_calls, signal, parent, last

    def forward(self, model, images, labels, generator):
        if self._calls == self._last:
            raise Interrupted
        while self._calls >= self._free_calls and not self._signal.exists() and self._parent in (None, os.getppid()):
            time.sleep(0.01)
        self._calls += 1
        e = nn.functional.normalize(model(images), dim=1)
        noise = torch.rand(len(e) // 2, generator=generator)
        negative = e[2:].roll(-1, 0)[:: len(e) - 3].mean(0)
        anchored = (e[0::2] - e[1::2]).norm(dim=1) - (e[0::2] - negative).norm(dim=1)
        return (anchored + self.margin + 0.1 * noise).relu().mean() + self.margin.square()


def norm_of_weights(model):
    """A validation that says something about the weights, and that it is called as promised."""
    assert not model.training and not torch.is_grad_enabled()
    return {"norm": sum(weight.norm().item() for weight in model.parameters())}


def run_training(folder, steps=SCHEDULE.steps, free_calls=math.inf):
    """Train from the checkpoint in the folder, if any, and leave the outcome there."""
    torch.set_num_threads(1)
    folder, model = Path(folder), small_model()
    objective = ScaledTriplets(free_calls, folder / "signal that never comes", os.getppid())
    schedule = replace(SCHEDULE, steps=steps)
    history = train(model, some_split(), objective, schedule, folder / "checkpoint", 3, norm_of_weights, 7)
    torch.save({"model": model.state_dict(), "objective": objective.state_dict(), "history": history}, folder / "end")


def write_forever(path, size):
    """Files full of one number, the next always larger, each written atomically."""
    number = 0
    while True:
        number += 1
        with written_whole(path) as file:
            torch.save({"number": number, "payload": torch.full((size,), float(number))}, file)


@pytest.fixture(scope="module")
def processes():
    """Starts processes quickly: they fork from a server that has torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "robret_lib.training"])
    return context


def steps_kept(checkpoint):
    return loaded(checkpoint)["step"] if checkpoint.exists() else 0


def wait_until(happened, alive):
    """For progress, however slow the machine; a process that ends without it is a failure."""
    while not happened():
        assert alive() or happened(), "ended before what was waited for"
        time.sleep(0.02)


def loaded(path):
    return torch.load(path, weights_only=True)


def assert_same(actual, expected):
    """Nested dictionaries and lists of tensors and numbers, bit for bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for left, right in zip(actual, expected, strict=True):
            assert_same(left, right)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


# The loop itself


def trained(**changes):
    model, objective = small_model(), ScaledTriplets()
    history = train(model, some_split(), objective, SCHEDULE, **changes)
    return model, objective, history


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_loop_is_the_one_written_out(decay):
    """Adam on model and objective, batches and draws from their seeds, bit for bit; a rate that falls in the end."""
    model, objective, split = small_model(), ScaledTriplets(), some_split()
    rates = [1e-2] * 20 if decay == 0 else [1e-2] * 10 + [1e-2 * (left / 10) for left in range(10, 0, -1)]
    adam = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=1e-2, weight_decay=1e-3)
    losses = []
    for step in range(20):
        epoch, place = divmod(step, EPOCH)
        batches = list(spc2_epoch(split.labels, 8, seeded(torch.device("cpu"), 5, 0, epoch)))
        assert len(batches) == EPOCH
        generator = seeded(torch.device("cpu"), 5, 1, step, 0)
        torch.manual_seed(generator.initial_seed())
        model.train()
        loss = objective(model, split.images[batches[place]], split.labels[batches[place]], generator)
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = rates[step]
        adam.step()
        losses.append(loss.item())
    actual, its_objective = small_model(), ScaledTriplets()
    history = train(actual, split, its_objective, replace(SCHEDULE, decay=decay), validate_every=8)
    assert_same(actual.state_dict(), model.state_dict())
    assert torch.equal(its_objective.margin, objective.margin) and objective.margin != 0.5
    assert [entry["step"] for entry in history] == [8, 16, 20]
    for entry, part in zip(history, (losses[:8], losses[8:16], losses[16:]), strict=True):
        assert entry["loss"] == pytest.approx(sum(part) / len(part), rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "decay", "shares"),
    [
        (4, 0.0, [1, 1, 1, 1]),
        (4, 1.0, [1, 0.75, 0.5, 0.25]),
        (4, 0.5, [1, 1, 1, 0.5]),
        (5, 0.5, [1, 1, 1, 0.8, 0.4]),  # over two steps and a half
        (4, 0.25, [1, 1, 1, 1]),  # the first step of the fall has the full rate
        (4, 0.1, [1, 1, 1, 1]),
        (1, 1.0, [1]),
    ],
)
def test_the_rate_falls_in_a_straight_line_to_zero_which_no_step_has(steps, decay, shares):
    schedule = Schedule(steps, 8, lr=1e-3, decay=decay)
    assert [schedule.rate(step) for step in range(steps)] == pytest.approx([1e-3 * share for share in shares])
    assert decay == 0 or schedule.rate(steps) == 0


@pytest.mark.parametrize(
    ("steps", "milestones", "decay", "shares"),
    [
        (8, (0.5, 0.75), 0.0, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (8, (0.75, 0.5), 0.0, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (6, (1 / 3, 2 / 3), 0.0, [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (5, (0.5,), 0.0, [1, 1, 1, 0.1, 0.1]),  # 2.5: the step after
        (100, (0.07,), 0.0, [1] * 7 + [0.1] * 93),  # 0.07 * 100 is above 7 in floats
        (4, (0.0, 1.0), 0.0, [0.1, 0.1, 0.1, 0.1]),  # from the first step on, and never
        (4, (0.5, 0.5), 0.0, [1, 1, 0.01, 0.01]),
        (4, (0.5,), 1.0, [1, 0.75, 0.05, 0.025]),
    ],
)
def test_the_rate_falls_to_a_tenth_at_each_milestone(steps, milestones, decay, shares):
    schedule = Schedule(steps, batch=8, lr=0.02, decay=decay, milestones=milestones)
    assert [schedule.rate(step) for step in range(steps)] == pytest.approx([0.02 * share for share in shares])


class Linear(nn.Module):
    """A loss of linear outputs, the same for the same batch."""

    def forward(self, model, images, labels, generator):
        return (model(images).square().sum(1) * (1 + labels)).mean()


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [("sgd", 0.0), ("sgd", 0.9), ("rmsprop", 0.0), ("adam", 0.0), ("adam", 0.5), ("adam", 0.9)],
)
def test_a_step_of_each_optimizer_is_that_of_its_formula(optimizer, momentum):
    """Weight decay as a part of the gradient, and rates that fall at a milestone; Adam's momentum is its beta_1."""
    schedule = Schedule(
        4, batch=10, lr=0.01, weight_decay=0.1, optimizer=optimizer, momentum=momentum, milestones=(0.5,)
    )
    kept = momentum or 0.9  # by Adam
    split, model = some_split(), nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False)).double()
    split = Split(split.images.double(), split.labels)
    weight = model[1].weight.detach().clone().requires_grad_(True)
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, batch in enumerate(islice(training._batches(split.labels, schedule, 0, 0, 1), 4)):
        outputs = partial(nn.functional.linear, weight=weight)
        loss = Linear()(outputs, split.images[batch].flatten(1), split.labels[batch], None)
        gradient = torch.autograd.grad(loss, weight)[0] + 0.1 * weight.detach()
        if optimizer == "rmsprop":
            second = 0.99 * second + 0.01 * gradient.square()
            change = gradient / (second.sqrt() + 1e-8)
        elif optimizer == "adam":
            first, second = kept * first + (1 - kept) * gradient, 0.999 * second + 0.001 * gradient.square()
            change = first / (1 - kept ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        else:
            change = first = momentum * first + gradient
        weight = (weight - (0.01 if step < 2 else 0.001) * change).detach().requires_grad_(True)
    train(model, split, Linear(), schedule)
    torch.testing.assert_close(model[1].weight, weight, rtol=1e-9, atol=1e-12)


class Holding(nn.Module):
    """Keeps what it is told before each step, and what it is given then; it fails after ``last`` calls."""

    def __init__(self, last=math.inf):
        super().__init__()
        self._told, self._last = [], last

    def hold(self, rows, epoch):
        self._rows, self._epoch = rows, epoch

    def forward(self, model, images, labels, generator):
        if len(self._told) == self._last:
            raise Interrupted
        self._told.append((self._rows.tolist(), self._epoch, images.clone(), labels.clone()))
        del self._rows, self._epoch
        return model(images).square().mean()


SHUFFLED = Schedule(steps=20, batch=8, lr=1e-2, seed=5)
of_batches = pytest.mark.parametrize("schedule", [SHUFFLED, SCHEDULE], ids=["all images", "pairs"])


@of_batches
def test_an_objective_is_told_before_each_step_which_images_its_batch_holds(schedule):
    split, objective = some_split(), Holding()
    train(small_model(), split, objective, schedule)
    assert [epoch for _, epoch, *_ in objective._told] == [step // EPOCH for step in range(20)]
    for rows, _, images, labels in objective._told:
        assert torch.equal(images, split.images[rows]) and torch.equal(labels, split.labels[rows])
    new = objective._told[:EPOCH]
    shown = [row for rows, *_ in new for row in (rows if schedule is SHUFFLED else rows[0::2])]
    assert sorted(shown) == list(range(37))


@of_batches
@pytest.mark.parametrize("stop", [2, 5, 6, 13])
def test_a_resumed_training_tells_the_rows_and_the_epochs_that_are_left(schedule, stop, tmp_path):
    whole, resumed = Holding(), Holding()
    train(small_model(), some_split(), whole, schedule)
    with pytest.raises(Interrupted):
        train(small_model(), some_split(), Holding(stop), schedule, tmp_path / "checkpoint", 3)
    train(small_model(), some_split(), resumed, schedule, tmp_path / "checkpoint", 3)
    left = whole._told[stop // 3 * 3 :]
    assert [told[:2] for told in resumed._told] == [told[:2] for told in left]


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2)])
def test_each_process_is_told_its_own_rows(rank, world, monkeypatch):
    monkeypatch.setattr(training, "_rank_and_world", lambda: (rank, world))
    monkeypatch.setattr(training, "DistributedDataParallel", lambda replicas: replicas)
    objective = Holding()
    train(small_model(), some_split(), objective, SHUFFLED)
    batches = training._batches(some_split().labels, SHUFFLED, 0, rank, world)
    assert [(rows, epoch) for rows, epoch, *_ in objective._told] == [
        (next(batches).tolist(), step // 3) for step in range(20)
    ]


def test_what_lies_inside_of_an_objective_is_told_as_well():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Holding()

        def forward(self, *given):
            return self.inner(*given)

    objective = Around()
    train(small_model(), some_split(), objective, SHUFFLED)
    assert len(objective.inner._told) == 20


def test_labels_of_several_classes_are_trained_on_in_batches_of_all_images():
    hot = nn.functional.one_hot(some_split().labels, 4)
    objective = Holding()
    train(small_model(), Split(some_split().images, hot), objective, SHUFFLED)
    assert all(torch.equal(labels, hot[rows]) for rows, _, _, labels in objective._told)


def crop(images, generator):
    """Of 6 x 6 pixels, without which the model below does not take the images."""
    return random_crop_and_flip(images, 6, generator)


def larger_split():
    """In bytes, of 8 x 8 pixels."""
    images = nn.functional.interpolate(some_split().images, 8)
    return Split((images * 255).round().to(torch.uint8), some_split().labels)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2)])
def test_augmentation_has_draws_of_its_own_and_changes_no_others(rank, world, monkeypatch):
    """On each process; the objective draws what it draws without it."""
    monkeypatch.setattr(training, "_rank_and_world", lambda: (rank, world))
    monkeypatch.setattr(training, "DistributedDataParallel", lambda replicas: replicas)
    seen, drawn = [], []

    class Watching(ScaledTriplets):
        def forward(self, model, images, labels, generator):
            seen.append(images)
            drawn.append(generator.get_state())
            return super().forward(model, images, labels, generator)

    split, types = larger_split(), set()

    def augment(images, generator):
        types.add(images.dtype)
        return crop(images, generator)

    train(small_model(), split, Watching(), SCHEDULE, augment=augment)
    assert types == {torch.uint8} and len(seen) == 20
    batches = training._batches(split.labels, SCHEDULE, 0, rank, world)
    for step, (images, state) in enumerate(zip(seen, drawn, strict=True)):
        expected = crop(split.images[next(batches)], seeded(torch.device("cpu"), 5, 2, step, rank))
        assert torch.equal(images, expected.float() / 255)
        assert torch.equal(state, seeded(torch.device("cpu"), 5, 1, step, rank).get_state())


def test_augmentation_that_changes_nothing_changes_no_weight():
    def all_draws(images, generator):
        torch.rand(100, generator=generator)
        return images

    plain, _, history = trained()
    same, _, same_history = trained(augment=all_draws)
    assert_same(same.state_dict(), plain.state_dict())
    assert_same(same_history, history)


@pytest.mark.parametrize("stop", [1, 3, 4, 10, 19])
def test_augmented_training_stopped_and_resumed_ends_the_same(stop, tmp_path):
    whole = small_model()
    history = train(whole, larger_split(), ScaledTriplets(), SCHEDULE, augment=crop)
    arguments = {"checkpoint": tmp_path / "checkpoint", "checkpoint_every": 3, "augment": crop}
    with pytest.raises(Interrupted):
        train(small_model(), larger_split(), ScaledTriplets(last=stop), SCHEDULE, **arguments)
    model, resumed = small_model(), ScaledTriplets()
    assert_same(train(model, larger_split(), resumed, SCHEDULE, **arguments), history)
    assert resumed._calls == 20 - stop // 3 * 3
    assert_same(model.state_dict(), whole.state_dict())


def test_bytes_are_trained_on_as_floats():
    split = some_split()
    as_bytes = Split((split.images * 255).round().to(torch.uint8), split.labels)
    results = []
    for data in (as_bytes, Split(as_bytes.images.float() / 255, split.labels)):
        results.append(small_model())
        train(results[-1], data, ScaledTriplets(), SCHEDULE)
    assert_same(results[0].state_dict(), results[1].state_dict())


def test_validation_and_its_place_in_the_history():
    model, _, history = trained(validate=norm_of_weights, validate_every=20)
    assert [sorted(entry) for entry in history] == [["loss", "norm", "step"]]
    assert history[0]["norm"] == norm_of_weights_quietly(model)


@torch.no_grad()
def norm_of_weights_quietly(model):
    return norm_of_weights(model.eval())["norm"]


def test_how_often_one_looks_does_not_change_the_weights(tmp_path):
    plain, _, _ = trained()
    watched, _, _ = trained(
        checkpoint=tmp_path / "c", checkpoint_every=1, validate=norm_of_weights, validate_every=1, progress=True
    )
    assert_same(watched.state_dict(), plain.state_dict())


def test_the_seed_decides_the_batches():
    results = []
    for seed in (5, 6, 5):
        results.append(small_model())
        train(results[-1], some_split(), ScaledTriplets(), replace(SCHEDULE, seed=seed))
    assert_same(results[0].state_dict(), results[2].state_dict())
    assert not torch.equal(results[0][0].weight, results[1][0].weight)


def test_training_draws_nothing_from_the_global_generator():
    model = small_model()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    train(model, some_split(), ScaledTriplets(), SCHEDULE)
    assert torch.equal(torch.rand(3), expected)


def test_frozen_weights_stay():
    model = small_model()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, some_split(), ScaledTriplets(), SCHEDULE)
    assert torch.equal(model[0].weight, before) and model[0].weight.grad is None


def test_seeds_are_a_function_of_every_number():
    device = torch.device("cpu")
    keys = [(*key, last) for key in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)) for last in (0, 1, 2**31)]
    assert len({seeded(device, *key).initial_seed() for key in keys}) == len(keys)
    assert torch.equal(torch.rand(3, generator=seeded(device, 4, 2)), torch.rand(3, generator=seeded(device, 4, 2)))


@pytest.mark.parametrize("start", range(2 * EPOCH + 1))
@pytest.mark.parametrize("world", [1, 2])
def test_batches_go_on_where_they_stopped(start, world):
    labels = some_split().labels
    for rank in range(world):
        whole = islice(training._batches(labels, SCHEDULE, 0, rank, world), start, start + 7)
        later = islice(training._batches(labels, SCHEDULE, start, rank, world), 7)
        assert_same(list(later), list(whole))


# Checkpoints


@pytest.mark.parametrize("stop", range(1, 20))
def test_stopped_at_any_step_and_resumed_it_ends_the_same(stop, tmp_path):
    """Across ends of epochs (5), checkpoints (3) and history entries (7)."""
    expected, objective, history = trained(validate=norm_of_weights, validate_every=7)
    arguments = SCHEDULE, tmp_path / "checkpoint", 3, norm_of_weights, 7
    with pytest.raises(Interrupted):
        train(small_model(), some_split(), ScaledTriplets(last=stop), *arguments)
    model, resumed = small_model(), ScaledTriplets()
    again = train(model, some_split(), resumed, *arguments)
    assert resumed._calls == 20 - stop // 3 * 3
    assert_same(model.state_dict(), expected.state_dict())
    assert torch.equal(resumed.margin, objective.margin)
    assert_same(again, history)


@pytest.mark.parametrize("stop", [1, 8, 12, 19])
def test_a_falling_rate_stopped_and_resumed_goes_on_falling(stop, tmp_path):
    """Over the last 15 of 20 steps; a checkpoint is written after every third."""
    whole, objective, schedule = small_model(), ScaledTriplets(), replace(SCHEDULE, decay=0.75)
    history = train(whole, some_split(), objective, schedule)
    with pytest.raises(Interrupted):
        train(small_model(), some_split(), ScaledTriplets(last=stop), schedule, tmp_path / "checkpoint", 3)
    model, resumed = small_model(), ScaledTriplets()
    assert_same(train(model, some_split(), resumed, schedule, tmp_path / "checkpoint"), history)
    assert resumed._calls == 20 - stop // 3 * 3
    assert_same(model.state_dict(), whole.state_dict())
    assert torch.equal(resumed.margin, objective.margin)
    assert not torch.equal(trained()[0][0].weight, whole[0].weight)


def test_a_finished_training_is_not_trained_again(tmp_path):
    model, _, history = trained(checkpoint=tmp_path / "checkpoint")
    again, objective = small_model(), ScaledTriplets()
    assert_same(train(again, some_split(), objective, SCHEDULE, tmp_path / "checkpoint"), history)
    assert objective._calls == 0
    assert_same(again.state_dict(), model.state_dict())


def test_the_checkpoint_holds_no_code(tmp_path):
    """weights_only refuses everything that could run on loading."""
    trained(checkpoint=tmp_path / "sub" / "checkpoint", validate=norm_of_weights)
    state = loaded(tmp_path / "sub" / "checkpoint")
    assert state["step"] == 20 and state["identity"] == asdict(SCHEDULE) | {
        "images": len(some_split()),
        "data": training._digest(some_split()),
        "processes": 1,
        "objective": "ScaledTriplets()",
        "augment": "None",
    }
    assert os.listdir(tmp_path / "sub") == ["checkpoint"]


def test_a_checkpoint_of_another_objective_is_refused_by_name(tmp_path):
    trained(checkpoint=tmp_path / "checkpoint")
    with pytest.raises(
        ValueError, match=r"written with .*'ScaledTriplets\(\)'.*}, this training is .*TripletObjective\("
    ):
        train(small_model(), some_split(), TripletObjective(mining.random), SCHEDULE, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (TripletObjective(mining.semihard), "sampler=semihard"),
        (AntiCollapseTriplets(PGD(0.1, 0.02, 3), mining.random), "search=PGD.eps=0.1, step=0.02, steps=3"),
        (AntiCollapseTriplets(DrawnRadius(PGD(0.1, 0.01, 3))), "search=DrawnRadius.search=PGD.eps=0.1"),
        (HardnessManipulation(PGD(0.1, 0.01, 3), destination=Benign(mining.hard, 0.1)), "sampler=hard, boost=0.1"),
        (CollapseAwareTriplets(PGD(0.1, 0.01, 3), steps=1, sharpness=2.0), "sharpness=2.0, progress=Progress.steps=1"),
        (MetricLearningObjective(losses.MultiSimilarityLoss()), "loss=MultiSimilarityLoss"),
        (TripletObjective(partial(mining.random)), r"sampler=partial\(func=random"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_checkpoint_of_an_objective_with_other_settings_is_refused(other, said, tmp_path):
    """And of what it is written with nothing depends on the process, so that the next one finds the same."""
    kinds = {
        AntiCollapseTriplets: lambda: AntiCollapseTriplets(PGD(0.1, 0.01, 3)),
        HardnessManipulation: lambda: HardnessManipulation(PGD(0.1, 0.01, 3), destination=Benign(mining.hard)),
        CollapseAwareTriplets: lambda: CollapseAwareTriplets(PGD(0.1, 0.01, 3), steps=1),
        MetricLearningObjective: lambda: MetricLearningObjective(losses.ContrastiveLoss()),
    }
    own = kinds.get(type(other), lambda: TripletObjective(mining.random))()
    train(small_model(), some_split(), own, replace(SCHEDULE, steps=1), tmp_path / "checkpoint")
    assert " at 0x" not in loaded(tmp_path / "checkpoint")["identity"]["objective"]
    with pytest.raises(ValueError, match=f"written with .*this training is .*{said}"):
        train(small_model(), some_split(), other, replace(SCHEDULE, steps=1), tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "change",
    [
        *({"steps": 21}, {"pairs": 7}, {"lr": 1e-3}, {"weight_decay": 0.0}, {"seed": 1}, {"decay": 0.5}),
        *({"optimizer": "rmsprop"}, {"milestones": (0.5,)}),
    ],
)
def test_a_checkpoint_of_another_schedule_is_refused_by_name(change, tmp_path):
    file = tmp_path / "checkpoint"
    trained(checkpoint=file)
    before = file.read_bytes()
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{file} was written with .*this training is ") as error:
        train(small_model(), some_split(), ScaledTriplets(), replace(SCHEDULE, **change), file)
    written, _, this = str(error.value).partition("this training")
    assert f"'{name}': {getattr(SCHEDULE, name)!r}" in written and f"'{name}': {value!r}" in this
    assert file.read_bytes() == before


@pytest.mark.parametrize("change", ["images", "labels", "augment"])
def test_a_checkpoint_of_other_data_is_refused(change, tmp_path):
    split, augment = some_split(), None
    trained(checkpoint=tmp_path / "checkpoint")
    if change == "images":
        split = Split(1 - split.images, split.labels)
    elif change == "labels":
        split = Split(split.images, split.labels.roll(2))
    else:
        augment = partial(lambda images, generator, by: images + by, by=0)
    with pytest.raises(ValueError, match=r"written with .* this training is .*: move it"):
        train(small_model(), split, ScaledTriplets(), SCHEDULE, tmp_path / "checkpoint", augment=augment)


def test_an_objective_told_of_another_number_of_steps_or_trained_before_is_refused():
    """It would attack hardly, or at once at full size; and so would one in evaluation mode, which counts no steps."""
    schedule = replace(SCHEDULE, steps=4)
    with pytest.raises(ValueError, match="an objective of 400 steps in a training of 4: expected as many"):
        train(small_model(), some_split(), CollapseAwareTriplets(PGD(0.1, 0.01, 3), steps=400), schedule)
    objective = CollapseAwareTriplets(PGD(0.1, 0.01, 3), steps=4).eval()
    train(small_model(), some_split(), objective, schedule)
    assert objective.progress.done == 4
    with pytest.raises(ValueError, match="has made 4 steps, in a training of 0 so far: make a new one"):
        train(small_model(), some_split(), objective, schedule)


def test_the_same_objective_goes_on_from_its_own_checkpoint(tmp_path):
    """After an interruption in a notebook, where what it is told by must not have changed by its own training."""

    def stopped(model):
        raise Interrupted

    schedule = Schedule(12, 8)
    objective = CollapseAwareTriplets(PGD(0.1, 0.05, 3), steps=12, epochs=4)
    with pytest.raises(Interrupted):
        train(small_model(), some_split(), objective, schedule, tmp_path / "checkpoint", 4, stopped, 9)
    model = small_model()
    train(model, some_split(), objective, schedule, tmp_path / "checkpoint")
    undisturbed = small_model()
    train(undisturbed, some_split(), CollapseAwareTriplets(PGD(0.1, 0.05, 3), steps=12, epochs=4), schedule)
    assert_same(model.state_dict(), undisturbed.state_dict())


def cut_short(content):
    return content[: len(content) // 2]


def a_tail_missing(content):
    return content[:-40]


def replaced(content):
    return b"junk"


def emptied(content):
    return b""


def of_something_else(content):
    buffer = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [emptied, cut_short, a_tail_missing, replaced, of_something_else])
def test_a_damaged_checkpoint_is_named(damage, tmp_path):
    file = tmp_path / "checkpoint"
    trained(checkpoint=file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file} is no checkpoint, or a damaged one: delete it to start anew"):
        trained(checkpoint=file)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_for_bit_as_if_undisturbed(processes, tmp_path):
    """Before the first checkpoint, and some steps after one; a run that is not killed in time waits for it."""
    draw, whole, killed = random.Random(0), tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run_training(whole, 60)
    checkpoint = killed / "checkpoint"
    for checkpoints in (0, 1, 0, 2, 1, 3, 1):
        goal = steps_kept(checkpoint) + 3 * checkpoints
        process = processes.Process(target=run_training, args=(killed, 60, 3 * checkpoints + 4))
        process.start()
        wait_until(lambda goal=goal: steps_kept(checkpoint) >= goal, process.is_alive)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < steps_kept(checkpoint) < 60
    run_training(killed, 60)
    assert_same(loaded(killed / "end"), loaded(whole / "end"))


@pytest.mark.slow
def test_a_kill_during_a_write_leaves_the_old_file_or_the_new_one(processes, tmp_path):
    draw, file, size = random.Random(1), tmp_path / "checkpoint", 400_000
    kills = broken_off = 0
    while kills < 12 or not broken_off:  # until one of them has met a write
        process = processes.Process(target=write_forever, args=(file, size))
        file.unlink(missing_ok=True)
        process.start()
        written = 1 + kills % 3
        wait_until(lambda written=written: file.exists() and loaded(file)["number"] >= written, process.is_alive)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        state = loaded(file)
        assert state["payload"].shape == (size,) and (state["payload"] == state["number"]).all()
        broken_off += any(tmp_path.glob("*.tmp"))
        for leftover in tmp_path.glob("*.tmp"):
            leftover.unlink()


# What is refused


class Constant(nn.Module):
    """A loss of the given values, step after step."""

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def forward(self, model, images, labels, generator):
        return model(images).sum() * 0 + next(self.values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training(value, tmp_path):
    with pytest.raises(FloatingPointError, match=f"loss {value} at step 3: lower the learning rate, or check"):
        train(small_model(), some_split(), Constant([1.0, 1.0, 1.0, value]), SCHEDULE, tmp_path / "c", 2)
    assert loaded(tmp_path / "c")["step"] == 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("steps", 0), ("steps", 2.5), ("pairs", 0), ("lr", 0.0), ("lr", -1.0), ("lr", NAN)),
        *(("weight_decay", -1.0), ("weight_decay", NAN)),
    ],
)
def test_an_impossible_schedule_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: expected a (whole|finite) number (of at least|above) [01]"):
        replace(SCHEDULE, **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": None}, "pairs=None, batch=None: expected one of the two"),
        ({"batch": 8}, "pairs=8, batch=8: expected one of the two"),
        ({"pairs": None, "batch": 0}, "batch=0: expected a whole number of at least 1"),
        ({"pairs": None, "batch": 2.0}, "batch=2.0: expected a whole number"),
        ({"optimizer": "adamw"}, r"optimizer='adamw', momentum=0.0: expected one of \('adam', 'sgd', 'rmsprop'\)"),
        ({"optimizer": "rmsprop", "momentum": 0.9}, "momentum=0.9: expected one of .*, and no momentum of rmsprop"),
        ({"momentum": 1.5}, r"momentum=1.5: expected a share in \[0, 1\]"),
        ({"optimizer": "sgd", "momentum": -0.1}, r"momentum=-0.1: expected a share in \[0, 1\]"),
        ({"optimizer": "sgd", "momentum": 1.5}, "momentum=1.5"),
        ({"optimizer": "sgd", "momentum": NAN}, "momentum=nan"),
        ({"milestones": (0.5, 1.5)}, r"milestones=1.5: expected a share in \[0, 1\]"),
        ({"milestones": (NAN,)}, "milestones=nan"),
    ],
)
def test_an_impossible_batch_optimizer_or_milestone_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SCHEDULE, **changes)


@pytest.mark.parametrize("decay", [-0.1, 1.1, 20, float("nan"), float("inf")])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay={decay}: expected a share in \[0, 1\]"):
        replace(SCHEDULE, decay=decay)


def test_labels_of_several_classes_are_refused():
    split = Split(some_split().images, torch.ones(37, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"labels of shape \(37, 4\): SPC-2 batches need one int class"):
        train(small_model(), split, ScaledTriplets(), SCHEDULE)


# Several processes

WORKER = """
import os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from test_training import SCHEDULE, ScaledTriplets, some_split
from torch import nn
from robret_lib.training import process_group, train

def note(seen, own):
    seen += own

folder, ends, free_calls = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(int(os.environ["RANK"]))  # DDP spreads rank 0's weights
model, objective = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), ScaledTriplets(free_calls, folder / "signal")
objective.register_buffer("seen", torch.zeros(()))  # what a process has seen of its own, as running statistics are
with process_group("cpu") as rank:
    objective.register_forward_pre_hook(lambda module, _: note(module.seen, 1 + rank))
    history = train(model, some_split(), objective, SCHEDULE, folder / "checkpoint", 3, validate_every=7)
    state = {{"model": model.state_dict(), "objective": objective.state_dict(), "history": history}}
    torch.save(state, ends / f"end{{rank}}")
"""


def start_torchrun(folder, ends, free_calls=math.inf):
    """Two processes under torchrun that share the checkpoint of a folder."""
    ends.mkdir(parents=True)
    script = ends / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), root=str(ROOT)))
    options = ["--standalone", "--nproc-per-node=2", script, folder, ends, free_calls]
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(ends / "log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finished(process, ends):
    assert process.wait() == 0, (ends / "log").read_text()[-3000:]
    return [loaded(ends / f"end{rank}") for rank in (0, 1)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both ends of an undisturbed run with two processes left."""
    folder = tmp_path_factory.mktemp("torchrun")
    return finished(start_torchrun(folder, folder / "ends"), folder / "ends")


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_averaged_gradients(two_processes):
    first, second = two_processes
    assert_same(second["model"], first["model"])
    assert_same(second["objective"], first["objective"])

    torch.manual_seed(0)
    model, objective, split = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), ScaledTriplets(), some_split()
    weights = [*model.parameters(), *objective.parameters()]
    adam = torch.optim.Adam(weights, lr=1e-2, weight_decay=1e-3)
    shards = [training._batches(split.labels, SCHEDULE, 0, rank, 2) for rank in (0, 1)]
    losses = []
    for step in range(20):
        gradients = []
        for rank, shard in enumerate(shards):
            batch, generator = next(shard), seeded(torch.device("cpu"), 5, 1, step, rank)
            loss = objective(model, split.images[batch], split.labels[batch], generator)
            gradients.append(torch.autograd.grad(loss, weights))
            losses.append(loss.item())
        for weight, left, right in zip(weights, *gradients, strict=True):
            weight.grad = (left + right) / 2
        adam.step()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(first["model"][name], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(first["objective"]["margin"], objective.margin.detach(), rtol=0, atol=1e-6)
    for rank, state in enumerate(two_processes):
        mean = sum(losses[rank::2][:7]) / 7
        assert state["history"][0] == {"step": 7, "loss": pytest.approx(mean, abs=1e-6)}


@pytest.mark.slow
def test_torchrun_killed_and_started_again_ends_the_same(two_processes, tmp_path):
    """Kill -9 of torchrun itself; its workers are left to themselves, and go on while those of the next do."""
    checkpoint, signal_to_go_on = tmp_path / "checkpoint", tmp_path / "signal"
    try:
        first = start_torchrun(tmp_path, tmp_path / "killed", free_calls=4)
        wait_until(checkpoint.exists, lambda: first.poll() is None)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        second = start_torchrun(tmp_path, tmp_path / "resumed", free_calls=4)
        wait_until(lambda: steps_kept(checkpoint) == 6, lambda: second.poll() is None)
    finally:
        signal_to_go_on.touch()
    for state, expected in zip(finished(second, tmp_path / "resumed"), two_processes, strict=True):
        assert_same(state["model"], expected["model"])
        assert_same(state["objective"], expected["objective"])
    assert_same(loaded(tmp_path / "resumed" / "end0")["history"], two_processes[0]["history"])


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_resumed_on_a_gpu_goes_on_where_it_was(tmp_path):
    def run(name, steps):
        torch.manual_seed(1)
        layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        model, objective = nn.Sequential(*layers).cuda(), TripletObjective(mining.semihard, "E")
        history = train(model, some_split(), objective, replace(SCHEDULE, steps=steps), tmp_path / name)
        return model.state_dict(), history

    whole, history = run("whole", 6)
    state = torch.load(tmp_path / "whole", weights_only=True)
    assert all(weight.is_cuda for weight in whole.values()) and state["step"] == 6
    again, same_history = run("whole", 6)  # resumes at the end: nothing left to do
    assert same_history == history
    torch.testing.assert_close(again, whole)
    torch.testing.assert_close(run("anew", 6)[0], whole, rtol=1e-3, atol=1e-4)
