"""Hardness manipulation: the loss against a slow one for every destination, where the attack stops, published code."""

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses import Benign, Constant, Gradual, HardnessManipulation, MinMaxTriplets
from robret_lib.defenses.memory import LastLoss
from robret_lib.models import embed
from robret_lib.objectives import MARGIN
from robret_lib.training import Schedule, train
from tests.small_defenses import (
    CLOSE,
    INNER,
    MODES,
    a_batch,
    assert_resumes_bit_for_bit,
    exact_batch,
    exact_model,
    one,
    shown_to,
    slow_attack,
    slow_distance,
    slow_hardness,
    slow_triplet_loss,
)
from tests.small_retrieval import seeded, small_model, some_split, trained_model

DESTINATIONS = {
    "benign": Benign(),
    "boosted": Benign(mining.hard, boost=0.1),
    "constant": Constant(-0.1),
    "out of reach": Constant(10.0),
    "g_LGA": Gradual(),
    "g_2": Gradual(2),
    "g_1/2": Gradual(0.5),
}
LAST_LOSS = 0.12
FAR = PGD(0.4, 0.1, 5)


def after_a_loss(last_loss=LAST_LOSS, **changes):
    defense = HardnessManipulation(FAR, **changes)
    defense.last_loss.note(torch.tensor(last_loss, dtype=torch.float64))
    return defense


def all_distances(clean, distance):
    return torch.stack([torch.stack([slow_distance(u, v, distance) for v in clean]) for u in clean])


