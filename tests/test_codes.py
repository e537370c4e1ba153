"""Attacks on hash codes: worked numbers, slow and obvious twins, bounds, and a small hash network under attack."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robret_lib import attacks, models
from robret_lib.attacks import PGD, AutoPGD, Gallery, embedding, relaxed
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.codes import (
    CenterCode,
    HammingAdversary,
    OwnCode,
    Precision,
)
from robret_lib.attacks.relaxed import (
    ALPHAS,
    alpha_at,
    drawn_items,
    masked_losses,
    mean_losses,
    size_of,
    smooth_precisions,
)
from robret_lib.attacks.relevant_codes import RelevantCodes
from robret_lib.hamming import average_precisions, codes_of, hamming_distance
from robret_lib.models import HashModel
from tests import small_retrieval
from tests.small_codes import BITS, QUERIES, World, benign_of, free_world, seeded, small_world

OWN = torch.tensor([[0.5, -0.2, 0.8, -0.9], [-0.4, 0.6, 0.1, 0.3]], dtype=torch.float64)
ATTACKED = torch.tensor([[-0.9, -0.2, 0.1, 0.7], [0.2, 0.6, -0.5, 0.1]], dtype=torch.float64)
ATTACKS = {
    "own": OwnCode(),
    "HAG": HammingAdversary(),
    "SDHA": RelevantCodes(),
    "CgA": CenterCode(),
    "masked": CenterCode(masked=True),
    "mainstay": CenterCode(weights="cosine"),
    "precision": Precision(items=10, others=20),
}


@pytest.fixture(scope="module")
def world():
    return small_world()


# --- the worked numbers ---------------------------------------------------------------------------


def test_hag_has_the_worked_loss():
    assert HammingAdversary().losses(ATTACKED, OWN).mean().item() == pytest.approx(1.196097222, abs=1e-9)


def test_the_losses_of_the_center_code_are_the_worked_ones():
    """The published mask is over the bits of a whole batch; that of an image over its own."""
    agreement = ATTACKED * torch.tensor([[1, -1, 1, 1], [1, 1, -1, 1]], dtype=torch.float64)
    assert mean_losses(agreement).mean().item() == pytest.approx(0.1875)
    kept = (agreement > -0.5).sum(1)
    assert kept.sum() == 7
    assert (masked_losses(agreement) * kept).sum().item() / 7 == pytest.approx(0.857142857)


def test_with_no_bit_left_the_masked_loss_is_zero():
    assert masked_losses(torch.full((2, 4), -0.9)).tolist() == [0, 0]


def test_with_no_bit_left_hag_rests():
    """All bits flipped, beyond the threshold: a loss, and no slope."""
    codes = (-0.9 * torch.sign(OWN)).requires_grad_(True)
    losses = HammingAdversary().losses(codes, OWN)
    assert losses.tolist() == [1, 1]
    assert not torch.autograd.grad(losses.sum(), codes)[0].any()


@pytest.mark.parametrize(("share", "alpha"), [(0, 0.1), (0.49, 0.1), (0.5, 0.2), (0.65, 0.3), (0.9, 1.0), (1, 1.0)])
def test_alpha_rises_in_ten_parts(share, alpha):
    assert alpha_at(share) == alpha


def test_seven_steps_never_reach_alpha_one():
    assert [alpha_at(step / 7) for step in range(7)] == [0.1, 0.1, 0.1, 0.1, 0.2, 0.5, 0.7]
    assert [alpha_at(step / 2000) for step in range(0, 2000, 200)] == list(ALPHAS)


# --- losses and bounds ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["own", "CgA", "mainstay"])
def test_no_code_has_a_smaller_loss_than_the_bound(world, name):
    benign, attack = benign_of(world), ATTACKS[name]
    loss = attack.plan(benign, None).loss
    bound = loss(20 * attack.bound(benign).float())
    for seed in range(20):
        other = torch.where(torch.rand(QUERIES, BITS, generator=seeded(seed)) < 0.5, -20.0, 20.0)
        assert (bound <= loss(other) + 1e-6).all()


def test_the_negative_of_the_center_code_ranks_worse_than_the_center_code(world):
    benign, attack = benign_of(world), CenterCode()
    bound = attack.bound(benign)
    worst, best = (
        average_precisions(codes, benign.gallery.codes, benign.labels, benign.gallery.labels).mean()
        for codes in (bound, -bound)
    )
    assert worst < best


def test_with_sharp_ranks_the_smooth_precision_is_the_average_precision():
    codes, items = (torch.randn(shape, generator=seeded(6)).double() for shape in ((3, 8), (3, 20, 8)))
    found = smooth_precisions(codes, items[:, :7], items[:, 7:], temperature=1e-5)
    for value, code, some in zip(found, codes, items, strict=True):
        order = (some @ code).argsort(descending=True)
        hits = (order < 7).double()
        precisions = hits.cumsum(0) / torch.arange(1, 21)
        assert value.item() == pytest.approx(((precisions * hits).sum() / 7).item(), abs=1e-6)


def test_the_smooth_precision_has_the_right_slope():
    codes = torch.randn(2, 6, generator=seeded(7)).double().requires_grad_(True)
    items = torch.randn(2, 9, 6, generator=seeded(8)).double().sign()
    assert torch.autograd.gradcheck(lambda u: smooth_precisions(u, items[:, :4], items[:, 4:], 0.2), codes)


def test_items_are_drawn_from_the_wanted_ones():
    wanted = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    drawn = drawn_items(wanted, 3, seeded())
    assert sorted(drawn[0].tolist()) == [0, 1, 2] and drawn[1].tolist() == [4, 4, 4]
    assert len(set(drawn[2].tolist())) == 3


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", ["one", "rising"])
@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_spoils_the_ranking_more_than_noise(world, name, sharpness):
    model, images, labels, gallery = world
    attack = type(ATTACKS[name])(**{**vars(ATTACKS[name]), "sharpness": sharpness})
    found = attacks.run(attack, model, images, gallery, PGD(0.1, 0.02, 20), labels=labels)
    noise = (images + 0.1 * torch.randn(images.shape, generator=seeded()).sign()).clamp(0, 1)
    shaken = average_precisions(codes_of(models.embed(model, noise)), gallery.codes, labels, gallery.labels).mean()
    assert (found.images - images).abs().max() <= 0.1 + 1e-6
    assert found.measured["average_precision"].mean() < min(found.benign["average_precision"].mean(), 100 * shaken)
    assert found.benign["flipped"].sum() == 0 < found.measured["flipped"].sum()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("search", [PGD(0.1, 0.02, 5), AutoPGD(0.1, 5)], ids=["PGD", "AutoPGD"])
def test_batches_do_not_matter(world, name, search):
    model, images, labels, gallery = world
    whole, parts = (
        attacks.run(ATTACKS[name], model, images, gallery, search, labels=labels, generator=seeded(), batch_size=size)
        for size in (QUERIES, 5)
    )
    assert torch.allclose(whole.images, parts.images, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_images_without_labels_are_attacked_as_well_and_find_nothing(world, name):
    model, images, labels, gallery = world
    given = labels.clone()
    given[[0, 5]] = 0
    found = attacks.run(ATTACKS[name], model, images, gallery, PGD(0.1, 0.02, 5), labels=given, generator=seeded())
    assert found.images.isfinite().all()
    for measures in (found.benign, found.measured):
        assert measures["average_precision"][[0, 5]].tolist() == [0, 0]
    assert (found.images - images).flatten(1).any(1).all()


def test_the_measures_are_those_of_the_codes(world):
    model, images, labels, gallery = world
    found = attacks.run(OwnCode(), model, images, gallery, PGD(0.1, 0.02, 5), labels=labels)
    codes, own = (codes_of(models.embed(model, some)) for some in (found.images, images))
    flipped = 100 * hamming_distance(codes, own).diagonal() / BITS
    assert torch.allclose(found.measured["flipped"], flipped.float())
    precisions = average_precisions(codes, gallery.codes, labels, gallery.labels)
    assert torch.allclose(found.measured["average_precision"].double(), 100 * precisions)


def test_the_best_image_is_judged_by_the_code_and_not_by_the_softer_loss(world):
    """Else losses of different sharpness would be compared."""
    model, images, labels, gallery = world
    benign, seen = benign_of(world), []
    attack = OwnCode("rising")
    plan = attack.plan(benign, None)

    def watched(outputs):
        seen.append(plan.loss(outputs).detach())
        return plan.loss(outputs)

    watched.at = plan.at
    best = AutoPGD(0.1, 10)(model, images, watched)
    reached = plan.loss(model(best))
    assert torch.allclose(reached, torch.stack(seen).min(0).values, atol=1e-5)


@pytest.mark.parametrize("name", ["precision", "CgA", "own"])
@pytest.mark.parametrize("factor", [1 / 64, 4096])
def test_a_relative_sharpness_does_not_see_the_scale_of_the_outputs(world, name, factor):
    """By a power of two, so that no digit changes; with sharpness one, the larger one is out of reach."""
    model, images, labels, gallery = world
    scaled = HashModel(nn.Sequential(model.backbone, Scale(factor)))
    its = Gallery(factor * gallery.embeddings, "H", gallery.labels)
    found = {}
    for sharpness in ("relative", "one"):
        attack = replace(ATTACKS[name], sharpness=sharpness)
        found[sharpness] = [
            attacks.run(attack, network, images, items, AutoPGD(0.1, 5), labels=labels, generator=seeded()).images
            for network, items in ((model, gallery), (scaled, its))
        ]
    assert torch.allclose(*found["relative"], atol=1e-5) and not torch.equal(found["relative"][0], images)
    assert not torch.allclose(*found["one"], atol=1e-5)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, outputs):
        return self.factor * outputs


def test_a_relative_sharpness_is_five_over_the_size_of_the_outputs():
    gallery = Gallery(torch.tensor([[3.0, -4.0], [4.0, -3.0]]), "H")
    plan = OwnCode("relative").plan(Benign(gallery, torch.tensor([[3.0, -4.0]])), None)
    outputs = torch.tensor([[0.2, 0.3]])
    expected = (torch.tanh(5 / 12.5**0.5 * outputs) * torch.tensor([1, -1])).mean()
    assert plan.at is None and plan.loss(outputs).item() == pytest.approx(expected.item())
    assert size_of(torch.zeros(3, 4)) == 1


def test_an_own_sharpness_is_five_over_the_size_of_the_outputs_of_each_image():
    """Whatever the gallery's are, and whatever stands beside it in a batch; of outputs of 0 it is five."""
    embeddings = torch.tensor([[3.0, -4.0], [0.01, 0.02], [0.0, 0.0], [-700.0, 1.0]])
    outputs, alphas = torch.randn(4, 2, generator=seeded()), [5 / 12.5**0.5, 5 / 0.00025**0.5, 5, 5 / 245000.5**0.5]
    expected = [
        (torch.tanh(alpha * output) * codes_of(own)).mean().item()
        for alpha, output, own in zip(alphas, outputs, embeddings, strict=True)
    ]
    for scale in (1e-3, 1.0, 1e3):
        benign = Benign(Gallery(scale * torch.randn(6, 2, generator=seeded(1)), "H"), embeddings)
        plan = OwnCode("own").plan(benign, None)
        assert plan.at is None and plan.loss(outputs).tolist() == pytest.approx(expected, rel=1e-5)
        for rows in (slice(1, 3), torch.tensor([3, 0])):
            part = OwnCode("own").plan(benign[rows], None).loss(outputs[rows])
            assert torch.equal(part, plan.loss(outputs)[rows])
    assert torch.equal(size_of(embeddings, dim=1)[:, 0], torch.stack([size_of(each) for each in embeddings]))


