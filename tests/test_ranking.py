"""Candidate, query and semantics-preserving attacks: targets, ranks and objectives against the obvious formulas."""

import pytest
import torch
from torch import Tensor

from robret_lib import attacks
from robret_lib.attacks import PGD, Benign, Gallery, pgd, ranking
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, DISTANCES, SIZE, seeded

DIRECTIONS = ["raise", "lower"]
MODES = ["fixed", "reference"]
ATTACKS = {
    "CA": ranking.CandidateAttack,
    "QA": ranking.QueryAttack,
    "SPQA": ranking.SemanticsPreservingQueryAttack,
}

POOL = 5  # the top 1 % of 500
BUDGET = PGD(eps=0.2, step=0.02, steps=16)
NOTHING = PGD(eps=0, step=0.1, steps=1)


def run_attack(name, model, images, own, gallery, direction, search, *, generator=None, batch_size=256, **fields):
    attack = ATTACKS[name](direction, **fields)
    return attacks.run(attack, model, images, gallery, search, own, generator=generator, batch_size=batch_size)


def slow_distances(u: Tensor, gallery: Gallery) -> Tensor:
    """``[B, N]`` from embeddings to the gallery by explicit differences, in float64."""
    u, v = u.double(), gallery.embeddings.double()
    if gallery.distance == "C":
        return 1 - u @ v.T
    return (u[:, None] - v).norm(dim=2)


def neighbors(gallery: Gallery, position: int) -> list[int]:
    """All other items, nearest first."""
    row = slow_distances(gallery.embeddings[position][None], gallery)[0].tolist()
    return sorted((x for x in range(len(gallery)) if x != position), key=lambda x: row[x])


def slow_candidate_rank(adversarial: Tensor, own: Tensor, targets: Tensor, gallery: Gallery, mode: str) -> Tensor:
    """Percentile rank ``[B]`` of each candidate in the rankings of its queries, counted item by item."""
    percent = []
    for c, position, queries in zip(adversarial, own.tolist(), targets.tolist(), strict=True):
        closer, to_candidate = 0, slow_distances(c[None], gallery)[0].tolist()
        for q in queries:
            row = slow_distances(gallery.embeddings[q][None], gallery)[0].tolist()
            not_counted = {position, q} if mode == "fixed" else set()
            closer += sum(1 for x in range(len(gallery)) if x not in not_counted and row[x] < to_candidate[q])
        percent.append(100 * closer / len(queries) / len(gallery))
    return torch.tensor(percent, dtype=torch.float64)


def slow_query_rank(adversarial: Tensor, own: Tensor, candidates: Tensor, gallery: Gallery, mode: str) -> Tensor:
    """Mean percentile rank ``[B]`` of the candidates in each query's ranking, counted item by item."""
    percent = []
    to_all = slow_distances(adversarial, gallery).tolist()
    for row, position, chosen in zip(to_all, own.tolist(), candidates.tolist(), strict=True):
        counted = [x for x in range(len(gallery)) if not (mode == "fixed" and x == position)]
        closer = sum(sum(1 for x in counted if row[x] < row[c]) for c in chosen)
        percent.append(100 * closer / len(chosen) / len(gallery))
    return torch.tensor(percent, dtype=torch.float64)


def slow_loss(attack, direction, result, own, gallery, mode, stiffness=4e4):
    """The objective as the paper writes it, by plain autograd, on the targets an attack drew."""

    def hinge(left: Tensor, right: Tensor, raised: bool) -> Tensor:
        return (left - right if raised else right - left).relu()

    def distance(u: Tensor, v: Tensor) -> Tensor:
        return 1 - (u * v).sum(-1) if gallery.distance == "C" else (u - v).square().sum(-1).add(1e-12).sqrt()

    def query_loss(e: Tensor, candidates: Tensor, raised: bool) -> Tensor:
        to_all = distance(e[:, None], gallery.embeddings)
        return hinge(to_all.gather(1, candidates)[..., None], to_all[:, None], raised).mean((1, 2))

    def loss(e: Tensor) -> Tensor:
        if attack == "CA":
            queries = gallery.embeddings[result.targets]
            to_all = distance(queries[:, :, None], gallery.embeddings)
            return hinge(distance(queries, e[:, None])[..., None], to_all, direction == "raise").mean((1, 2))
        attacked = query_loss(e, result.targets, direction == "raise")
        if attack == "QA":
            return attacked
        kept = query_loss(e, preserved_by_hand(gallery, own, result.targets, direction), True)
        level = kept if mode == "fixed" else kept.mean()
        return attacked + (stiffness * level.detach()).exp().clamp(max=1e9) * kept

    return loss


