"""Robust recall: what it says is what the images it hands out do, and it is the worst of all that was tried."""

import functools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from robret_lib import attacks
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.metrics import recall_at_k
from robret_lib.models import embed
from robret_lib.scores import checkpoint as checkpoints
from robret_lib.scores import robust_recall
from robret_lib.scores.queries import Queries
from robret_lib.scores.robust_recall import STANDS, WRONG_BEFORE, RobustRecall
from robret_lib.scores.suite import SAMPLE, suite_of
from tests.planted_defenses import BatchCoupled, Detached, GradientKiller, Noisy, PartlyDetached, Quantized
from tests.small_retrieval import DEVICES, DISTANCES, NAMES, searched_in_itself, small_model, some_split, trained_model

ROOT = Path(__file__).parents[1]


def asked_from_outside():
    query, gallery = some_split(120, seed=60), some_split(300, seed=10)
    return RetrievalData("toy", some_split(40, 1), query, gallery, NAMES, Protocol("outside", "...", False, False))


def recall_of(model, images, data, positions):
    queries, gallery = embed(model, images), embed(model, data.gallery.images)
    own = positions if data.protocol.self_excluded else False
    return recall_at_k(queries, gallery, data.query.labels[positions], data.gallery.labels, (1,), own)[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("data", [searched_in_itself(), asked_from_outside()], ids=["itself", "outside"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_images_that_are_handed_out_give_the_recall_that_is_stated(distance, data, models, device):
    model = models[distance].to(device)
    result = robust_recall(model, data, eps=0.04, queries=100, effort="quick")
    originals, positions = data.query.images[:100], torch.arange(100)
    assert result.recall_at_1 == recall_of(model, result.images, data, positions)
    assert result.benign == recall_of(model, originals, data, positions)
    model.cpu()
    assert result.images.shape == originals.shape
    assert (result.images - originals).abs().max() <= 0.04 + 1e-6
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert result.recall_at_1 < result.benign - 10


def test_it_is_the_worst_of_the_suite(model):
    """Where an attack comes, it breaks what it breaks alone, of what those before it left."""
    data = searched_in_itself()
    result = robust_recall(model, data, eps=0.02, queries=100)
    asked, left = Queries(model, data, 100), torch.tensor([outcome != WRONG_BEFORE for outcome in result.outcomes])
    spent = 0
    for number, (name, attack, search, passes, sample, by_values) in enumerate(suite_of("standard", 0.02)):
        rows = left.nonzero()[:sample, 0]
        alone = asked.attacked(attack, search, torch.Generator().manual_seed(2**10 * number), rows)
        broken = rows[~asked.right(embed(model, alone.images), rows)]
        assert alone.passes == passes or (by_values and alone.passes < passes), name
        assert result.broken_by[name] == len(broken)
        assert {result.outcomes[row] for row in broken} <= {name}
        left[broken] = False
        spent += alone.passes * len(rows)
    assert torch.equal(result.standing, left) and 0 < left.sum() == result.recall_at_1
    assert result.passes == pytest.approx(spent / 100)
    assert sum(broken > 0 for broken in result.broken_by.values()) > 2
    assert sum(result.broken_by.values()) == pytest.approx(result.benign - result.recall_at_1)


def test_an_image_that_was_not_broken_is_the_original(model):
    data = searched_in_itself()
    result = robust_recall(model, data, eps=0.03, queries=100, effort="quick")
    kept = (result.images == data.query.images[:100]).flatten(1).all(1)
    assert kept.double().mean() == pytest.approx((result.recall_at_1 + 100 - result.benign) / 100)


def test_more_effort_and_a_surrogate_leave_no_more(model):
    data = searched_in_itself()
    quick, standard, high = (
        robust_recall(model, data, 0.02, queries=60, effort=e) for e in ("quick", "standard", "high")
    )
    assert high.recall_at_1 <= standard.recall_at_1 + 100 / 60
    assert standard.recall_at_1 <= quick.recall_at_1
    assert quick.passes < standard.passes < high.passes
    helped = robust_recall(model, data, 0.02, queries=60, effort="quick", surrogate=trained_model("E", steps=40))
    assert list(helped.broken_by) == [*quick.broken_by, "soft margin, 8 steps, transferred"]
    assert 0 <= quick.recall_at_1 - helped.recall_at_1 == pytest.approx(list(helped.broken_by.values())[-1])


def test_a_surrogate_embeds_the_gallery_once(model, models, monkeypatch):
    monkeypatch.setattr(checkpoints, "BLOCK", 20)
    seen = []
    hook = models["C"].register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    robust_recall(model, searched_in_itself(), 0.02, queries=60, effort="quick", surrogate=models["C"])
    hook.remove()
    assert seen.count(300) == 1


def test_the_worst_case_costs_what_the_effort_says():
    for effort, passes in {"quick": 8, "standard": 100, "high": 500}.items():
        assert sum(s.passes for s in suite_of(effort, 0.1) if s.sample is None) == pytest.approx(passes, rel=0.2)
    looks = {effort: [s.passes for s in suite_of(effort, 0.1) if s.sample] for effort in ("quick", "standard", "high")}
    assert looks == {"quick": [], "standard": [200], "high": [400]}


def test_the_batches_of_the_run_do_not_matter(model, monkeypatch):
    def outcome(size):
        whole = functools.partial(attacks.run, batch_size=size)
        with monkeypatch.context() as patched:
            patched.setattr("robret_lib.scores.queries.attacks.run", whole)
            return robust_recall(model, searched_in_itself(100), 0.03, queries=60)

    together, alone = outcome(60), outcome(7)
    assert together.outcomes == alone.outcomes and STANDS in alone.outcomes
    assert (together.images - alone.images).abs().max() < 1e-4


def test_another_seed_draws_other_starts(model):
    results = [robust_recall(model, searched_in_itself(100), 0.02, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(results[0].images, results[1].images)
    assert not torch.equal(results[0].images, results[2].images)


@pytest.mark.parametrize("standing", [0, 1, 30, 99, 100])
def test_the_score_has_an_error_and_an_interval(standing):
    outcomes = (STANDS,) * standing + ("a",) * (100 - standing)
    result = RobustRecall(standing, 100, {"a": 100 - standing}, outcomes, torch.rand(100, 1, 8, 8), 20, ())
    assert result.standard_error == pytest.approx(result.standing.double().std(unbiased=False).item() * 10)
    expected = binomtest(standing, 100).proportion_ci(method="wilson")
    assert result.interval == pytest.approx((100 * expected.low, 100 * expected.high), abs=0.01)


def test_a_result_reads_well_and_compares_by_identity():
    broken_by, images = {"a": 1.5, "b": 30.0, "c": 7.0, "d, 8 steps": 12.0}, torch.rand(200, 1, 8, 8)
    result = RobustRecall(19.5, 70, broken_by, (STANDS,) * 200, images, 20.25, ("black box: see there",))
    assert str(result).splitlines() == [
        "R@1 of 200 queries: 70.0 % before, 19.5 +- 2.8 % left; 20.2 passes a query",
        "broken by b: 30.0 %; d, 8 steps: 12.0 %; c: 7.0 %",
        "black box: see there",
    ]
    assert result == result and result != replace(result)


@pytest.mark.parametrize("norm, eps", [("linf", 0.05), ("l2", 0.5)])
def test_a_larger_radius_leaves_less_and_none_leaves_all(model, norm, eps):
    data = searched_in_itself()
    left = [robust_recall(model, data, part * eps, norm, queries=60, effort="quick") for part in (0, 0.3, 1)]
    assert left[0].recall_at_1 == left[0].benign and left[0].passes == 0
    assert left[0].recall_at_1 > left[1].recall_at_1 > left[2].recall_at_1


def test_queries_are_chosen_by_number_or_by_position(model):
    data = searched_in_itself(60)
    chosen = torch.tensor([50, 3, 7])
    result = robust_recall(model, data, 0.1, queries=chosen, effort="quick")
    assert result.images.shape[0] == 3
    assert (result.images - data.query.images[chosen]).abs().max() <= 0.1 + 1e-6
    assert len(robust_recall(model, data, 0.1, effort="quick").images) == 60


def test_bytes_and_several_labels(model):
    images = (255 * some_split(80, seed=10).images).round().to(torch.uint8)
    labels = torch.nn.functional.one_hot(some_split(80, seed=10).labels, 10).to(torch.uint8)
    labels[::4, 0] = 1
    split = Split(images, labels)
    data = RetrievalData("toy", split, split, split, NAMES, Protocol("itself", "...", True, False))
    result = robust_recall(model, data, 0.05, effort="quick")
    assert result.images.dtype == torch.float32
    assert result.recall_at_1 == recall_of(model, result.images, data, torch.arange(80)) < result.benign


# A crash costs one attack on one block


SCRIPT = """
import os, sys, time
from contextlib import contextmanager
from pathlib import Path
import torch
from robret_lib.scores import checkpoint as checkpoints
from robret_lib.scores import robust_recall
from tests.small_retrieval import searched_in_itself, trained_model

torch.set_num_threads(1)
checkpoints.BLOCK = 40
written_whole, written, parent = checkpoints.written_whole, [], os.getppid()

@contextmanager
def written_and_counted(path):
    with written_whole(path) as file:
        yield file
    written.append(path)
    while len(written) == int(sys.argv[2]) and os.getppid() == parent:  # two files an attack
        time.sleep(1)

checkpoints.written_whole = written_and_counted
checkpoint = Path(sys.argv[1])
robust_recall(trained_model(), searched_in_itself(), 0.04, queries=100, effort="quick", checkpoint=checkpoint)
"""


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "BLOCK", 40)
    checkpoint = tmp_path / "folder" / "robust.checkpoint"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        size = len(torch.load(checkpoint, weights_only=True)["done"]) if checkpoint.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(checkpoint), "2"], env=environment)
        while not checkpoint.exists() or len(torch.load(checkpoint, weights_only=True)["done"]) < size + 1:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    arguments = model, searched_in_itself(), 0.04
    resumed = robust_recall(*arguments, queries=100, effort="quick", checkpoint=checkpoint)
    whole = robust_recall(*arguments, queries=100, effort="quick")
    assert torch.equal(resumed.images, whole.images) and resumed.broken_by == whole.broken_by
    assert (resumed.recall_at_1, resumed.passes) == (whole.recall_at_1, pytest.approx(whole.passes))
    again = robust_recall(*arguments, queries=100, effort="quick", checkpoint=checkpoint)
    assert torch.equal(again.images, whole.images)


def test_a_checkpoint_of_something_else_is_refused(model, models, tmp_path):
    checkpoint, data = tmp_path / "c", searched_in_itself(40)
    robust_recall(model, data, 0.04, effort="quick", checkpoint=checkpoint)
    with pytest.raises(
        ValueError, match="was written with .*'eps': 0.04.*, this evaluation is .*'eps': 0.05.*: move it"
    ):
        robust_recall(model, data, 0.05, effort="quick", checkpoint=checkpoint)
    with pytest.raises(ValueError, match="was written with other weights of model.*: move it"):
        robust_recall(models["C"], data, 0.04, effort="quick", checkpoint=checkpoint)
    checkpoint.write_bytes(b"nothing of use")
    with pytest.raises(ValueError, match=f"{checkpoint} is no checkpoint, or a damaged one: delete it"):
        robust_recall(model, data, 0.04, effort="quick", checkpoint=checkpoint)


def test_a_checkpoint_of_other_data_or_another_surrogate_is_refused(model, models, tmp_path):
    """What is searched, by which labels, with self or without: each changes the result, and none the settings."""
    data, surrogate = searched_in_itself(40), models["C"]
    arguments = {"eps": 0.04, "effort": "quick", "surrogate": surrogate, "checkpoint": tmp_path / "c"}
    robust_recall(model, data, **arguments)
    split, other = data.query, some_split(40, seed=70)
    with_self = Protocol("with itself", "...", False, False)
    cases = {
        "images of queries": (Split(other.images, split.labels), split, with_self),
        "images of gallery": (Split(split.images, split.labels), Split(other.images, split.labels), with_self),
        "labels of gallery": (split, Split(split.images, other.labels), with_self),
        "labels of queries": (Split(split.images, other.labels), split, with_self),
        "positions": (split, split, with_self),
    }
    for name, (query, gallery, protocol) in cases.items():
        changed = RetrievalData("toy", data.train, query, gallery, NAMES, protocol)
        with pytest.raises(ValueError, match=f"was written with other .*{name}.*: move it"):
            robust_recall(model, changed, **arguments)
    with pytest.raises(ValueError, match="was written with other weights of surrogate 1, .*surrogate 1: move it"):
        robust_recall(model, data, **arguments | {"surrogate": models["E"]})
    (tmp_path / "c.images0").unlink()
    with pytest.raises(
        ValueError, match="c.images0 is no checkpoint, or a damaged one: delete it and .*c to start anew"
    ):
        robust_recall(model, data, **arguments)


def test_the_checkpoint_of_a_masked_model_is_none_of_the_repaired_one(model, tmp_path, recwarn):
    """They have the same weights and the same embeddings; only the gradient tells them apart."""
    arguments = searched_in_itself(40), 0.04, "linf", None, "quick"
    masked = robust_recall(GradientKiller(model, "zero"), *arguments, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="was written with other gradient of model: move it"):
        robust_recall(model, *arguments, checkpoint=tmp_path / "c")
    assert robust_recall(model, *arguments).recall_at_1 < masked.recall_at_1


def test_a_model_that_draws_random_numbers_goes_on_where_it_was(model, models, tmp_path, recwarn):
    arguments = searched_in_itself(100), 0.03, "linf", None, "quick"
    first = robust_recall(Noisy(model), *arguments, checkpoint=tmp_path / "c")
    again = robust_recall(Noisy(model), *arguments, checkpoint=tmp_path / "c")
    assert again.outcomes == first.outcomes and torch.equal(again.images, first.images)
    with pytest.raises(ValueError, match="was written with other weights of model: move it"):
        robust_recall(Noisy(models["E"]), *arguments, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="was written with other embeddings of model, gradient of model: move it"):
        robust_recall(model, *arguments, checkpoint=tmp_path / "c")


def test_a_collapsed_model_has_a_score():
    class Collapsed(nn.Module):
        distance = "N"

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 16)

        def forward(self, images):
            return nn.functional.normalize(0 * self.layer(images.flatten(1)) + 1, dim=1)

    result = robust_recall(Collapsed(), searched_in_itself(60), 0.1, effort="quick")
    assert result.recall_at_1 == result.benign < 50 and set(result.broken_by.values()) == {0.0}


def test_a_model_that_draws_random_numbers_has_a_score(model):
    """What was broken in one draw does not stand again because another draw is kind."""
    torch.manual_seed(0)
    result = robust_recall(Noisy(model), searched_in_itself(100), 0.04, effort="quick")
    assert 0 < result.recall_at_1 == result.standing.sum() < result.benign - 20
    assert result.recall_at_1 == pytest.approx(result.benign - sum(result.broken_by.values()))


# What makes it doubtful


def test_a_sound_evaluation_warns_of_nothing(model, recwarn):
    for effort, eps in (("quick", 0.02), ("standard", 0.02), ("standard", 0.5)):
        result = robust_recall(model, searched_in_itself(), eps, queries=100, effort=effort)
        assert result.warnings == ()
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize(
    "defense, suspicious",
    [
        (Quantized, {"gradient to the pixels", "black box"}),
        (Detached, {"gradient is the slope", "black box"}),
        (lambda network: GradientKiller(network, "random"), {"gradient is the slope", "black box"}),
        (Noisy, {"repeatable embeddings"}),
        (BatchCoupled, {"independent of the batch"}),
    ],
    ids=["quantized", "detached", "random gradient", "noisy", "coupled"],
)
def test_a_planted_defense_is_told_of(defense, suspicious, model):
    torch.manual_seed(0)
    with pytest.warns(UserWarning) as warned:
        result = robust_recall(defense(model), searched_in_itself(), eps=0.1, queries=100)
    assert {str(warning.message) for warning in warned} == set(result.warnings)
    assert suspicious <= {message.partition(":")[0] for message in result.warnings}


def test_a_gallery_in_another_order_is_told_of(model):
    data = asked_from_outside()
    gallery = Split(data.gallery.images.flip(0), data.gallery.labels)
    with pytest.warns(UserWarning, match="benign recall: .* of 120 first answers are right"):
        robust_recall(model, replace(data, gallery=gallery), 0.03, effort="quick")


def test_a_search_that_fails_where_none_can_is_told_of(model):
    """At 1/2 every image can be turned gray; a few steps along no gradient do not find out."""
    with pytest.warns(UserWarning, match="unlimited radius: "):
        result = robust_recall(GradientKiller(model, "zero"), searched_in_itself(), 0.5, queries=50, effort="quick")
    assert result.recall_at_1 == result.benign


@pytest.fixture(scope="module")
def partly_detached():
    """A tenth of the embedding is an untrained network's, and so is all of the gradient."""
    return PartlyDetached(trained_model(), small_model(seed=5), share=0.1)


@pytest.mark.parametrize("norm, effort", [("linf", "standard"), ("linf", "quick"), ("l2", "standard")])
def test_masked_gradients_are_looked_for_on_a_sample(norm, effort, partly_detached, monkeypatch, recwarn):
    monkeypatch.setattr(checkpoints, "BLOCK", 100)
    result = robust_recall(partly_detached, searched_in_itself(), 0.03 if norm == "linf" else 0.2, norm, 200, effort)
    told = any(message.startswith("black box: breaks ") for message in result.warnings)
    assert told is (norm == "linf" and effort != "quick")
    found = [name for name in result.broken_by if "by values" in name]
    assert len(found) == told
    if told:
        attacked = 2 * SAMPLE
        assert any(f" of {attacked} queries on which all gradients failed" in m for m in result.warnings)
        assert 10 < 2 * result.broken_by[found[0]] <= attacked
        broken_late = [row for row in range(200) if result.outcomes[row] == found[0]]
        standing_before = [row for row in range(200) if result.outcomes[row] in (found[0], STANDS)]
        for block in (0, 100):  # the first of each block
            first = [row for row in standing_before if block <= row < block + 100][:SAMPLE]
            assert {row for row in broken_late if block <= row < block + 100} <= set(first)


def test_a_surrogate_tells_of_masked_gradients_too(partly_detached, model, recwarn):
    arguments = partly_detached, searched_in_itself(), 0.2, "l2", 100
    told = [robust_recall(*arguments, e, surrogate=model).warnings for e in ("standard", "quick")]
    assert [any(message.startswith("black box: ") for message in messages) for messages in told] == [True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_data_may_lie_on_the_gpu(models):
    model = models["N"].cuda()
    split = some_split(40, seed=10)
    there = Split(split.images.cuda(), split.labels.cuda())
    data = RetrievalData("toy", there, there, there, NAMES, Protocol("itself", "...", True, False))
    result = robust_recall(model, data, 0.1, effort="quick", surrogate=model)
    with pytest.raises(ValueError, match="the surrogate is on cpu, the gallery on cuda:0: move one of them"):
        robust_recall(model, data, 0.5, effort="quick", surrogate=models["C"])
    model.cpu()
    assert result.recall_at_1 < result.benign and not result.images.is_cuda


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"eps": 8}, "eps=8: expected pixel units, black is 0 and white is 1; 8/255 is meant?"),
        ({"eps": -0.1}, "eps=-0.1: expected a finite length"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"effort": "great"}, r"effort='great': expected one of \('quick', 'standard', 'high'\)"),
        ({"queries": 0}, "queries=0: expected 1 to 40, positions below 40, int64"),
        ({"queries": 41}, "queries=41: expected 1 to 40"),
        ({"queries": torch.tensor([3, 40])}, "queries with 2 positions: expected 1 to 40, positions below 40"),
        ({"queries": torch.tensor([], dtype=torch.int64)}, "queries with 0 positions: .* at least one"),
        ({"queries": [1, 2]}, r"queries=\[1, 2\]: expected 1 to 40, positions below 40, int64 \[n\], or None"),
        ({"queries": True}, "queries=True: expected 1 to 40"),
        ({"queries": 2.5}, "queries=2.5: expected 1 to 40"),
        ({"queries": torch.ones(3, dtype=torch.bool)}, r"queries=tensor\(\[True.*expected 1 to 40"),
    ],
)
def test_impossible_calls_are_refused(arguments, message, model):
    with pytest.raises(ValueError, match=message):
        robust_recall(model, searched_in_itself(40), **({"eps": 0.1} | arguments))
