"""Any attack goes with any search: the whole matrix, in every norm, for items and for strangers."""

from dataclasses import replace

import pytest
import torch

from robret_lib import attacks
from robret_lib.attacks import (
    NES,
    PGD,
    PSO,
    SPSA,
    AutoPGD,
    Averaged,
    Beta,
    Gallery,
    OnlyAnswers,
    OrderAttack,
    RandomSearch,
    Transfer,
    embedding,
    hub,
    neighbors,
    ranking,
)
from robret_lib.attacks.codes import CenterCode, HammingAdversary, OwnCode, Precision
from robret_lib.attacks.cross_modal import PairwiseReversal, TripletReversal
from robret_lib.attacks.relevant_codes import RelevantCodes, TowardsRelevantCodes
from robret_lib.attacks.search.descent import Descent
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.attacks.targeted_codes import Collision, PointToSet, TowardsCenter, TowardsPrecision
from tests.small_retrieval import DEVICES, SIZE, gallery_on, hash_model, seeded, small_model, some_split, trained_model

EPS = {"linf": 0.1, "l2": 1.0}
ATTACKS = {
    "CA+": ranking.CandidateAttack("raise", n_targets=2),
    "CA-": ranking.CandidateAttack("lower"),
    "QA+": ranking.QueryAttack("raise", n_targets=2),
    "QA-": ranking.QueryAttack("lower"),
    "SPQA+": ranking.SemanticsPreservingQueryAttack("raise", stiffness=300.0),
    "SPQA-": ranking.SemanticsPreservingQueryAttack("lower", stiffness=300.0),
    "ES": embedding.EmbeddingShift(),
    "TMA": embedding.TargetedMismatch(),
    "LTM": embedding.LearningToMisrank(),
    "GTM": embedding.GreedyTop1Misrank(),
    "GTT": embedding.GreedyTop1Translocation(),
    "hard margin": embedding.Margin(temperature=0),
    "soft margin": embedding.Margin(),
    "targeted margin": embedding.TargetedMargin(2),
    "Panum": neighbors.PanumGlobal(),
    "SMA": neighbors.SelfMetric(),
    "FNA": neighbors.FurthestNegative(),
    "OA": OrderAttack(3),
    "hub": hub.Hub(),
}
WITH_MODE = {name: attack for name, attack in ATTACKS.items() if hasattr(attack, "mode")}
REFERENCE = {f"{name}, reference": replace(attack, mode="reference") for name, attack in WITH_MODE.items()}
LOWERED = {"CA+", "QA+", "SPQA+", "LTM", "GTM", "GTT", "hard margin", "soft margin", "targeted margin", "Panum", "FNA"}
"""Attacks whose first measure falls; that of the others rises."""


def searches(norm, surrogate):
    eps = EPS[norm]
    plain = PGD(eps, eps / 4, 6, norm)
    return {
        "PGD": plain,
        "PGD, random start": PGD(eps, eps / 4, 6, norm, random_start=True),
        "AutoPGD": AutoPGD(eps, 6, norm),
        "AutoPGD, restarts": AutoPGD(eps, 3, norm, restarts=2),
        "APGD": AutoPGD(eps, 6, norm, schedule="apgd"),
        "descent": Descent(eps, eps / 4 * (8 if norm == "linf" else 1), 6, "unit", norm=norm),
        "Transfer": Transfer(surrogate, plain),
        "Averaged": Averaged(plain, 2),
        "Transfer, averaged": Transfer(surrogate, Averaged(AutoPGD(eps, 3, norm), 2)),
    }


def searches_by_values(surrogate):
    eps, queries = EPS["linf"], 122
    nes = NES(eps, queries, population=20, step=0.03)
    return {
        "Random": RandomSearch(eps, queries),
        "Beta": Beta(eps, queries, population=20),
        "PSO": PSO(eps, queries, population=20),
        "NES": nes,
        "SPSA": SPSA(eps, queries, population=20, step=0.03),
        "Transfer": Transfer(surrogate, nes),
        "Averaged": Averaged(nes, 2),
    }


SEARCHES = list(searches("linf", small_model()))
BY_VALUES = list(searches_by_values(small_model()))


@pytest.fixture(scope="module")
def surrogate():
    return trained_model("E", steps=40)


@pytest.fixture(scope="module")
def hashed(searched_split):
    """A hash network, its gallery, and a surrogate."""
    model = hash_model()
    return model, Gallery.of(model, searched_split.images, searched_split.labels), hash_model(steps=40, seed=1)


@pytest.fixture(autouse=True)
def the_models_are_left_as_they_were(models, surrogate, hashed):
    all_of_them = models["N"], surrogate, hashed[0], hashed[2]
    kept = [(it.training, {name: value.clone() for name, value in it.state_dict().items()}) for it in all_of_them]
    yield
    for model, (training, before) in zip(all_of_them, kept, strict=True):
        model.cpu()
        assert model.training == training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def attacked(attack, model, gallery, images, search, norm, own, labels=None):
    """The result, which keeps to the ball."""
    result = attacks.run(attack, model, images, gallery, search, own, labels, seeded(), batch_size=16)
    shift = (result.images - images).flatten(1)
    size = shift.abs().amax(1) if norm == "linf" else shift.norm(dim=1)
    assert size.max() <= EPS[norm] + 1e-6 and result.images.min() >= 0 and result.images.max() <= 1
    return result


