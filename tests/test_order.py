"""The order attack: its correlation against oracles and brute force, its targets, its loss, its two modes."""

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, strategies

from robret_lib import attacks
from robret_lib.attacks import NES, PGD, AutoPGD, Benign, OnlyAnswers, OrderAttack, RandomSearch
from robret_lib.attacks.order import kendall_tau, short_range_ranking_correlation
from tests.small_retrieval import DEVICES, DISTANCES, SIZE, gallery_on, seeded, some_split

A, B, C, D, E, X, Y = range(7)
MODES = ["fixed", "reference"]
OWN = torch.arange(0, SIZE, 10)
NOTHING = PGD(0, 0.1, 1)


# The correlation


@pytest.mark.parametrize(
    "shown, expected",
    [
        ((A, B, C, D, E), -0.2),
        ((A, E, D, C, B), 1.0),
        ((A, X, Y, C, B), -0.4),
        ((A, X, Y), -1.0),
        ((B, C, D, E, A), -1.0),
    ],
)
def test_the_correlation_that_can_be_read_off_a_list(shown, expected):
    """The first three are worked examples: first A, B, C, D, E, wanted A, E, D, C, B."""
    wanted = torch.tensor([A, E, D, C, B])
    assert short_range_ranking_correlation(torch.tensor(shown), wanted).item() == pytest.approx(expected)


@given(strategies.permutations(range(9)), strategies.integers(1, 9), strategies.integers(2, 6), strategies.randoms())
def test_the_correlation_is_that_of_all_pairs(order, shown, k, random):
    wanted = random.sample(range(9), k)
    visible = order[:shown]
    total = 0
    for first, second in combinations(wanted, 2):
        right = first in visible and second in visible and visible.index(first) < visible.index(second)
        total += 1 if right else -1
    lists, wanted = torch.tensor([visible, visible]), torch.tensor([wanted, wanted])
    expected = total / (k * (k - 1) / 2)
    assert short_range_ranking_correlation(lists, wanted).tolist() == pytest.approx([expected] * 2)


def test_with_all_items_visible_it_is_kendall_s_tau(model, gallery, searched):
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    plan = OrderAttack(7).plan(benign, OrderAttack(7).targets(benign, seeded()))
    moved = torch.nn.functional.normalize(benign.embeddings + 0.3 * torch.randn(50, 16, generator=seeded(1)), dim=1)
    lists = attacks.RankingOracle(torch.nn.Identity(), gallery, own=OWN)._answers(moved, torch.arange(50))
    assert torch.allclose(plan.answers.loss(lists), -plan.measures(moved)["tau"])


