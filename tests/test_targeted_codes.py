"""Attacks on hash codes with a target: target labels, worked numbers, majority votes, and t-MAP on a small network."""

from itertools import product

import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Gallery
from robret_lib.attacks.relevant_codes import TowardsRelevantCodes
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.attacks.targeted_codes import (
    TARGET_LOSSES,
    Collision,
    PointToSet,
    Prototype,
    TowardsCenter,
    TowardsPrecision,
)
from robret_lib.hamming import average_precisions, codes_of
from tests import small_retrieval
from tests.small_codes import BITS, QUERIES, benign_of, free_world, seeded, small_world


@pytest.fixture(scope="module")
def world():
    return small_world()


@pytest.fixture(scope="module")
def wanted(world) -> torch.Tensor:
    _, _, labels, gallery = world
    return draw_labels(labels, gallery.labels, seeded())


def targeted(wanted: torch.Tensor) -> dict[str, object]:
    torch.manual_seed(3)
    return {
        "P2P": PointToSet(wanted=wanted, items=1),
        "DHTA": PointToSet(wanted=wanted),
        "SAAT": TowardsCenter(wanted=wanted, loss="published"),
        "symmetric": TowardsCenter(wanted=wanted),
        "prototype": Prototype(wanted=wanted, network=nn.Linear(4, BITS)),
        "collision": Collision(wanted=wanted),
        "PTA": TowardsPrecision(wanted=wanted, items=10, others=20),
    }


# --- target labels --------------------------------------------------------------------------------


def test_target_labels_are_those_of_items_and_share_none_with_the_image(world):
    _, _, labels, gallery = world
    drawn = torch.stack([draw_labels(labels, gallery.labels, seeded(seed)) for seed in range(50)])
    kinds = {tuple(row) for row in gallery.labels.tolist()}
    for target in drawn.flatten(0, 1).tolist():
        assert tuple(target) in kinds
    assert not (drawn * labels).any()
    assert torch.equal(drawn[0], draw_labels(labels, gallery.labels, seeded(0)))


def test_every_possible_target_is_drawn_about_as_often():
    kinds = torch.eye(4, dtype=torch.int64)
    drawn = draw_labels(kinds[:1].expand(3000, -1), kinds, seeded()).sum(0)
    assert drawn[0] == 0 and (drawn[1:] - 1000).abs().max() < 120


def test_no_target_is_without_labels_and_no_image_without_a_target():
    kinds = torch.tensor([[0, 0], [1, 0], [0, 1]])
    assert draw_labels(kinds[1:2].expand(20, -1), kinds, seeded()).tolist() == [[0, 1]] * 20
    with pytest.raises(ValueError, match="1 images share a label with every label vector"):
        draw_labels(torch.tensor([[1, 1]]), kinds)


def test_single_labels_will_do():
    assert draw_labels(torch.tensor([0, 1]), torch.tensor([0, 0, 1]), seeded()).tolist() == [1, 0]


# --- codes and losses -----------------------------------------------------------------------------


def test_the_published_loss_is_the_worked_one_and_its_slope_vanishes_where_a_bit_must_flip():
    codes = torch.tensor([[-0.9, -0.2, 0.1, 0.7], [0.2, 0.6, -0.5, 0.1]], dtype=torch.float64)
    agreement = codes * torch.tensor([[1, -1, 1, 1], [1, 1, -1, 1]], dtype=torch.float64)
    kept = (agreement < 0.5).sum(1)
    whole = (TARGET_LOSSES["published"](agreement) * kept).sum().item() / kept.sum().item()
    assert whole == pytest.approx(-0.062, abs=5e-4)
    far = torch.full((1, 1), -1.0, dtype=torch.float64, requires_grad=True)
    slopes = {n: torch.autograd.grad(loss(far).sum(), far)[0].item() for n, loss in TARGET_LOSSES.items()}
    assert slopes == {"mean": -1, "published": 0, "symmetric": -4}


@pytest.mark.parametrize("loss", ["published", "symmetric"])
def test_where_all_bits_agree_a_masked_loss_rests(loss):
    agreement = torch.full((2, 4), 0.9, requires_grad=True)
    losses = TARGET_LOSSES[loss](agreement)
    assert losses.tolist() == [0, 0] and not torch.autograd.grad(losses.sum(), agreement)[0].any()


def test_the_anchor_of_the_worked_rows():
    signs = torch.tensor([[1, -1, 1, -1], [-1, 1, 1, 1], [-1, -1, -1, 1]], dtype=torch.float32)
    gallery = Gallery(signs, "H", torch.zeros(3, dtype=torch.int64))
    benign = benign_of_one(gallery)
    attack = PointToSet(wanted=torch.tensor([0]), items=3)
    assert attack.bound(benign, torch.tensor([[0, 1, 2]])).tolist() == [[-1, -1, 1, 1]]


def benign_of_one(gallery):
    return attacks.attack.Benign(gallery, torch.ones(1, gallery.embeddings.shape[1]), labels=torch.tensor([1]))