@pytest.mark.parametrize("name", ATTACKS)
def test_with_an_own_sharpness_batches_do_not_matter(world, name):
    model, images, labels, gallery = world
    attack = replace(ATTACKS[name], sharpness="own")
    whole, parts = (
        attacks.run(attack, model, images, gallery, PGD(0.1, 0.02, 5), labels=labels, generator=seeded(), batch_size=n)
        for n in (QUERIES, 5)
    )
    assert torch.allclose(whole.images, parts.images, atol=1e-6)


@pytest.mark.parametrize("name", ["precision", "CgA", "own"])
@pytest.mark.parametrize("factor", [1 / 64, 64])
def test_on_a_gallery_of_another_scale_an_own_sharpness_finds_more_than_a_relative_one(trained_world, name, factor):
    """As where texts are searched by images; and as much as where both are alike."""
    model, images, labels, gallery = trained_world
    other, left = Gallery(factor * gallery.embeddings, "H", labels=gallery.labels), {}
    for sharpness, items in (("own", other), ("relative", other), ("own", gallery)):
        attack, search = replace(ATTACKS[name], sharpness=sharpness), AutoPGD(EPS, 10)
        found = attacks.run(attack, model, images, items, search, labels=labels, generator=seeded())
        left[sharpness, items is other] = found.measured["average_precision"].mean().item()
    assert left["own", True] < left["relative", True] - 5
    assert left["own", True] == pytest.approx(left["own", False], abs=0.5)