def test_kendall_s_tau_of_all_orders_of_four():
    for values in permutations(range(4)):
        signs = [1 if a < b else -1 for a, b in combinations(values, 2)]
        assert kendall_tau(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(sum(signs) / 6)
    assert kendall_tau(torch.tensor([1.0, 1.0, 2.0])).item() == pytest.approx(2 / 3)  # a tie is neither


# The targets


@pytest.mark.parametrize("mode", MODES)
def test_targets_are_the_nearest_items_in_a_random_order(mode, gallery):
    """With the image itself where an item is an answer to itself."""
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    targets = OrderAttack(5, mode=mode).targets(benign, seeded())
    distances = torch.cdist(gallery.embeddings[OWN].double(), gallery.embeddings.double())
    distances.scatter_(1, OWN[:, None], torch.inf if mode == "fixed" else -1)
    nearest = distances.topk(5, largest=False).indices
    assert torch.equal(targets.sort(1).values, nearest.sort(1).values)
    ranks = (nearest[:, :, None] == targets[:, None]).int().argmax(1)
    assert len({tuple(row) for row in ranks.tolist()}) > 30
    assert (ranks.double().mean(0) - 2).abs().max() < 1


def test_permutations_are_uniform_and_depend_on_the_generator_alone(gallery):
    benign = Benign(gallery, gallery.embeddings)
    drawn = OrderAttack(3).targets(benign, seeded())
    ranks = (benign.nearest(3)[:, :, None] == drawn[:, None]).int().argmax(1)
    counts = torch.stack([(ranks == torch.tensor(order)).all(1).sum() for order in permutations(range(3))])
    assert counts.sum() == SIZE and counts.min() > SIZE / 6 - 4 * (SIZE * 5 / 36) ** 0.5
    assert torch.equal(drawn, OrderAttack(3).targets(benign, seeded()))
    assert not torch.equal(drawn, OrderAttack(3).targets(benign, seeded(1)))


# The loss and the measures


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_that_of_the_paper_summed_by_hand(distance, mode, galleries):
    gallery, attack = galleries[distance], OrderAttack(4, xi=3.0, mode=mode)
    benign = Benign(gallery, gallery.embeddings[OWN[:6]], OWN[:6])
    targets = attack.targets(benign, seeded())
    moved = benign.embeddings + 0.2 * torch.randn(6, 16, generator=seeded(2))
    moved = moved if distance == "E" else torch.nn.functional.normalize(moved, dim=1)
    found = attack.plan(benign, targets).loss(moved)
    for row in range(6):
        if distance == "C":
            d = 1 - gallery.embeddings.double() @ moved[row].double()
        else:
            d = (gallery.embeddings.double() - moved[row].double()).norm(dim=1)
        wanted = d[targets[row]]
        hinges = [(wanted[i] - wanted[j]).clamp(min=0) for i in range(4) for j in range(i + 1, 4)]
        reordering = sum(hinges) / (6 if mode == "fixed" else 16)
        kept = sum((d[c] - d).clamp(min=0).mean() for c in targets[row]) / 4
        assert found[row].item() == pytest.approx((reordering + 3 * kept).item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [2, 5, 10])
def test_before_the_attack_the_order_is_random_and_the_items_are_on_top(k, mode, model, gallery, searched):
    result = attacks.run(OrderAttack(k, mode=mode), model, searched, gallery, NOTHING, torch.arange(SIZE))
    assert torch.equal(result.measured["tau"], result.benign["tau"])
    assert result.measured["tau"].mean().abs() < 0.15
    assert (result.measured["mean_rank"] == (k - 1) / 2).double().mean() > 0.95  # but for ties
    own_is_wanted = (result.targets == torch.arange(SIZE)[:, None]).any(1)
    assert own_is_wanted.all() if mode == "reference" else not own_is_wanted.any()


def test_measures_as_by_hand(model, gallery, searched):
    result = attacks.run(OrderAttack(4), model, searched[OWN], gallery, PGD(0.2, 0.05, 3), OWN, generator=seeded())
    distances = torch.cdist(model(result.images).detach().double(), gallery.embeddings.double())
    distances.scatter_(1, OWN[:, None], torch.inf)
    ranks = distances.argsort(1).argsort(1).gather(1, result.targets)
    assert torch.allclose(result.measured["mean_rank"], ranks.double().mean(1), atol=0.3)
    assert torch.allclose(result.measured["tau"], kendall_tau(ranks), atol=0.4)
    assert torch.isclose(result.measured["tau"], kendall_tau(ranks)).double().mean() > 0.9


# The attack


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_bring_about_the_order(mode, device, models, galleries, searched):
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
    tau = {
        eps: attacks.run(
            OrderAttack(3, mode=mode), model, searched[OWN], gallery, AutoPGD(eps, 24), OWN, generator=seeded()
        ).measured["tau"]
        for eps in (0.02, 0.1)
    }
    model.cpu()
    assert 0.1 < tau[0.02].mean() < tau[0.1].mean()
    assert tau[0.1].mean() > 0.4


def test_the_weight_keeps_the_items_on_top(model, gallery, searched):
    ranks = [
        attacks.run(
            OrderAttack(5, xi), model, searched[OWN], gallery, AutoPGD(0.1, 16), OWN, generator=seeded()
        ).measured["mean_rank"]
        for xi in (0, 10, 1000)
    ]
    assert ranks[0].mean() > ranks[1].mean() > ranks[2].mean()


def test_what_makes_no_sense_is_refused():
    for options, message in (
        ({"k": 1}, "k=1: expected a whole number of at least 2"),
        ({"xi": -1}, "xi=-1: expected a finite number of at least 0"),
        ({"mode": "right"}, "mode='right': expected 'fixed' or 'reference'"),
    ):
        with pytest.raises(ValueError, match=message):
            OrderAttack(**options)


# With answers only


@pytest.mark.parametrize("mode", MODES)
def test_answers_alone_bring_it_about_and_fewer_of_them_less(mode, model, gallery, searched):
    tau, own = {}, OWN[::2]
    for name, search in (("rand", RandomSearch), ("nes", NES)):
        for visible in (None, 5):
            only = OnlyAnswers(search(0.1, 200, stop_below=-0.99), visible)
            result = attacks.run(
                OrderAttack(5, mode=mode), model, searched[own], gallery, only, own, generator=seeded()
            )
            tau[name, visible] = result.measured["tau"].mean().item()
            assert result.passes <= 200 and result.backward_passes == 0
            assert (result.measured["tau"] >= result.benign["tau"] - 1e-9).all() or visible is not None
    assert tau["nes", None] > tau["rand", None] > result.benign["tau"].mean()
    assert tau["nes", 5] < tau["nes", None]


def test_strangers_are_put_in_order_too(model, gallery):
    strangers = some_split(20, seed=60).images
    result = attacks.run(OrderAttack(3), model, strangers, gallery, AutoPGD(0.1, 16), generator=seeded())
    assert result.measured["tau"].mean() > result.benign["tau"].mean() + 0.3