def preserved_by_hand(gallery: Gallery, own: Tensor, targets: Tensor, direction: str) -> Tensor:
    """The five nearest, less the targets if those were taken from the top."""
    rows = []
    for position, taken in zip(own.tolist(), targets.tolist(), strict=True):
        taken = taken if direction == "lower" else []
        rows.append([x for x in neighbors(gallery, position) if x not in taken][:5])
    return torch.tensor(rows)


# Which targets are drawn


@pytest.mark.parametrize("attack", ATTACKS)
def test_raising_draws_from_the_whole_gallery_with_replacement(attack, model, searched):
    """Of 20 items, 400 draws meet every one; the own one only in reference mode."""
    gallery, own = Gallery.of(model, searched[:20]), torch.arange(20)
    for mode in MODES:
        result = run_attack(
            attack, model, searched[:20], own, gallery, "raise", NOTHING, n_targets=400, mode=mode, generator=seeded()
        )
        assert result.targets.shape == (20, 400)
        for position, targets in zip(own.tolist(), result.targets.tolist(), strict=True):
            expected = set(range(20)) - ({position} if mode == "fixed" else set())
            assert set(targets) == expected


def test_raising_draws_evenly(model, searched):
    gallery, own = Gallery.of(model, searched[:20]), torch.full((50,), 7)
    images = searched[own]
    for mode, choices in (("fixed", 19), ("reference", 20)):
        result = run_attack(
            "QA", model, images, own, gallery, "raise", NOTHING, n_targets=400, mode=mode, generator=seeded()
        )
        share = result.targets.flatten().bincount(minlength=20) / result.targets.numel()
        drawn = share[share > 0]
        assert len(drawn) == choices and (drawn * choices - 1).abs().max() < 0.15


@pytest.mark.parametrize("mode", MODES)
def test_a_falling_candidate_gets_queries_from_its_top_one_percent_with_replacement(mode, model, gallery, searched):
    own = torch.tensor([3, 77, 499])
    result = run_attack(
        "CA", model, searched[own], own, gallery, "lower", NOTHING, n_targets=60, mode=mode, generator=seeded()
    )
    for position, targets in zip(own.tolist(), result.targets.tolist(), strict=True):
        assert set(targets) == set(neighbors(gallery, position)[:POOL])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack", ["QA", "SPQA"])
def test_falling_candidates_come_from_the_query_s_top_one_percent_without_replacement(
    attack, mode, model, gallery, searched
):
    own = torch.arange(40)
    arguments = model, searched[own], own, gallery, "lower", NOTHING
    first = [
        run_attack(attack, *arguments, n_targets=2, mode=mode, generator=seeded(seed)).targets for seed in range(20)
    ]
    everything = run_attack(attack, *arguments, n_targets=POOL, mode=mode, generator=seeded()).targets
    for row, position in enumerate(own.tolist()):
        pool = set(neighbors(gallery, position)[:POOL])
        assert set(everything[row].tolist()) == pool
        assert all(len(set(targets[row].tolist())) == 2 for targets in first)
        assert set(torch.cat(first, 1)[row].tolist()) == pool
    with pytest.raises(ValueError, match="n_targets=6: the top 1 % of a gallery of 500 holds 5"):
        run_attack(attack, *arguments, n_targets=POOL + 1, mode=mode)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_preserved_set(direction, count, model, gallery, searched):
    own = torch.arange(30)
    targets = run_attack(
        "QA", model, searched[own], own, gallery, direction, NOTHING, n_targets=count, generator=seeded()
    ).targets
    actual = ranking._preserved_set(Benign(gallery, gallery.embeddings[own], own), targets, direction)
    assert torch.equal(actual, preserved_by_hand(gallery, own, targets, direction))