def test_no_code_is_nearer_to_the_voters_than_the_majority(world):
    outputs = torch.randn(9, 6, generator=seeded(4))
    gallery = Gallery(outputs, "H", torch.zeros(9, dtype=torch.int64))
    chosen = PointToSet(wanted=torch.tensor([0])).bound(benign_of_one(gallery), torch.arange(9)[None])[0]
    every = torch.tensor(list(product((-1, 1), repeat=6)))
    sums = (every[:, None] != gallery.codes).sum((1, 2))
    assert (chosen != gallery.codes).sum() == sums.min()


def test_voters_have_exactly_the_target_labels_and_differ_where_there_are_enough(world, wanted):
    benign = benign_of(world)
    for items in (1, 3, 9):
        targets = PointToSet(wanted=wanted, items=items).targets(benign, seeded())
        assert targets.shape == (QUERIES, items)
        assert (benign.gallery.labels[targets] == wanted[:, None]).all()
        for row, label in zip(targets.tolist(), wanted, strict=True):
            enough = (benign.gallery.labels == label).all(1).sum() >= items
            assert not enough or len(set(row)) == items


@pytest.mark.parametrize("items", [1, 3, 9])
def test_voters_are_drawn_row_by_row_as_from_all_weights_at_once(world, wanted, items):
    attack, benign = PointToSet(wanted=wanted, items=items), benign_of(world)
    generator, found = seeded(5), []
    for same in attack.having_them(benign).double():
        enough = int(same.sum()) >= items
        found.append(torch.multinomial(same, items, replacement=not enough, generator=generator))
    assert torch.equal(attack.targets(benign, seeded(5)), torch.stack(found))


# --- attacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["P2P", "DHTA", "SAAT", "symmetric", "collision", "PTA"])
def test_the_ranking_becomes_more_that_of_the_target(world, wanted, name):
    model, images, labels, gallery = world
    found = attacks.run(targeted(wanted)[name], model, images, gallery, PGD(0.2, 0.02, 30), labels=labels)
    assert (found.images - images).abs().max() <= 0.2 + 1e-6
    assert found.measured["average_precision"].mean() > found.benign["average_precision"].mean()
    before = average_precisions(codes_of(model(images)), gallery.codes, wanted, gallery.labels)
    assert torch.allclose(found.benign["average_precision"].double(), 100 * before)


ALL = ["P2P", "DHTA", "SAAT", "symmetric", "prototype", "collision", "PTA"]


@pytest.mark.parametrize("name", ALL)
def test_the_bound_is_what_the_code_that_is_aimed_at_would_have(world, wanted, name):
    """By the target labels; whatever the search, and for the benign images, too."""
    model, images, labels, gallery = world
    attack = targeted(wanted)[name]
    for search in (PGD(0.1, 0.02, 2), AutoPGD(0.3, 3)):
        found = attacks.run(attack, model, images, gallery, search, labels=labels, generator=seeded())
        code = attack.bound(benign_of(world), found.targets)
        expected = 100 * average_precisions(code, gallery.codes, wanted, gallery.labels)
        assert torch.allclose(found.measured["bound"].double(), expected)
        assert torch.equal(found.measured["bound"], found.benign["bound"])


@pytest.mark.parametrize("name", ["P2P", "DHTA", "symmetric", "prototype", "collision"])
def test_with_every_bit_free_the_bound_is_reached(name):
    """By a network whose outputs are the pixels: any code is that of an image."""
    model, images, labels, gallery = free_world()
    aimed = draw_labels(labels, gallery.labels, seeded())
    found = attacks.run(targeted(aimed)[name], model, images, gallery, PGD(1.0, 0.1, 40), labels=labels)
    codes = targeted(aimed)[name].bound(benign_of((model, images, labels, gallery)), found.targets)
    assert torch.equal(codes_of(model(found.images)), codes.to(torch.int8))
    assert torch.equal(found.measured["average_precision"], found.measured["bound"])


@pytest.fixture(scope="module")
def reached():
    """What attacks on a network that has learned reach, by name: a hundred queries in ten classes."""
    model = small_retrieval.hash_model()
    asked, searched = small_retrieval.some_split(100, 30), small_retrieval.some_split(small_retrieval.SIZE, 10)
    gallery = Gallery.of(model, searched.images, searched.labels)
    family = targeted(draw_labels(asked.labels, gallery.labels, seeded()))
    given = model, asked.images, gallery, PGD(0.06, 0.012, 20)
    return {
        name: attacks.run(family[name], *given, labels=asked.labels, generator=seeded())
        for name in ("P2P", "DHTA", "SAAT", "symmetric", "PTA")
    }


@pytest.mark.parametrize("name", ["P2P", "DHTA", "SAAT", "symmetric", "PTA"])
def test_an_attack_reaches_more_than_there_was_and_no_more_than_its_bound(reached, name):
    found = reached[name].measured["average_precision"]
    assert found.mean() > reached[name].benign["average_precision"].mean() + 10
    assert (found <= reached[name].measured["bound"] + 1).all() or name == "P2P"
    assert found.mean() < reached[name].measured["bound"].mean()