def change_by(attack, model, gallery, images, search, norm, own, labels=None):
    """Of the first measure, in the direction that the attack wants; and the result."""
    result = attacked((ATTACKS | REFERENCE)[attack], model, gallery, images, search, norm, own, labels)
    name = next(iter(result.measured))
    change = (result.measured[name] - result.benign[name]).mean()
    return (-change if attack.removesuffix(", reference") in LOWERED else change), result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_any_attack_goes_with_any_search(attack, search, norm, device, models, galleries, searched, surrogate):
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
    chosen = searches(norm, surrogate.to(device))[search]
    strangers = some_split(40, seed=50)
    items = searched[::13], torch.arange(0, SIZE, 13), None
    for images, own, labels in (items, (strangers.images, None, strangers.labels)):
        change, result = change_by(attack, model, gallery, images, chosen, norm, own, labels)
        assert change > 0
        assert result.passes >= result.backward_passes >= 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("search", BY_VALUES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_any_attack_goes_with_any_search_by_values(attack, search, device, models, galleries, searched, surrogate):
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
    own = torch.arange(0, SIZE, 50)
    chosen = searches_by_values(surrogate.to(device))[search]
    change, result = change_by(attack, model, gallery, searched[own], chosen, "linf", own)
    if search == "Random":
        assert change >= 0
    elif (attack, search) != ("OA", "Transfer"):  # the order of five near neighbors is not the same for two networks
        assert change > 0
    assert result.passes == 122 * (1 + (search == "Averaged")) and not result.backward_passes


@pytest.mark.parametrize("search", ["AutoPGD, restarts", "Transfer, averaged", "PGD", "NES"])
@pytest.mark.parametrize("attack", REFERENCE)
def test_the_published_forms_go_with_any_search(attack, search, model, gallery, searched, surrogate):
    chosen = (searches("linf", surrogate) | {"NES": searches_by_values(surrogate)["NES"]})[search]
    strangers = some_split(20, seed=50)
    items = searched[::25], torch.arange(0, SIZE, 25), None
    for images, own, labels in (items, (strangers.images, None, strangers.labels)):
        assert change_by(attack, model, gallery, images, chosen, "linf", own, labels)[0] > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_any_attack_by_answers_alone_or_none(attack, model, gallery, searched):
    own, only = torch.arange(0, SIZE, 25), OnlyAnswers(SPSA(0.1, 81), visible=10)
    if attack != "OA":
        with pytest.raises(TypeError, match="OnlyAnswers needs a loss of lists"):
            change_by(attack, model, gallery, searched[own], only, "linf", own)
    else:
        assert change_by(attack, model, gallery, searched[own], only, "linf", own)[0] > 0


# Of a hash model


def hash_attacks(labels, gallery_labels):
    """Those with a target have it for these images."""
    wanted = draw_labels(labels, gallery_labels, seeded(3))
    return {
        "own code": OwnCode(),
        "HAG": HammingAdversary("rising"),
        "SDHA": RelevantCodes(),
        "CgA": CenterCode(),
        "SAAT": CenterCode("rising", weights="cosine", masked=True),
        "precision": Precision("relative", items=20, others=60),
        "AACH": TripletReversal(),
        "CMLA": PairwiseReversal("own"),
        "SDHA, targeted": TowardsRelevantCodes(wanted=wanted),
        "P2P": PointToSet("rising", wanted=wanted, items=1),
        "DHTA": PointToSet(wanted=wanted),
        "SAAT, targeted": TowardsCenter(wanted=wanted),
        "PTA": TowardsPrecision(wanted=wanted, items=20, others=60),
        "collision": Collision(wanted=wanted),
    }


HASH_ATTACKS = list(hash_attacks(torch.tensor([0]), torch.arange(10)))
WITH_TARGET = {"SDHA, targeted", "P2P", "DHTA", "SAAT, targeted", "PTA", "collision"}


def precision_by(name, hashed, device, images, labels, search, norm, own):
    """By how much the average precision changes in the direction that the attack wants, in percent; and the result."""
    model, gallery = hashed[0].to(device), gallery_on(device, hashed[1])
    attack = hash_attacks(labels, gallery.labels)[name]
    result = attacked(attack, model, gallery, images, search, norm, own, None if own is not None else labels)
    change = (result.measured["average_precision"] - result.benign["average_precision"]).mean()
    return (change if name in WITH_TARGET else -change), result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("attack", HASH_ATTACKS)
def test_any_attack_on_codes_goes_with_any_search(attack, search, norm, device, hashed, searched_split):
    chosen = searches(norm, hashed[2].to(device))[search]
    own = torch.arange(0, SIZE, 13)
    strangers = some_split(40, seed=50)
    items = searched_split.images[own], searched_split.labels[own], own
    for images, labels, where in (items, (strangers.images, strangers.labels, None)):
        change, result = precision_by(attack, hashed, device, images, labels, chosen, norm, where)
        assert change > 0
        assert result.passes >= result.backward_passes >= 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("search", BY_VALUES)
@pytest.mark.parametrize("attack", HASH_ATTACKS)
def test_any_attack_on_codes_goes_with_any_search_by_values(attack, search, device, hashed, searched_split):
    own = torch.arange(0, SIZE, 50)
    chosen = searches_by_values(hashed[2].to(device))[search]
    images, labels = searched_split.images[own], searched_split.labels[own]
    change, result = precision_by(attack, hashed, device, images, labels, chosen, "linf", own)
    assert change > 0 or search == "Random"
    assert result.passes == 122 * (1 + (search == "Averaged")) and not result.backward_passes