def test_the_preserved_set_of_a_large_gallery_stays_inside_the_top_one_percent(model):
    """There it is what the published code takes: the five best of the pool that are left."""
    gallery = Gallery(torch.nn.functional.normalize(torch.randn(2000, 16, generator=seeded()), dim=1))
    own = torch.arange(20)
    benign = Benign(gallery, gallery.embeddings[own], own)
    targets = ranking.QueryAttack("lower", n_targets=10).targets(benign, seeded())
    preserved = ranking._preserved_set(benign, targets, "lower")
    for position, taken, kept in zip(own.tolist(), targets.tolist(), preserved.tolist(), strict=True):
        pool = neighbors(gallery, position)[:20]
        assert kept == [x for x in pool if x not in taken][:5]


def test_the_neighbors_of_items_in_chunks(gallery):
    own = torch.tensor([4, 0, 499, 4])
    expected = torch.tensor([neighbors(gallery, position)[:7] for position in own.tolist()])
    for chunk in (1, 3, 1024):
        assert torch.equal(gallery.nearest(own, 7, chunk), expected)


def test_distances_of_items(galleries):
    for gallery in galleries.values():
        positions = torch.tensor([[1, 2, 3], [4, 5, 6]])
        distances = gallery.distances(positions)
        assert distances.shape == (2, 3, SIZE)
        expected = slow_distances(gallery.embeddings[positions.flatten()], gallery).view(2, 3, SIZE)
        torch.testing.assert_close(distances.double(), expected, rtol=1e-4, atol=3e-3)


# How ranks are counted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_ranks_are_counted_as_by_hand(attack, direction, distance, mode, models, galleries, searched):
    """Up to one item in 500, where two distances are equal within rounding.

    As those of a candidate to the query, once from its image and once from the gallery, always are before a CA.
    """
    model, gallery, own = models[distance], galleries[distance], torch.arange(3, 15)
    result = run_attack(
        attack,
        model,
        searched[own],
        own,
        gallery,
        direction,
        PGD(0.1, 0.05, 2),
        n_targets=2,
        mode=mode,
        generator=seeded(1),
    )
    by_hand = slow_candidate_rank if attack == "CA" else slow_query_rank
    attacked = embed(model, result.images)
    for embeddings, actual in ((attacked, result.measured["rank"]), (gallery.embeddings[own], result.benign["rank"])):
        expected = by_hand(embeddings, own, result.targets, gallery, mode)
        assert (actual - expected).abs().max() <= 100 / SIZE + 1e-9
        if not (attack == "CA" and mode == "reference" and embeddings is not attacked):
            assert (actual == expected).sum() >= len(own) - 2
    if attack == "SPQA":
        preserved = preserved_by_hand(gallery, own, result.targets, direction)
        expected = slow_query_rank(attacked, own, preserved, gallery, mode)
        assert (result.measured["preserved_rank"] - expected).abs().max() <= 100 / SIZE + 1e-9
    else:
        assert set(result.measured) == set(result.benign) == {"rank"}


def test_reference_ranks_count_the_query_and_the_candidate_themselves(model, gallery, searched):
    """+1 where the query stands in its own list, and the candidate behind or before its equal at eps = 0."""
    own = torch.arange(40)
    for attack in ("QA", "CA"):
        results = [
            run_attack(attack, model, searched[own], own, gallery, "lower", NOTHING, mode=mode, generator=seeded(2))
            for mode in MODES
        ]
        assert torch.equal(results[0].targets, results[1].targets)
        difference = (results[1].benign["rank"] - results[0].benign["rank"]) * SIZE / 100
        allowed = {1} if attack == "QA" else {1, 2}
        assert set(difference.round(decimals=6).tolist()) <= allowed