def slow_wanted(destination, clean, labels, distance, mode, generator):
    """H_D of each triplet, given clean embeddings ``[2P, D]``."""
    margin = MARGIN[distance]
    level = min(LAST_LOSS, margin) / margin
    if isinstance(destination, Constant):
        return [destination.hardness] * (len(clean) // 2)
    if isinstance(destination, Gradual):
        if mode == "reference":
            destination.sampler(all_distances(clean, distance), labels, margin, generator, mode)
        return [-margin * level**destination.power] * (len(clean) // 2)
    triplets = destination.sampler(all_distances(clean, distance), labels, margin, generator, mode)
    roles = zip(*(clean[role] for role in triplets), strict=True)
    return [slow_hardness(*triplet, distance) + destination.boost * (1 - level) for triplet in roles]


@pytest.mark.parametrize("invariance", [0.0, 0.5])
@pytest.mark.parametrize(("distance", "mode"), [("N", "fixed"), ("E", "fixed"), ("C", "fixed"), ("N", "reference")])
@pytest.mark.parametrize("name", DESTINATIONS)
def test_the_loss_is_the_slow_one(name, distance, mode, invariance):
    """The published code draws triplets for every destination that names a sampler, also where it needs none."""
    images, labels = exact_batch()
    model, generator, destination = exact_model(distance), seeded(3), DESTINATIONS[name]
    with torch.no_grad():
        clean = torch.stack([one(model, image) for image in images])
    source = mining.softhard(all_distances(clean, distance), labels, MARGIN[distance], generator, mode)
    wanted = slow_wanted(destination, clean, labels, distance, mode, generator)
    triplets = list(zip(*(images[role] for role in source), strict=True))

    def moved_to(hardness, triplet):
        def too_easy(step, *embeddings):
            return (hardness - slow_hardness(*embeddings, distance)).clamp(min=0) ** 2

        return slow_attack(model, triplet, too_easy, FAR)

    moved = [moved_to(*given) for given in zip(wanted, triplets, strict=True)]
    expected = slow_triplet_loss(model, *zip(*moved, strict=True), distance)
    too_far = []
    for (anchor, positive, _), (moved_anchor, *_) in zip(triplets, moved, strict=True):
        a, p, a_moved = (one(model, image) for image in (anchor, positive, moved_anchor))
        too_far.append((slow_distance(a, a_moved, distance) - slow_distance(a, p, distance)).clamp(min=0))
    defense = after_a_loss(destination=destination, invariance=invariance, distance=distance, mode=mode)
    found = defense(model, images, labels, seeded(3))
    torch.testing.assert_close(found, expected + invariance * torch.stack(too_far).mean(), **CLOSE)
    torch.testing.assert_close(defense.last_loss.value, expected.detach(), **CLOSE)  # without the second term
    assert name != "out of reach" or torch.stack(too_far).sum() > 0


@pytest.mark.parametrize(
    ("power", "last_loss", "expected"),
    [
        (1, 2.0, -0.2),
        (1, 0.15, -0.15),
        (1, 0.10, -0.10),
        (1, 0.0, 0.0),
        (2, 0.10, -0.05),
        (0.5, 0.10, -0.1414),
        (2, 2.0, -0.2),
        (0.5, 0.0, 0.0),
        (0.5, 0.2, -0.2),
        (0.5, 0.05, -0.1),
    ],
)
def test_the_gradual_destinations_have_the_published_values(power, last_loss, expected):
    images, labels = exact_batch()
    clean = embed(exact_model(), images)
    defense = after_a_loss(last_loss, destination=Gradual(power))
    assert defense.wanted_hardness(clean, labels, seeded()).item() == pytest.approx(expected, abs=5e-5)


def test_the_first_step_makes_for_minus_the_margin():
    images, labels = exact_batch()
    clean = embed(exact_model(), images)
    assert HardnessManipulation(INNER).wanted_hardness(clean, labels, seeded()) == -0.2


@pytest.mark.parametrize("steps", [1, 5])
def test_while_all_is_too_easy_it_is_the_attack_on_the_hardness_bit_for_bit(steps, searches):
    images, labels = exact_batch()
    for defense in (
        HardnessManipulation(PGD(0.1, 0.04, steps), mining.hard, Constant(10.0)),
        MinMaxTriplets(PGD(0.1, 0.04, steps), mining.hard),
    ):
        defense(exact_model(), images, labels, seeded(3))
    (given, as_hard), (same, largest) = searches
    assert torch.equal(given, same) and torch.equal(as_hard, largest)
    assert not torch.equal(given, as_hard)


def test_where_all_is_hard_enough_no_image_moves(searches):
    images, labels = exact_batch()
    HardnessManipulation(INNER, mining.hard, Constant(-2.1))(exact_model(), images, labels, seeded(3))
    ((given, moved),) = searches
    assert torch.equal(given, moved)


def test_each_triplet_stops_by_itself_as_soon_as_it_is_as_hard_as_wanted(searches):
    images, labels = exact_batch()
    model, wanted, stopped, steps = exact_model(), 0.1, [], 12
    for count in range(1, steps + 1):
        HardnessManipulation(PGD(0.3, 0.01, count), mining.hard, Constant(wanted))(model, images, labels, seeded(3))
    moved = [found.unflatten(0, (3, -1)) for _, found in searches]
    defense = HardnessManipulation(INNER)
    for now, later in zip(moved, moved[1:], strict=False):
        enough = defense.hardness(*(embed(model, role) for role in now)) >= wanted
        stays = (now == later).flatten(2).all(2).all(0)
        assert torch.equal(enough, stays)
        stopped.append(int(enough.sum()))
    assert stopped[0] < stopped[-1]


# The published code


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("destination", "same_name"),
    [
        (Benign(mining.softhard), True),
        (Gradual(sampler=mining.softhard), True),
        (Gradual(), False),
        (Benign(mining.hard), False),
        (Constant(0.0), False),
    ],
)
def test_equal_names_of_source_and_destination_attack_nothing_in_the_published_code(destination, same_name, mode):
    images, labels = exact_batch()
    model = exact_model()
    untouched = shown_to(model, HardnessManipulation(PGD(0, 1, 1), mode=mode), images, labels)
    shown = shown_to(model, HardnessManipulation(INNER, destination=destination, mode=mode), images, labels)
    assert torch.equal(shown, untouched) == (same_name and mode == "reference")


@pytest.mark.parametrize("mode", MODES)
def test_the_published_code_draws_triplets_for_a_gradual_destination_and_throws_them_away(mode):
    images, labels = a_batch()
    generators = seeded(3), seeded(3)
    HardnessManipulation(INNER, mode=mode)(small_model(), images, labels, generators[0])
    objective = MinMaxTriplets(INNER, mining.softhard, mode=mode)
    objective(small_model(), images, labels, generators[1])
    drawn_more = torch.rand(1, generator=generators[0]) != torch.rand(1, generator=generators[1])
    assert drawn_more == (mode == "reference")


@pytest.mark.parametrize("mode", MODES)
def test_an_anchor_is_its_own_positive_in_the_published_code_alone(mode, searches):
    """The two copies are attacked each for itself, and part."""
    images, labels = a_batch()
    for seed in range(5):
        HardnessManipulation(INNER, mode=mode)(small_model(), images, labels, seeded(seed))
    given, moved = (torch.stack(images).unflatten(1, (3, -1)).flatten(3) for images in zip(*searches, strict=True))
    same = (given[:, 0] == given[:, 1]).all(2)
    assert same.any() == (mode == "reference")
    assert (moved[:, 0] != moved[:, 1]).any(2)[same].all()


@pytest.mark.parametrize("distance", ["E", "C"])
def test_the_published_code_knows_unit_vectors_alone(distance):
    with pytest.raises(ValueError, match=f"distance='{distance}': the published code knows \"N\" alone"):
        HardnessManipulation(INNER, distance=distance, mode="reference")


@pytest.mark.parametrize("destination", [Benign(mining.distance), Gradual(sampler=mining.distance)])
def test_a_destination_that_does_not_know_the_distance_is_refused(destination):
    with pytest.raises(ValueError, match="the distance-weighted sampler knows the unit sphere only"):
        HardnessManipulation(INNER, destination=destination, distance="E")


def test_a_stopped_training_goes_on_with_the_loss_that_it_remembers(tmp_path):
    """That of a trained network under a small attack is below the margin, and a high power makes much of that."""

    def make():
        return HardnessManipulation(PGD(0.002, 0.001, 2), mining.random, Gradual(20.0))

    assert_resumes_bit_for_bit(make, tmp_path, make_model=trained_model)
    trained = []
    for forgets in (False, True):  # it would make a difference
        defense = make()
        trained.append(trained_model())
        for seed in range(2):
            train(trained[-1], some_split(80, seed=10), defense, Schedule(6, 8, seed=seed))
            assert 0 < defense.last_loss.value < MARGIN["N"]
            if forgets:
                defense.last_loss = LastLoss(2.0)
    assert not torch.equal(trained[0].backbone[0].weight, trained[1].backbone[0].weight)
