"""A diagnosis finds nothing on sound networks, and behind every planted defense the warning that is meant for it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from docutils.nodes import make_id
from torch.nn.functional import one_hot

from robret_lib import attacks, checks, data, recipes
from robret_lib.attacks.embedding import EmbeddingShift
from robret_lib.checks.findings import found
from robret_lib.data import Protocol, Split
from robret_lib.models import HashModel, build
from tests.benchmarks.networks import network
from tests.planted_defenses import (
    BatchCoupled,
    Detached,
    FlatAtBytes,
    GradientKiller,
    HalfDetached,
    Noisy,
    Planted,
    Purified,
    Quantized,
    Saturated,
)
from tests.small_retrieval import DEVICES, hash_model, searched_in_itself, small_model

ROOT = Path(__file__).parents[1]
EPS = 0.04


def stored_as_bytes(split):
    return Split((255 * split.images).round().to(torch.uint8), split.labels)


@pytest.fixture(scope="module")
def toy():
    """As data sets come: images are bytes."""
    made = searched_in_itself()
    split = stored_as_bytes(made.query)
    return replace(made, train=stored_as_bytes(made.train), query=split, gallery=split)


def warned(report):
    return {finding.name for finding in report.warnings}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", ["N", "E"])
def test_a_sound_network_and_a_sound_evaluation_raise_no_alarm(distance, models, toy, device):
    model = models[distance].to(device)
    report = checks.diagnose(model, toy, EPS)
    model.cpu()
    assert report.ok and not report.warnings, report
    assert len(report.findings) == 17


def test_hash_codes_are_judged_elsewhere(toy):
    with pytest.raises(TypeError, match="ties among hash codes: use scores.robust_map"):
        checks.diagnose(HashModel(torch.nn.Flatten()), toy, EPS)


def test_every_warning_has_its_paragraph_in_the_book(model, toy):
    """And names it: what is after the # is what Sphinx makes of the title."""
    titles = re.findall(r"^### (.*)$", (ROOT / "book" / "warnings.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [finding.name for finding in checks.diagnose(model, toy, EPS, queries=8).findings]
    names.append(checks.model.without_tanh(torch.ones(1, 1)).name)  # of hash codes alone, which it does not look at
    assert sorted(title.lower() for title in titles) == sorted(names)
    for title in titles:
        assert found(title.lower(), False, "", "").message.endswith(f" See warnings.html#{make_id(title)}.")
        assert "warnings" not in found(title.lower(), True, "", "").message


def known(toy):
    return toy.gallery.images / 255


CAUGHT_BY_INSPECTION = {
    "quantization": (Quantized, "gradient to the pixels"),
    "random noise": (Noisy, "repeatable embeddings"),
    "a huge scale": (Saturated, "gradient to the pixels"),
    "batch norm in training mode": (BatchCoupled, "independent of the batch"),
    "a detached branch": (Detached, "gradient is the slope"),
    "half detached": (HalfDetached, "gradient is the slope"),
    "0.3 detached": (lambda network: HalfDetached(network, 0.7), "gradient is the slope"),
    "0.7 detached": (lambda network: HalfDetached(network, 0.3), "gradient is the slope"),
    "a gradient of zeros": (lambda network: GradientKiller(network, "zero"), "gradient to the pixels"),
    "a random gradient": (lambda network: GradientKiller(network, "random"), "gradient is the slope"),
}


@pytest.mark.parametrize("planted", CAUGHT_BY_INSPECTION)
def test_what_shows_before_any_attack(planted, model, toy):
    """And nothing else but for what noise does to all that is repeated."""
    defense, expected = CAUGHT_BY_INSPECTION[planted]
    names = warned(checks.inspect(defense(model), data.as_float(toy.query.images[:32])))
    assert names - ({"independent of the batch"} if planted == "random noise" else set()) == {expected}


def test_of_a_hash_model_the_gradient_is_that_of_the_relaxed_codes(toy):
    """A last layer a thousand times as large leaves the codes as they are, and tanh flat; ten times leaves a slope."""
    network, images = hash_model(), data.as_float(toy.query.images[:32])
    assert checks.inspect(network, images).ok
    for factor, expected in ((10, set()), (1000, {"gradient to the pixels"})):
        layer = network.backbone[-1]
        with torch.no_grad():
            layer.weight *= factor
            layer.bias *= factor
        assert warned(checks.inspect(network, images)) == expected
        with torch.no_grad():
            layer.weight /= factor
            layer.bias /= factor


CAUGHT_BY_ATTACKS = {
    "quantization": (lambda network, toy: Quantized(network), {"black box", "unlimited radius"}),
    "a detached branch": (lambda network, toy: Detached(network), {"black box"}),
    "a random gradient": (lambda network, toy: GradientKiller(network, "random"), {"black box"}),
    "flat at bytes": (lambda network, toy: FlatAtBytes(network), {"random start"}),
    "purified": (lambda network, toy: Purified(network, known(toy), 0.03), {"larger radius", "unlimited radius"}),
}


@pytest.mark.parametrize("planted", CAUGHT_BY_ATTACKS)
def test_what_attacks_bring_to_light(planted, model, toy):
    defense, expected = CAUGHT_BY_ATTACKS[planted]
    report = checks.diagnose(defense(model, toy), toy, EPS, queries=48)
    assert warned(report) >= expected, report


def test_a_diagnosis_is_repeatable_and_leaves_no_trace(model, toy):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, mode = torch.random.get_rng_state(), model.training
    first, again = (checks.diagnose(model, toy, EPS, queries=16, seed=3) for _ in range(2))
    assert first == again
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state) and model.training == mode


def test_queries_from_outside_with_several_labels(model, toy):
    labels = one_hot(toy.query.labels, 10).to(torch.uint8)
    halves = [Split(toy.query.images[part::2], labels[part::2]) for part in (0, 1)]
    protocol = Protocol("outside", "...", self_excluded=False, class_disjoint=False)
    train = Split(toy.train.images, one_hot(toy.train.labels, 10).to(torch.uint8))
    outside = replace(toy, train=train, query=halves[0], gallery=halves[1], protocol=protocol)
    report = checks.diagnose(model, outside, EPS, queries=24)
    assert report.ok, report


def test_what_cannot_be_attacked_is_only_inspected(toy):
    broken = small_model()
    with torch.no_grad():
        broken.backbone[-1].bias[0] = torch.nan
    assert warned(checks.diagnose(broken, toy, EPS, queries=8)) == {"finite embeddings"}


def test_labels_of_other_images_are_found_out(model, toy):
    """Which pass every attack: one who finds nothing has nothing to lose."""
    labels = toy.query.labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    split = Split(toy.query.images, labels)
    report = checks.diagnose(model, replace(toy, query=split, gallery=split), EPS)
    assert warned(report) == {"benign recall"}, report


def test_a_model_that_finds_nothing_has_nothing_to_lose(model, toy):
    """Eight images of eight classes: no other one is a right answer."""
    strangers = Split(toy.query.images[:8], torch.arange(8))
    alone = replace(toy, query=strangers, gallery=strangers)
    with pytest.raises(ValueError, match="none of 8 first answers is right: expected a model that finds something"):
        checks.diagnose(model, alone, EPS)


# On Fashion-MNIST: a network without a defense, and one that was trained to resist


def trained(name):
    try:
        return network(name), data.load("fashion-mnist", "quick")
    except data.DataError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name, eps", [("none N", 8 / 255), ("ACT N", 8 / 255), ("ACT N", 77 / 255)])
def test_trained_networks_raise_no_alarm(name, eps):
    """At a radius that breaks some of the queries, and at one that breaks all."""
    (model, _), fashion = trained(name)
    report = checks.diagnose(model, fashion, eps)
    assert report.ok, report


@pytest.mark.parametrize("name", ["none N", "ACT N"])
def test_what_is_detached_of_a_trained_network_is_found_and_nothing_where_nothing_is(name):
    """Fashion-MNIST is flat over wide regions, where max pooling has ties and a step goes around every corner."""
    (model, _), fashion = trained(name)
    images = data.as_float(fashion.query.images[:32])
    assert checks.inspect(model, images).ok
    for attached in (0.3, 0.5, 0.7):
        assert warned(checks.inspect(HalfDetached(model, attached), images)) == {"gradient is the slope"}


def test_an_untrained_network_detaches_nothing():
    torch.manual_seed(0)
    fashion = trained("none N")[1]
    report = checks.inspect(build("c2f2", 512).eval(), data.as_float(fashion.query.images[:32]))
    assert "gradient is the slope" not in warned(report)


@pytest.mark.slow
def test_photographs_detach_nothing():
    photographs = data.load("grocery", size=128)
    model = recipes.trained(recipes.photographs(), photographs, torch.device("cpu")).model
    report = checks.inspect(model, data.as_float(photographs.query.images[:8]))
    assert report.ok, report


class InFloat32(Planted):
    """A model that computes in float32, whatever it is given and made of."""

    def forward(self, images):
        return self.network.float()(images.float())


def test_a_model_that_does_not_run_in_float64_is_judged_by_its_own_gradient(model, toy):
    images = data.as_float(toy.query.images[:32])
    assert checks.inspect(InFloat32(model), images).ok
    assert warned(checks.inspect(Detached(InFloat32(model)), images)) == {"gradient is the slope"}


@pytest.mark.slow
def test_a_killed_gradient_of_a_trained_network_is_found_at_a_small_radius():
    (model, _), fashion = trained("none N")
    report = checks.diagnose(GradientKiller(model, "random"), fashion, 8 / 255)
    assert warned(report) >= {"gradient is the slope", "black box"}, report


@pytest.mark.slow
def test_the_published_search_stops_while_the_loss_of_a_defended_network_still_falls():
    """32 steps of 3/255 away from the benign embedding, as in the tables; the strong search comes to rest."""
    (model, gallery), _ = trained("ACT N")
    own, found = torch.arange(60), []
    for search in (attacks.PGD(77 / 255, 3 / 255, 32), attacks.AutoPGD(77 / 255, 32)):
        overheard = checks.Overheard(EmbeddingShift())
        result = attacks.run(overheard, model, gallery.images[own], gallery, search, own)
        right = result.benign["recall_at_1"] > 0
        survived = (result.measured["recall_at_1"] > 0)[right]
        found.append(checks.evaluation.loss_at_the_end(overheard.losses[:, right], survived).ok)
    assert found == [False, True]