# What the attacks do


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_radius_nothing_changes_and_ranks_are_the_benign_ones(
    device, attack, mode, model, galleries, searched
):
    model, own = model.to(device), torch.arange(SIZE)
    gallery = Gallery(galleries["N"].embeddings.to(device))
    mean = {}
    for direction in DIRECTIONS:
        result = run_attack(attack, model, searched, own, gallery, direction, NOTHING, mode=mode, generator=seeded(3))
        assert torch.equal(result.images, searched)
        assert (result.measured["rank"] - result.benign["rank"]).abs().max() <= 100 / SIZE + 1e-9
        mean[direction] = result.benign["rank"].mean()
    model.cpu()
    assert 45 < mean["raise"] < 55
    if attack == "CA":
        assert 0.4 < mean["lower"] < 2
    else:  # uniform over positions 1..T of the list with self, 0..T-1 of the list without
        expected = 100 * ((POOL + 1) / 2 - (mode == "fixed")) / SIZE
        assert mean["lower"] == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_move_ranks_where_they_should_within_the_budget(
    device, attack, distance, mode, models, galleries, searched
):
    own, extra = torch.arange(0, SIZE, 5), {"stiffness": 300.0} if attack == "SPQA" else {}
    model, gallery = models[distance].to(device), Gallery(galleries[distance].embeddings.to(device), distance)
    for direction in DIRECTIONS:
        result = run_attack(
            attack, model, searched[own], own, gallery, direction, BUDGET, mode=mode, generator=seeded(4), **extra
        )
        shift = result.images - searched[own]
        assert shift.abs().max() <= BUDGET.eps + 1e-6
        assert result.images.min() >= 0 and result.images.max() <= 1
        before, after = result.benign["rank"].mean(), result.measured["rank"].mean()
        if direction == "raise":
            assert after < before - 20
        else:
            assert after > before + 20
    model.cpu()