def test_without_classes_only_the_bits_are_measured(world):
    model, images, _, gallery = world
    unlabeled = Gallery(gallery.embeddings, "H")
    found = attacks.run(OwnCode(), model, images, unlabeled, PGD(0.1, 0.02, 2))
    assert set(found.measured) == {"flipped"}
    with pytest.raises(ValueError, match="CenterCode needs classes"):
        attacks.run(CenterCode(), model, images, unlabeled, PGD(0.1, 0.02, 2))


# --- what would be left ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_the_bound_is_what_the_best_code_of_an_attack_would_leave(world, name):
    """Whatever the search: it is measured for the benign images, too."""
    model, images, labels, gallery = world
    code = ATTACKS[name].bound(benign_of(world))
    expected = 100 * average_precisions(code, gallery.codes, labels, gallery.labels)
    for search in (PGD(0.1, 0.02, 2), PGD(0.3, 0.1, 5, random_start=True), AutoPGD(0.1, 3)):
        found = attacks.run(ATTACKS[name], model, images, gallery, search, labels=labels, generator=seeded())
        assert torch.allclose(found.measured["bound"].double(), expected)
        assert torch.equal(found.measured["bound"], found.benign["bound"])
    assert found.measured["average_precision"].mean() > found.measured["bound"].mean()


