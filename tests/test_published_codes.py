"""The published attacks on codes, each with its own search: what was published of them, and that all of them run."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robret_lib import attacks, models, runs
from robret_lib.attacks import AutoPGD, Gallery
from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision
from robret_lib.attacks.relevant_codes import RelevantCodes, TowardsRelevantCodes
from robret_lib.attacks.search import Descent
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.attacks.targeted_codes import Collision, PointToSet, Prototype, TowardsCenter, TowardsPrecision
from robret_lib.scores.published_codes import AttackOnCodes, with_target, without_target
from tests.small_codes import BITS, seeded, small_world

WITHOUT = {
    "own code": (OwnCode, 100),
    "HAG": (HammingAdversary, 2000),
    "HAG, ported": (HammingAdversary, 2000),
    "SDHA": (RelevantCodes, 1500),
    "CgA": (CenterCode, 100),
    "CgA, mean": (CenterCode, 100),
    "SAAT": (CenterCode, 100),
    "soft precision": (Precision, 20),
}
WITH = {
    "SDHA, targeted": (TowardsRelevantCodes, 1500),
    "P2P": (PointToSet, 2000),
    "P2P, ported": (PointToSet, 2000),
    "DHTA": (PointToSet, 2000),
    "DHTA, ported": (PointToSet, 2000),
    "SAAT, targeted": (TowardsCenter, 100),
    "SAAT, targeted, symmetric": (TowardsCenter, 100),
    "PTA": (TowardsPrecision, 20),
    "collision": (Collision, 100),
    "collision, mean": (Collision, 100),
    "THA": (Prototype, 100),
}
SINCE_ONE = ("CgA, mean", "soft precision", "PTA", "collision", "collision, mean", "THA")
"""Those published without a rising alpha, or by nobody."""

MODEL, IMAGES, LABELS, GALLERY = small_world()
WANTED = draw_labels(LABELS, GALLERY.labels, seeded())
PROTOTYPES = nn.Linear(4, BITS)
DESCENDING = ("HAG", "HAG, ported", "SDHA", "SDHA, targeted", "P2P", "DHTA")
"""Those published with another search than signed steps."""

names = pytest.mark.parametrize("name", [*WITHOUT, *WITH])


def all_of_them(**changes) -> dict[str, AttackOnCodes]:
    return without_target(**changes) | with_target(WANTED, BITS, **changes, prototypes=PROTOTYPES)


def test_they_come_by_name_each_with_its_loss_and_as_many_steps_as_published():
    """Of THA only where there are prototypes."""
    for family, published in ((without_target(), WITHOUT), (with_target(WANTED, BITS, prototypes=PROTOTYPES), WITH)):
        assert {name: (type(pair.attack), pair.steps) for name, pair in family.items()} == published
    assert [*with_target(WANTED, BITS)] == [name for name in WITH if name != "THA"]


@pytest.mark.parametrize("most", [1, 50, 1500, 1900])
def test_a_longer_search_is_cut_and_a_shorter_one_is_not(most):
    for name, pair in all_of_them(most_steps=most).items():
        assert pair.steps == min(most, (WITHOUT | WITH)[name][1]), name


@pytest.mark.parametrize("family", [without_target, lambda **how: with_target(WANTED, BITS, **how)])
def test_no_steps_are_refused(family):
    with pytest.raises(ValueError, match="most_steps=0: expected a whole number of at least 1"):
        family(most_steps=0)


def test_the_radius_is_that_of_all_and_signed_steps_are_an_eighth_of_it():
    """Of PTA a twentieth."""
    for eps in (8 / 255, 0.2):
        for name, pair in all_of_them(eps=eps).items():
            assert pair.search.eps == pair.searched_by().search.eps == eps, name
            assert isinstance(pair.search, Descent) == (name in DESCENDING), name
            if name not in DESCENDING:
                assert pair.search.step == pytest.approx(eps / (20 if name == "PTA" else 8)), name
    assert all_of_them()["CgA"].search.step == pytest.approx(1 / 255)


def test_the_soft_ranks_of_pta_are_a_tenth_of_a_bit():
    """A similarity changes by 2 / K with a bit."""
    assert with_target(WANTED, 64)["PTA"].attack.temperature == pytest.approx(0.1 * 2 / 64)


def test_two_searches_that_are_published_of_one_loss_share_it():
    family = all_of_them()
    for name in ("HAG", "P2P", "DHTA"):
        assert family[name].attack is family[f"{name}, ported"].attack


def test_hag_has_two_rates_and_sdha_keeps_near_the_image():
    """The authors' is for pixels of 0 to 255, the port's for the mean of 128 images: some 500 times as much."""
    family = without_target()
    authors, port, sdha = (family[name].search for name in ("HAG", "HAG, ported", "SDHA"))
    assert (authors.rule, authors.rate, authors.momentum) == ("sgd", pytest.approx(100 / 255**2), 0)
    assert (port.rule, port.rate, port.momentum) == ("sgd", pytest.approx(100 / 128), 0.9)
    assert 500 < port.rate / authors.rate < 510
    assert (sdha.rule, sdha.rate, sdha.fidelity) == ("adam", 0.01, 1.0)
    assert authors.fidelity == port.fidelity == 0 and authors.stops and not port.stops
    assert all_of_them()["SDHA, targeted"].search == sdha


def test_the_steps_of_dhta_have_one_length():
    for name in ("P2P", "DHTA"):
        search = all_of_them()[name].search
        assert (search.rule, search.rate, search.steps) == ("unit", 0.226, 2000)
    assert Descent.dhta().eps == pytest.approx(1.84 / 255, abs=1e-4)


def test_who_starts_anywhere_in_the_ball_is_saat():
    """Of the others no published code begins with noise."""
    found = {name for name, pair in all_of_them().items() if getattr(pair.search, "random_start", False)}
    assert found == {"SAAT", "SAAT, targeted", "SAAT, targeted, symmetric"}


def test_what_the_losses_are():
    family = all_of_them()
    assert {name for name, pair in family.items() if pair.attack.sharpness == "one"} == set(SINCE_ONE)
    assert {name for name, pair in family.items() if pair.attack.sharpness == "rising"} == set(family) - set(SINCE_ONE)
    cga, saat = (family[name].attack for name in ("CgA", "SAAT"))
    assert (cga.weights, saat.weights) == ("binary", "cosine") and cga.masked and saat.masked
    assert (family["P2P"].attack.items, family["DHTA"].attack.items) == (1, 9)
    losses = [family[f"SAAT, targeted{which}"].attack.loss for which in ("", ", symmetric")]
    assert losses == ["published", "symmetric"]
    assert family["THA"].attack.network is PROTOTYPES


def test_what_is_known_and_how_deep_reaches_every_attack_that_looks_at_it():
    known = Gallery(GALLERY.embeddings[:20], "H", GALLERY.labels[:20])
    looking = {"SDHA", "SDHA, targeted", "CgA", "CgA, mean", "SAAT", "SAAT, targeted", "SAAT, targeted, symmetric"}
    for name, pair in all_of_them(known=known, top_k=7).items():
        assert pair.attack.top_k == 7
        assert hasattr(pair.attack, "known") == (name in looking)
        assert getattr(pair.attack, "known", known) is known
        assert getattr(pair.attack, "wanted", WANTED) is WANTED


@names
@pytest.mark.parametrize("sharpness", ["one", "rising", "relative"])
def test_another_search_keeps_the_loss_and_the_number_of_steps(name, sharpness):
    pair = all_of_them(eps=0.1, most_steps=60)[name]
    other = pair.searched_by(sharpness)
    assert other.search == AutoPGD(0.1, pair.steps) and other.steps == pair.steps
    assert other.attack.sharpness == sharpness
    for field, value in vars(pair.attack).items():
        assert field == "sharpness" or getattr(other.attack, field) is value, field
    assert type(other.attack) is type(pair.attack)


@names
def test_each_of_them_runs_and_keeps_to_the_ball(name):
    """With its own search and with ours; it moves, and the network is left as it was."""
    torch.manual_seed(0)
    pair, eps = all_of_them(eps=0.1, most_steps=12)[name], 0.1
    before = {key: value.clone() for key, value in MODEL.state_dict().items()}
    for each in (pair, pair.searched_by("one"), pair.searched_by("rising")):
        found = attacks.run(each.attack, MODEL, IMAGES, GALLERY, each.search, labels=LABELS, generator=seeded())
        change = found.images - IMAGES
        assert change.abs().max() <= eps + 1e-6 and found.images.min() >= 0 and found.images.max() <= 1
        assert change.flatten(1).any(1).all()
        assert {"average_precision", "flipped", "bound"} <= set(found.measured)
        assert all(values.isfinite().all() for values in found.measured.values())
    assert all(torch.equal(value, before[key]) for key, value in MODEL.state_dict().items())
    assert all(weight.requires_grad for weight in MODEL.parameters())


def test_the_rate_of_the_authors_leaves_an_image_nearly_where_it_is_and_that_of_the_port_does_not():
    """A loss with small slopes is followed by small steps: one rate is made for pixels of 0 to 255, and 2,000 steps."""
    family, moved = without_target(eps=0.1, most_steps=12), {}
    for name in ("HAG", "HAG, ported"):
        found = attacks.run(family[name].attack, MODEL, IMAGES, GALLERY, family[name].search, labels=LABELS)
        moved[name] = (found.images - IMAGES).abs().mean().item()
    assert 20 * moved["HAG"] < moved["HAG, ported"]


def test_the_pull_of_sdha_towards_the_image_is_that_of_the_mean_squared_change():
    """Where nothing else pulls, it goes back all the way."""
    search = replace(without_target(eps=0.1)["SDHA"].search, rule="sgd", rate=1.0, steps=1)
    assert isinstance(search, Descent)
    change = torch.full((2, 3, 4, 4), 0.05)
    pull = search._direction(torch.zeros_like(change), change)
    assert torch.allclose(pull, 2 * change / 48)


def test_prototypes_are_asked_for_their_codes_and_not_trained():
    before = PROTOTYPES.weight.detach().clone()
    pair = all_of_them(most_steps=3)["THA"]
    found = attacks.run(pair.attack, MODEL, IMAGES, GALLERY, pair.search, labels=LABELS)
    assert torch.equal(PROTOTYPES.weight, before) and PROTOTYPES.weight.grad is None
    benign = attacks.attack.Benign(GALLERY, models.embed(MODEL, IMAGES), labels=LABELS)
    assert torch.equal(pair.attack.bound(benign, found.targets), PROTOTYPES(WANTED.float()).sign().to(torch.int8))


def test_the_printed_table_of_saat_is_whole_and_best_is_what_it_has_in_bold():
    """By this library's names; ProS-GAN is ahead of SAAT twice."""
    printed = {row["metric"]: row["value"] for row in runs.expected("07_saat")["rows"]}
    settings = [f"{name}, {bits} bits" for name in ("FLICKR-25K", "NUS-WIDE", "MS-COCO") for bits in (16, 32, 48, 64)]
    free, aimed = ("benign", "HAG", "SDHA", "SAAT"), ("P2P", "DHTA", "ProS-GAN", "THA", "SAAT, targeted")
    assert {*free, *aimed} - {"benign", "ProS-GAN"} <= WITHOUT.keys() | WITH.keys()
    assert list(printed) == [f"{name} ({setting})" for name in free + aimed for setting in settings]
    for setting in settings:
        left, reached = ({printed[f"{name} ({setting})"]: name for name in names} for names in (free, aimed))
        ahead = "ProS-GAN" if setting in ("NUS-WIDE, 16 bits", "NUS-WIDE, 32 bits") else "SAAT, targeted"
        assert (left[min(left)], reached[max(reached)]) == ("SAAT", ahead), setting


