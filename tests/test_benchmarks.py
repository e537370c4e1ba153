"""Committed tables of benchmarks are those of their scripts, as far as no machine changes them."""

import time
from pathlib import Path

import pytest
import torch

from robret_lib.hamming import average_precisions
from tests.benchmarks import decoupling, defense_cost, hamming_cost, hash_defense_cost, neighborhood, sharpness
from tests.small_defenses import a_batch
from tests.small_retrieval import seeded, small_model

TABLES = Path(__file__).parent / "benchmarks"

of_every_script = pytest.mark.parametrize("script", [decoupling, neighborhood], ids=["decoupling", "neighborhood"])


def test_costs_of_defenses_are_told_as_they_are_measured_now():
    lines = (TABLES / "defense_cost.md").read_text().splitlines()
    assert lines[: len(defense_cost.head())] == defense_cost.head()
    told = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
    assert told == [[f"| {setting.backbone}", name] for setting in defense_cost.SETTINGS for name in setting.timed]


def test_costs_of_defenses_of_hash_codes_are_told_as_they_are_measured_now():
    lines = (TABLES / "hash_defense_cost.md").read_text().splitlines()
    assert lines[: len(hash_defense_cost.head())] == hash_defense_cost.head()
    told = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
    settings = hash_defense_cost.SETTINGS
    assert told == [[f"| {setting.backbone}", name] for setting in settings for name in hash_defense_cost.DEFENSES]


@pytest.mark.parametrize("name", hash_defense_cost.DEFENSES)
def test_a_step_of_every_defense_of_hash_codes_is_measured(name):
    costs = hash_defense_cost.World.of(hash_defense_cost.SETTINGS[0], known=100).costs(name)
    assert costs["step"] > hash_defense_cost.INNER.steps * 0.3 and 0 < costs["guides"] + costs["known"] < 100


def test_by_the_kept_table_center_codes_cost_less_than_two_percent_of_a_step():
    """Its lines say where a limit was exceeded."""
    lines = (TABLES / "hash_defense_cost.md").read_text().splitlines()
    limits = [line.split(" | ")[5] for line in lines if line.split(" | ")[1:2] in (["CgAT"], ["SAAT"])]
    assert limits == ["2"] * 2 * len(hash_defense_cost.SETTINGS)


def test_a_stopwatch_counts_what_is_called_inside_once():
    watch = hash_defense_cost.Stopwatch()
    inner = watch.over(lambda: sum(range(100_000)))
    outer = watch.over(lambda: inner() + inner())
    begun = time.process_time()
    assert outer() == 2 * sum(range(100_000))
    assert 0 < watch.seconds <= time.process_time() - begun


def test_costs_of_map_are_told_as_they_are_measured_now():
    lines = (TABLES / "hamming_cost.md").read_text().splitlines()
    assert lines[: len(hamming_cost.head())] == hamming_cost.head()
    told = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][2:]
    assert told == list(hamming_cost.NAMES)


def test_the_sharpness_is_told_of_what_the_library_has_now():
    """Head and columns, which mark the span and the temperature that it has."""
    lines = (TABLES / "sharpness.md").read_text().splitlines()
    assert lines[: len(sharpness.head())] == sharpness.head()
    told = [line.strip("| ").split(" | ")[2:] for line in lines if line.startswith("| network")]
    assert told == [sharpness.columns(choice) for choice in sharpness.CHOICES.values()]
    assert all(choice.chosen in choice.tried for choice in sharpness.CHOICES.values())


def test_of_map_the_same_is_measured_in_all_ways():
    """What is published, whose sort leaves the order of ties open, lies between the best and the worst."""
    world = hamming_cost.world_of(hamming_cost.Size(6000, 32), queries=5)
    found = {name: way(world) for name, way in hamming_cost.WAYS.items()}
    best, worst = (average_precisions(*world, ties=ties) for ties in ("best", "worst"))
    assert (found['ours, ties="stable"'] - found["published, stable sort"]).abs().max() < 1e-9
    assert ((worst <= found["published"]) & (found["published"] <= best)).all()
    assert hamming_cost.apart(hamming_cost.Size(500, 16)) < 1e-9


@of_every_script
def test_ablations_are_told_as_they_are_measured_now(script):
    ablations = script.ABLATIONS
    lines = Path(script.__file__).with_suffix(".md").read_text().splitlines()
    assert lines[: len(ablations.head())] == ablations.head()
    told = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
    assert told == [[f"| {name}", str(row.steps)] for name, row in ablations.rows.items()]


@of_every_script
def test_every_row_of_an_ablation_can_be_trained(script):
    """Two steps before the middle and two at it, where all that grows has begun; and no two rows are the same."""
    losses = {}
    for name, row in script.ROWS.items():
        objective, model, steps = row.objective(row.steps), small_model(), []
        for done in (3 * row.steps // 8, row.steps // 2):
            objective.progress.done.fill_(done)
            steps += [objective(model, *a_batch(), seeded(3)) for _ in range(2)]
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(sum(steps), list(model.parameters())))
        losses[name] = *(loss.item() for loss in steps), row.decay
    assert len(set(losses.values())) == len(losses), losses