def test_many_items_are_a_better_target_than_one_and_the_center_of_all_than_nine(reached):
    """By more than the error of the difference."""
    for weaker, stronger in (("P2P", "DHTA"), ("DHTA", "symmetric")):
        apart = reached[stronger].measured["average_precision"] - reached[weaker].measured["average_precision"]
        assert apart.mean() > apart.std() / len(apart) ** 0.5
        assert reached[stronger].measured["bound"].mean() > reached[weaker].measured["bound"].mean()


@pytest.mark.parametrize("name", ALL)
def test_batches_do_not_matter(world, wanted, name):
    model, images, labels, gallery = world
    runs = [
        attacks.run(
            targeted(wanted)[name],
            model,
            images,
            gallery,
            PGD(0.1, 0.02, 5),
            labels=labels,
            generator=seeded(),
            batch_size=size,
        )
        for size in (QUERIES, 5)
    ]
    assert torch.allclose(runs[0].images, runs[1].images, atol=1e-6)


def test_a_prototype_is_the_code_a_network_has_for_the_labels(world, wanted):
    attack = targeted(wanted)["prototype"]
    benign = benign_of(world)
    codes = attack.bound(benign, attack.targets(benign, None))
    assert torch.equal(codes, codes_of(attack.network(wanted.float()).detach()))


def test_a_collision_is_an_equal_code(world, wanted):
    model, images, labels, gallery = world
    attack = Collision(wanted=wanted)
    found = attacks.run(attack, model, images, gallery, PGD(1.0, 0.05, 100), labels=labels)
    equal = (codes_of(model(found.images)) == gallery.codes[found.targets[:, 0]]).all(1)
    assert torch.equal(found.measured["collision"], 100 * equal.float())
    assert found.measured["collision"].mean() > 80 > found.benign["collision"].mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wanted": torch.zeros(QUERIES, 4, dtype=torch.int64)}, "12 of the target label vectors are those of no"),
        ({"wanted": torch.tensor([[1, 0, 0, 0]])}, "1 target labels of 12 images"),
    ],
)
def test_targets_that_are_not_there_are_refused(world, changes, message):
    model, images, labels, gallery = world
    with pytest.raises(ValueError, match=message):
        attacks.run(PointToSet(**changes), model, images, gallery, PGD(0.1, 0.02, 2), labels=labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: PointToSet(wanted=w, items=0), "items=0"),
        (lambda w: TowardsCenter(wanted=w, loss="hinge"), "loss='hinge'"),
        (lambda w: Collision(wanted=w, margin=-1), "margin=-1"),
        (lambda w: TowardsCenter(wanted=w, weights="mean"), "weights='mean': expected one of"),
        (lambda w: TowardsPrecision(wanted=w, items=0), "items=0"),
        (lambda w: TowardsPrecision(wanted=w, others=True), "others=True"),
        (lambda w: TowardsPrecision(wanted=w, temperature=-0.1), "temperature=-0.1"),
    ],
)
def test_impossible_fields_are_refused(wanted, make, message):
    with pytest.raises(ValueError, match=message):
        make(wanted)


@pytest.mark.parametrize("attack", [PointToSet, TowardsCenter, Collision])
def test_targets_are_a_tensor(attack):
    with pytest.raises(TypeError, match="wanted of type list: expected a tensor of target labels, see target_labels"):
        attack(wanted=[0, 1])


@pytest.mark.parametrize("attack", [TowardsCenter, TowardsRelevantCodes])
def test_known_items_are_a_gallery(wanted, attack):
    with pytest.raises(TypeError, match="known of type str: expected a Gallery of codes with labels, or None"):
        attack(wanted=wanted, known="train")


@pytest.mark.parametrize(
    "network", [nn.Linear(4, 1), nn.Linear(4, BITS + 1), nn.Sequential(nn.Linear(4, 8), nn.Flatten(0))]
)
def test_a_prototype_has_codes_as_long_as_the_gallery_s(world, wanted, network):
    """A single bit would have been taken for all."""
    model, images, labels, gallery = world
    with pytest.raises(ValueError, match=rf"a network that gives codes \(.*\): expected \({QUERIES}, {BITS}\), as the"):
        attack = Prototype(wanted=wanted, network=network)
        attacks.run(attack, model, images, gallery, PGD(0.1, 0.02, 1), labels=labels)


def test_a_margin_of_two_makes_the_mean_of_a_collision(world):
    model, images, labels, gallery = world
    wanted = draw_labels(labels, gallery.labels, seeded())
    benign, attack = benign_of(world), Collision(wanted=wanted, margin=2)
    targets = attack.targets(benign, seeded())
    outputs = torch.randn(QUERIES, BITS, generator=seeded(5))
    mean = (torch.tanh(outputs) * gallery.codes[targets[:, 0]]).mean(1)
    torch.testing.assert_close(attack.plan(benign, targets).loss(outputs), BITS * (2 - mean))