def test_the_bound_is_as_deep_as_the_measure_and_leaves_out_the_image_itself(world):
    """Here the images are the gallery, of which each would be its own last answer."""
    model, images, labels, _ = world
    itself, own = Gallery.of(model, images, labels), torch.arange(QUERIES)
    ranked, found = (-itself.codes, itself.codes, labels, labels), {}
    for top_k in (5, None):
        given = OwnCode(top_k=top_k), model, images, itself, PGD(0.1, 0.02, 2)
        found[top_k] = attacks.run(*given, own=own).measured["bound"].double()
        assert torch.allclose(found[top_k], 100 * average_precisions(*ranked, top_k, own=own))
    assert not torch.allclose(found[5], found[None])
    assert not torch.allclose(found[None], 100 * average_precisions(*ranked))


def test_the_bound_is_measured_once_a_batch(world, monkeypatch):
    """Not at each look at the codes that have been reached."""
    asked, plan = [], CenterCode().plan(benign_of(world), None)

    def noted(codes, *given, **named):
        asked.append(codes)
        return average_precisions(codes, *given, **named)

    monkeypatch.setattr(relaxed, "average_precisions", noted)
    bounds = [plan.measures(torch.randn(QUERIES, BITS, generator=seeded(seed)))["bound"] for seed in range(3)]
    assert len(asked) == 4 and all(torch.equal(bound, bounds[0]) for bound in bounds)


def test_the_bound_is_that_of_the_images_of_a_batch(world):
    model, images, labels, gallery = world
    whole, parts = (
        attacks.run(CenterCode(), model, images, gallery, PGD(0.1, 0.02, 1), labels=labels, batch_size=size)
        for size in (QUERIES, 5)
    )
    assert torch.equal(whole.measured["bound"], parts.measured["bound"])


@pytest.mark.parametrize("name", ["own", "CgA", "masked", "mainstay"])
def test_with_every_bit_free_the_bound_is_reached(name):
    """By a network whose outputs are the pixels: any code is that of an image."""
    model, images, labels, gallery = free_world()
    attack = ATTACKS[name]
    found = attacks.run(attack, model, images, gallery, PGD(1.0, 0.1, 40), labels=labels)
    codes = codes_of(models.embed(model, found.images))
    assert torch.equal(codes, attack.bound(benign_of((model, images, labels, gallery))).to(codes))
    assert torch.equal(found.measured["average_precision"], found.measured["bound"])
    assert (found.measured["flipped"] == 100).all() == (name == "own")


# --- which attack leaves less, on a network that has learned ----------------------------------------


EPS = 0.06


@pytest.fixture(scope="module")
def trained_world() -> World:
    """Ten classes that a network of 16 bits tells apart; a hundred queries."""
    model = small_retrieval.hash_model()
    asked, searched = small_retrieval.some_split(100, 30), small_retrieval.some_split(small_retrieval.SIZE, 10)
    return model, asked.images, asked.labels, Gallery.of(model, searched.images, searched.labels)


@pytest.fixture(scope="module")
def left(trained_world):
    """The result of each attack, by name."""
    model, images, labels, gallery = trained_world
    return {
        name: attacks.run(attack, model, images, gallery, PGD(EPS, EPS / 5, 20), labels=labels, generator=seeded())
        for name, attack in ATTACKS.items()
    }