@pytest.mark.parametrize("attack", ["CA", "QA"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_targets_are_harder_to_move(attack, direction, model, gallery, searched):
    own = torch.arange(0, SIZE, 5)
    moved = []
    for count in (1, 5):
        result = run_attack(
            attack, model, searched[own], own, gallery, direction, BUDGET, n_targets=count, generator=seeded(5)
        )
        moved.append((result.measured["rank"] - result.benign["rank"]).mean().abs())
    assert moved[0] > moved[1] > 1


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_preserved_set_stays_nearer_the_top_than_without_preserving_it(direction, model, gallery, searched):
    own = torch.arange(0, SIZE, 5)
    arguments = model, searched[own], own, gallery, direction, BUDGET
    kept = run_attack("SPQA", *arguments, generator=seeded(6))
    free = run_attack("QA", *arguments, generator=seeded(6))
    assert torch.equal(kept.targets, free.targets)
    preserved = preserved_by_hand(gallery, own, free.targets, direction)
    without = slow_query_rank(embed(model, free.images), own, preserved, gallery, "fixed")
    assert kept.measured["preserved_rank"].mean() < 0.5 * without.mean()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_descend_the_published_objective(attack, direction, distance, mode, models, galleries, searched):
    """The same targets and steps with the loss written out give the same images, but for signs lost in rounding."""
    model, gallery, own = models[distance], galleries[distance], torch.arange(20, 36)
    budget = PGD(0.2, 0.05, 2)
    extra = {"stiffness": 100.0} if attack == "SPQA" else {}
    result = run_attack(
        attack,
        model,
        searched[own],
        own,
        gallery,
        direction,
        budget,
        n_targets=2,
        mode=mode,
        generator=seeded(7),
        **extra,
    )
    loss = slow_loss(attack, direction, result, own, gallery, mode, **extra)
    expected = pgd(model, searched[own], loss, budget)
    assert (result.images - expected).abs().gt(1e-6).double().mean() < 0.03


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("random_start", [False, True])
def test_the_batch_size_does_not_matter(device, attack, direction, random_start, model, galleries, searched):
    """But for the pixels whose gradient is zero within float32 rounding."""
    model, own = model.to(device), torch.arange(0, SIZE, 10)
    gallery = Gallery(galleries["N"].embeddings.to(device))
    budget = PGD(0.2, 0.05, 6, random_start=random_start)
    whole, parts = (
        run_attack(
            attack,
            model,
            searched[own],
            own,
            gallery,
            direction,
            budget,
            n_targets=2,
            generator=seeded(8),
            batch_size=size,
        )
        for size in (256, 7)
    )
    model.cpu()
    assert torch.equal(whole.targets, parts.targets)
    assert torch.equal(whole.benign["rank"], parts.benign["rank"])
    same = (whole.images == parts.images).double().mean((1, 2, 3))
    assert same.mean() > 0.97
    assert whole.measured["rank"].mean() == pytest.approx(parts.measured["rank"].mean(), abs=0.5)


def test_the_reference_weight_of_the_preserved_set_couples_the_batch(model, gallery, searched):
    own = torch.arange(0, SIZE, 10)
    results = {
        (mode, size): run_attack(
            "SPQA",
            model,
            searched[own],
            own,
            gallery,
            "raise",
            BUDGET,
            stiffness=300.0,
            mode=mode,
            generator=seeded(8),
            batch_size=size,
        ).images
        for mode in MODES
        for size in (50, 5)
    }

    def changed(mode):
        return (results[mode, 50] != results[mode, 5]).double().mean()

    assert changed("reference") > 0.1 > 10 * changed("fixed")


def test_the_weight_of_the_preserved_set():
    preservation = torch.tensor([0.0, 1e-5, 1e-4, 1e-2, 1.0])
    fixed = ranking._xi(preservation, 4e4, "fixed")
    expected = torch.tensor([1.0, 1.4918247, 54.59815, 1e9, 1e9])
    torch.testing.assert_close(fixed, expected, rtol=1e-5, atol=0)
    reference = ranking._xi(preservation[:3], 4e4, "reference")
    assert reference.ndim == 0
    assert reference.item() == pytest.approx(torch.tensor(4e4 * 1.1e-4 / 3).exp().item(), rel=1e-5)


@pytest.mark.parametrize("exponent, expected", [(20.0, 485165195.4), (21.0, 1e9), (709.5, 1e9), (710.0, 1e9)])
def test_the_reference_weight_saturates_and_overflows_as_published(exponent, expected):
    xi = ranking._xi(torch.tensor([exponent], dtype=torch.float64), 1.0, "reference")
    assert xi.item() == pytest.approx(expected)


def test_images_of_bytes_and_of_floats_are_attacked_alike(model, gallery, searched):
    own = torch.arange(8)
    images = (searched[own] * 255).round().to(torch.uint8)
    as_bytes = run_attack("QA", model, images, own, gallery, "raise", BUDGET, generator=seeded(9))
    as_floats = run_attack("QA", model, images.float() / 255, own, gallery, "raise", BUDGET, generator=seeded(9))
    assert as_bytes.images.dtype == torch.float32
    assert torch.equal(as_bytes.images, as_floats.images)
    assert torch.equal(as_bytes.measured["rank"], as_floats.measured["rank"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_autocast_changes_little(device, attack, model, galleries, searched):
    """The network may run in bfloat16; distances and ranks may not."""
    own = torch.arange(0, SIZE, 5)
    model, gallery = model.to(device), Gallery(galleries["N"].embeddings.to(device))
    arguments = model, searched[own], own, gallery
    for direction in DIRECTIONS:
        precise = run_attack(attack, *arguments, direction, BUDGET, generator=seeded(10))
        with torch.autocast(device, torch.bfloat16):
            coarse = run_attack(attack, *arguments, direction, BUDGET, generator=seeded(10))
        assert coarse.images.dtype == torch.float32
        assert torch.equal(coarse.targets, precise.targets)
        assert torch.equal(coarse.benign["rank"], precise.benign["rank"])
        assert coarse.measured["rank"].mean() == pytest.approx(precise.measured["rank"].mean(), abs=3)
    model.cpu()


def test_one_forward_a_step_and_one_to_measure(model, gallery, searched):
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    own = torch.arange(24)
    for attack in ATTACKS:
        calls.clear()
        run_attack(attack, model, searched[own], own, gallery, "raise", PGD(0.1, 0.05, 5), batch_size=8)
        compared = 1  # a few images with the gallery's items
        assert len(calls) == compared + 3 * (5 + 1) and sum(calls) == 3 * 5
    handle.remove()


def test_the_model_and_the_random_state_are_left_as_they_were_found(models, gallery, searched):
    """Also where parts of the model are in training mode and parts are not."""
    model = models["N"]
    model.train()
    model.backbone[5].eval()
    model.backbone[0].weight.requires_grad_(False)
    model.backbone[5].bias.grad = torch.ones(16)
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state, own = torch.get_rng_state(), torch.arange(16)
    for attack in ATTACKS:
        run_attack(attack, model, searched[own], own, gallery, "lower", PGD(0.1, 0.05, 2), generator=seeded())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert not model.backbone[0].weight.requires_grad and model.backbone[5].weight.requires_grad
    assert model.backbone[5].weight.grad is None
    assert torch.equal(model.backbone[5].bias.grad, torch.ones(16))
    assert torch.equal(torch.get_rng_state(), random_state)
    model.backbone[0].weight.requires_grad_(True)
    model.backbone[5].bias.grad = None
    model.eval()


def test_a_seed_repeats_a_result_and_another_gives_another(model, gallery, searched):
    own = torch.arange(16)
    for attack in ATTACKS:
        first, again, other = (
            run_attack(attack, model, searched[own], own, gallery, "raise", BUDGET, generator=seeded(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(first.images, again.images) and torch.equal(first.measured["rank"], again.measured["rank"])
        assert not torch.equal(first.targets, other.targets)


# What is refused


@pytest.mark.parametrize("attack", ATTACKS)
def test_impossible_calls_are_refused(attack, models, model, gallery, searched):
    images, own = searched[:4], torch.arange(4)
    refused = [
        ((model, images, own[:3], gallery, "raise", BUDGET), "4 images and 3 gallery positions: expected one"),
        ((model, images[:0], own[:0], gallery, "raise", BUDGET), "0 images: expected at least one"),
        ((model, images, own - 1, gallery, "raise", BUDGET), "own holds -1 to 2: the gallery has 500 items"),
        ((model, images, own + 497, gallery, "raise", BUDGET), "own holds 497 to 500: the gallery has 500 items"),
        ((model, images, own + 4, gallery, "raise", BUDGET), "does not embed these images as the gallery's items"),
        ((models["C"], images, own, gallery, "raise", BUDGET), "the model's distance is 'C', the gallery's 'N'"),
        ((model, images * 255, own, gallery, "raise", BUDGET), "expected \\[0, 1\\]; pixel normalization belongs"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            run_attack(attack, *arguments)
    with pytest.raises(ValueError, match="n_targets=0: expected a whole number of at least 1"):
        run_attack(attack, model, images, own, gallery, "raise", BUDGET, n_targets=0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_words_that_are_no_direction_or_mode_are_refused(attack, model, gallery, searched):
    own = torch.arange(4)
    with pytest.raises(ValueError, match="direction='up': expected 'raise' or 'lower'"):
        run_attack(attack, model, searched[own], own, gallery, "up", BUDGET)
    with pytest.raises(ValueError, match="mode='Fixed': expected 'fixed' or 'reference'"):
        run_attack(attack, model, searched[own], own, gallery, "raise", BUDGET, mode="Fixed")


@pytest.mark.parametrize("stiffness", [float("nan"), -1.0])
def test_an_impossible_stiffness_is_refused(stiffness):
    with pytest.raises(ValueError, match="stiffness=.*: expected a finite number of at least 0"):
        ranking.SemanticsPreservingQueryAttack("raise", stiffness=stiffness)


def test_galleries_that_are_too_small_are_refused(model, searched):
    with pytest.raises(ValueError, match=r"embeddings \(16,\): expected \[N, D\] with N of at least 2"):
        Gallery(torch.zeros(16))
    with pytest.raises(ValueError, match=r"embeddings \(1, 16\): expected"):
        Gallery(torch.zeros(1, 16))
    own = torch.arange(5)
    gallery = Gallery.of(model, searched[:5])
    with pytest.raises(ValueError, match="5 neighbors wanted of one image in a gallery of 5: use a larger gallery"):
        run_attack("SPQA", model, searched[:5], own, gallery, "raise", BUDGET)
