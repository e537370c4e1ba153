"""What was measured of defended hash networks: what all three trainings agree on, and one at full scale."""

import pytest
import torch

from robret_lib import runs

SEEDS = (0, 1, 2)
DEFENSES = ("ATRDH", "CgAT", "SAAT")
WITHOUT = ["own code", "HAG", "SDHA", "CgA", "CgA, mean", "SAAT", "soft precision"]
WITH = ["SDHA, targeted", "P2P", "DHTA", "THA", "SAAT, targeted", "SAAT, targeted, symmetric", "PTA"]
LEVELS = (4, 8, 16, 28)
ROBUST_WHERE_IT_MATTERS = [f"robust MAP at {level}/255" for level in LEVELS[1:]]


@pytest.fixture(scope="module")
def trainings():
    """By seed, of each label the network with 32 bits."""
    found = {}
    for seed in SEEDS:
        judged = runs.judged_codes("fashion-mnist", "quick", eps=28 / 255, seed=seed)
        found[seed] = {network.label: network for network in runs.of_bits(judged, 32)}
    return found


def values(trainings, label, metric):
    return [networks[label].metrics[metric]["value"] for networks in trainings.values()]


@pytest.mark.parametrize(
    "attack", [*(name for name in WITHOUT if name != "HAG"), *(f"{v}, any search" for v in WITHOUT)]
)
@pytest.mark.parametrize("defense", DEFENSES)
def test_the_worst_training_with_a_defense_keeps_more_than_the_best_without(trainings, defense, attack):
    """By its own search HAG, cut to 50 steps of 2,000, leaves all as they were."""
    assert min(values(trainings, defense, attack)) > max(values(trainings, "no defense", attack))


@pytest.mark.parametrize("attack", [*(f"{name}, any search" for name in WITH), "ProS-GAN in the ball"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_attacks_with_a_target_reach_less_of_the_worst_than_of_the_best_without(trainings, defense, attack):
    assert max(values(trainings, defense, attack)) < min(values(trainings, "no defense", attack))


@pytest.mark.parametrize("defense", DEFENSES)
def test_robust_map_is_above_that_of_no_defense_from_the_radius_of_training_on(trainings, defense):
    for level in (16, 28):
        metric = f"robust MAP at {level}/255"
        assert min(values(trainings, defense, metric)) > max(values(trainings, "no defense", metric))


def test_beyond_the_radius_of_training_centers_guide_better_than_targets(trainings):
    metric = "robust MAP at 28/255"
    assert min(values(trainings, "CgAT", metric)) > max(values(trainings, "ATRDH", metric))


def test_a_mainstay_code_of_single_labels_is_a_center_code(trainings):
    """So SAAT is CgAT but for a term of weight 1e-4, and for what that does to a training."""
    for level in LEVELS:
        pairs = zip(*(values(trainings, name, f"robust MAP at {level}/255") for name in ("SAAT", "CgAT")), strict=True)
        assert all(abs(one - other) < 4 for one, other in pairs)


@pytest.mark.parametrize("label", ["no defense", *DEFENSES, "pairs", "prototypes"])
def test_robust_map_falls_with_the_radius_and_none_leaves_less_than_it(trainings, label):
    """Of the attacks without a target all but soft precision are weaker on average; none is much stronger."""
    for seed in SEEDS:
        network = trainings[seed][label]
        left = [network.metrics[name]["value"] for name in ("benign", *(f"robust MAP at {v}/255" for v in LEVELS))]
        assert left == sorted(left, reverse=True)
        published = [network.metrics[name]["value"] for name in WITHOUT if name in network.metrics]
        assert all(value > left[-1] - 1 for value in published)


@pytest.fixture(scope="module")
def at_full_scale():
    """By label, the network of Fashion-MNIST with 32 bits; attacks are at 8/255."""
    return {network.label: network for network in runs.of_bits(runs.judged_codes("fashion-mnist"), 32)}


def of_queries(networks, label, metric):
    return torch.tensor(networks[label].details["of_query"][metric], dtype=torch.float64)


def surely_more(one, other):
    """Query by query, by three standard errors."""
    apart = one - other
    return apart.mean() > 3 * apart.std() / len(apart) ** 0.5


@pytest.mark.parametrize("attack", [*(f"{name}, any search" for name in WITHOUT), *ROBUST_WHERE_IT_MATTERS])
@pytest.mark.parametrize("defense", DEFENSES)
def test_at_full_scale_each_defense_keeps_more_under_every_attack(at_full_scale, defense, attack):
    kept, left = (of_queries(at_full_scale, label, attack) for label in (defense, "no defense"))
    assert surely_more(kept, left)


@pytest.mark.parametrize("attack", [f"{name}, any search" for name in WITH])
@pytest.mark.parametrize("defense", DEFENSES)
def test_at_full_scale_attacks_with_a_target_reach_less(at_full_scale, defense, attack):
    reached, before = (of_queries(at_full_scale, label, attack) for label in (defense, "no defense"))
    assert surely_more(before, reached)


def test_at_full_scale_centers_guide_better_than_targets_from_the_radius_of_training_on(at_full_scale):
    for level in (16, 28):
        kept, left = (of_queries(at_full_scale, name, f"robust MAP at {level}/255") for name in ("CgAT", "ATRDH"))
        assert surely_more(kept, left)


@pytest.mark.parametrize("bits", [16, 48, 64])
def test_center_codes_of_all_lengths_keep_about_as_much(at_full_scale, bits):
    of_length = runs.of_bits(runs.judged_codes("fashion-mnist"), bits)
    (other,) = (network for network in of_length if network.label == "CgAT")
    for level in LEVELS:
        metric = f"robust MAP at {level}/255"
        assert abs(other.metrics[metric]["value"] - at_full_scale["CgAT"].metrics[metric]["value"]) < 4