def test_noise_of_the_same_size_changes_little(trained_world, left):
    """An eighth of what the weakest attack does."""
    model, images, labels, gallery = trained_world
    noise = EPS * (2 * torch.rand(images.shape, generator=seeded()) - 1)
    codes = codes_of(models.embed(model, (images + noise).clamp(0, 1)))
    shaken = 100 * average_precisions(codes, gallery.codes, labels, gallery.labels).mean()
    clean = left["own"].benign["average_precision"].mean()
    assert clean > 70
    assert 8 * abs(shaken - clean) < clean - max(found.measured["average_precision"].mean() for found in left.values())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_leaves_less_than_there_was_and_no_less_than_its_bound(left, name):
    precisions, bound = left[name].measured["average_precision"], left[name].measured["bound"]
    assert precisions.mean() < left[name].benign["average_precision"].mean() / 2
    assert (precisions >= bound - 1).all() and precisions.mean() > bound.mean()


def test_labels_help_and_the_mean_loss_is_stronger_than_the_masked_one(left):
    """Away from the center code is worse than away from the own one, by more than the error of the difference."""
    for weaker in ("own", "HAG", "masked"):
        apart = left[weaker].measured["average_precision"] - left["CgA"].measured["average_precision"]
        assert apart.mean() > 2 * apart.std() / len(apart) ** 0.5, weaker


# --- codes and their galleries ---------------------------------------------------------------------


def test_a_gallery_of_codes_measures_in_bits(world):
    model, images, _, gallery = world
    outputs = models.embed(model, images)
    expected = hamming_distance(codes_of(outputs), gallery.codes).float()
    assert torch.equal(gallery.distances_from(outputs), expected)
    assert torch.equal(gallery.exact_distances_from(outputs), expected.double())
    nearest = gallery.nearest_to(outputs, 10)
    order = expected.sort(dim=1, stable=True).indices[:, :10]
    assert torch.equal(nearest, order)


def test_an_attack_on_embeddings_says_that_codes_have_no_slope(world):
    model, images, labels, gallery = world
    with pytest.raises((TypeError, ValueError), match=r"attacks\.codes"):
        attacks.run(embedding.LearningToMisrank(), model, images, gallery, PGD(0.1, 0.02, 2), labels=labels)


def test_an_attack_on_codes_wants_a_gallery_of_codes(world):
    model, images, labels, gallery = world
    plain = models.EmbeddingModel(model.backbone, "E")
    with pytest.raises(ValueError, match="HashModel"):
        attacks.run(OwnCode(), plain, images, Gallery(gallery.embeddings, "E", gallery.labels), PGD(0.1, 0.02, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OwnCode("soft"), "sharpness='soft'"),
        (lambda: OwnCode(top_k=0), "top_k=0"),
        (lambda: HammingAdversary(threshold=-1), "threshold=-1"),
        (lambda: HammingAdversary(weight=float("nan")), "weight=nan"),
        (lambda: CenterCode(weights="mean"), "weights='mean': expected one of"),
        (lambda: Precision(items=0), "items=0"),
        (lambda: Precision(others=1.5), "others=1.5"),
        (lambda: Precision(temperature=0), "temperature=0"),
    ],
)
def test_impossible_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["CgA", "SDHA"])
def test_known_items_are_a_gallery(world, name):
    with pytest.raises(TypeError, match="known of type Tensor: expected a Gallery of codes with labels, or None"):
        replace(ATTACKS[name], known=world[3].codes)


def test_embedding_model_sends_codes_to_the_hash_model():
    with pytest.raises(ValueError, match="HashModel"):
        models.EmbeddingModel(nn.Flatten(), "H")


def test_a_built_hash_network_begins_with_a_small_last_layer():
    torch.manual_seed(0)
    model = models.build("c2f2_half", 32, distance="H")
    head = model.backbone[-1]
    assert isinstance(model, HashModel) and model.distance == "H"
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05) and not head.bias.any()
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(model(images), model.features(images))


@pytest.mark.parametrize("name", ["CgA", "SDHA"])
def test_known_items_have_codes_of_the_same_length_and_labels(world, name):
    model, images, labels, gallery = world
    for known, message in (
        (Gallery(gallery.embeddings[:, :8], "H", gallery.labels), "codes of 8 bits: expected 16"),
        (Gallery(gallery.embeddings, "H"), "known items without labels"),
    ):
        with pytest.raises(ValueError, match=message):
            attack = replace(ATTACKS[name], known=known)
            attacks.run(attack, model, images, gallery, PGD(0.1, 0.02, 1), labels=labels)