SETS, LENGTHS = ("FLICKR-25K", "NUS-WIDE", "MS-COCO"), (16, 32, 48, 64)


def printed_of_defenses():
    return {row["metric"]: row["value"] for row in runs.expected("12_saat")["rows"]}


def test_the_printed_table_of_defended_networks_is_whole_and_an_attack_leaves_less_than_there_was():
    """By the names of the table of attacks, each behind that of the defense; SAAT leaves the least of the three."""
    printed, names = printed_of_defenses(), ("benign", "HAG", "SDHA", "SAAT")
    networks = [f"{{defense}}, {{name}} ({each}, {bits} bits)" for each in SETS for bits in LENGTHS]
    of_defenses = [(defense, name) for defense in ("ATRDH", "SAAT") for name in names]
    assert list(printed) == [cell.format(defense=d, name=name) for d, name in of_defenses for cell in networks]
    for cell in networks:
        for defense in ("ATRDH", "SAAT"):
            left = {name: printed[cell.format(defense=defense, name=name)] for name in names}
            assert min(left, key=left.get) == "SAAT" and max(left, key=left.get) == "benign", (cell, left)


@pytest.mark.parametrize(("name", "mean"), [("FLICKR-25K", 6.66), ("NUS-WIDE", 11.60), ("MS-COCO", 8.70)])
def test_what_saat_gains_over_atrdh_in_print_is_what_its_table_says(name, mean):
    """Against the attack that leaves the least; at the shortest length on FLICKR-25K it loses."""
    printed = printed_of_defenses()
    gains = [printed[f"SAAT, SAAT ({name}, {n} bits)"] - printed[f"ATRDH, SAAT ({name}, {n} bits)"] for n in LENGTHS]
    assert sum(gains) / 4 == pytest.approx(mean, abs=0.005)
    assert [gain < 0 for gain in gains] == [name == "FLICKR-25K", False, False, False]
    if name == "FLICKR-25K":
        assert gains[0] == pytest.approx(-2.13)


def test_a_defense_costs_quality_without_an_attack_and_keeps_more_under_one_in_print():
    """Beside the table of networks without a defense, of the same paper."""
    printed, undefended = printed_of_defenses(), {r["metric"]: r["value"] for r in runs.expected("07_saat")["rows"]}
    for metric, value in printed.items():
        _, _, plain = metric.partition(", ")
        assert (value < undefended[plain]) == plain.startswith("benign"), metric


def test_of_cgat_three_averages_are_printed():
    rows = runs.expected("12_cgat")["rows"]
    assert {row["metric"]: row["value"] for row in rows} == {
        "CgAT less the best before it (FLICKR-25K)": 18.61,
        "CgAT less the best before it (NUS-WIDE)": 12.35,
        "CgAT less the best before it (MS-COCO)": 11.56,
    }
