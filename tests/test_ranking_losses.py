"""The hinges of the ranking attacks and their gradients, against the formula written out difference by difference."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from robret_lib.attacks import Gallery
from robret_lib.attacks.ranking_losses import HingeItems, ItemSets, QueryHinges, SoftMargin, SortedDistances
from robret_lib.distances import pairwise_distance, row_distance
from tests.small_retrieval import DEVICES

DISTANCES = ["N", "E", "C"]
TARGETS = [1, 2, 5, 10]
SIZE, DIM, BATCH = 40, 7, 6


def vectors(count, distance, seed, dtype=torch.float64):
    values = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values if distance == "E" else normalize(values, dim=1)


def slow_distance(u: Tensor, v: Tensor, distance: str) -> Tensor:
    """Between the last axes of two broadcastable tensors, by explicit differences."""
    if distance == "C":
        return (u - v).square().sum(-1) / 2
    return (u - v).square().sum(-1).sqrt()


def slow_candidate_hinge(candidate: Tensor, queries: Tensor, gallery: Tensor, raised: bool, distance: str) -> Tensor:
    """``[B, w]``: one loop over candidates, queries and gallery items."""
    rows = []
    for c, targets in zip(candidate, queries, strict=True):
        row = []
        for q in targets:
            to_candidate = slow_distance(q, c, distance)
            hinges = [(to_candidate - slow_distance(q, x, distance)) * (1 if raised else -1) for x in gallery]
            row.append(torch.stack(hinges).relu().mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def slow_query_hinge(queries: Tensor, gallery: Tensor, candidates: Tensor, signs: Tensor, distance: str) -> Tensor:
    """``[B, m]``: one loop over queries and candidates; a candidate is a gallery item, as in the papers."""
    rows = []
    for q, positions in zip(queries, candidates, strict=True):
        all_distances = slow_distance(q, gallery, distance)
        row = [
            (sign * (all_distances[c] - all_distances)).relu().mean() for c, sign in zip(positions, signs, strict=True)
        ]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def positions(count, seed):
    return torch.randint(SIZE, (BATCH, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_to_a_gallery_are_the_library_s(distance):
    queries, gallery = vectors(BATCH, distance, 0), vectors(SIZE, distance, 1)
    actual = Gallery(gallery, distance).distances_from(queries)
    torch.testing.assert_close(actual, pairwise_distance(queries, gallery, distance), rtol=0, atol=1e-12)
    torch.testing.assert_close(actual, slow_distance(queries[:, None], gallery, distance), rtol=0, atol=1e-12)


def test_half_the_squared_distance_of_unit_vectors_is_the_cosine_distance_with_its_gradient():
    u, v = vectors(BATCH, "E", 0).requires_grad_(True), vectors(BATCH, "C", 1)
    half, cosine = row_distance(normalize(u, dim=1), v, "C"), 1 - (normalize(u, dim=1) * v).sum(1)
    torch.testing.assert_close(half, cosine, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(distance.sum(), u)[0] for distance in (half, cosine)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_autocast_does_not_coarsen_distances(device, distance):
    queries, gallery = (vectors(n, distance, n, torch.float32).to(device) for n in (BATCH, SIZE))
    gallery = Gallery(gallery, distance)
    expected = gallery.distances_from(queries)
    with torch.autocast(device, torch.bfloat16):
        actual = gallery.distances_from(queries)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_between_rows(distance):
    queries = vectors(BATCH * 3, distance, 2).view(BATCH, 3, DIM).requires_grad_(True)
    candidates = vectors(BATCH, distance, 3)[:, None].requires_grad_(True)
    expected = slow_distance(queries, candidates, distance)
    torch.testing.assert_close(row_distance(queries, candidates, distance), expected)
    assert torch.autograd.gradcheck(lambda q, c: row_distance(q, c, distance), (queries, candidates))


@pytest.mark.parametrize("distance", ["N", "E"])
def test_the_gradient_of_the_distance_to_oneself_is_zero_not_nan(distance):
    u = vectors(2, distance, 4)[:, None].requires_grad_(True)
    (gradient,) = torch.autograd.grad(row_distance(u, u.detach(), distance).sum(), u)
    assert torch.equal(gradient, torch.zeros_like(u))


def sorted_distances(distance, count, seed=5):
    """Queries drawn from the gallery, as the attack does, so that every row holds a zero."""
    gallery = vectors(SIZE, distance, seed)
    queries = gallery[positions(count, seed)]
    return gallery, queries, SortedDistances(slow_distance(queries[:, :, None], gallery, distance))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize("count", TARGETS)
def test_the_hinge_of_a_candidate_and_its_gradient(distance, raised, count):
    gallery, queries, benign = sorted_distances(distance, count)
    candidate = vectors(BATCH, distance, 6).requires_grad_(True)
    actual = benign.hinge(row_distance(queries, candidate[:, None], distance), raised)
    expected = slow_candidate_hinge(candidate, queries, gallery, raised, distance)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    weights = torch.rand(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for loss in (actual, expected):
        assert (loss > 0).any()
    torch.testing.assert_close(
        torch.autograd.grad((weights * actual).sum(), candidate),
        torch.autograd.grad((weights * expected).sum(), candidate),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("raised", [True, False])
def test_the_hinge_of_a_candidate_passes_gradcheck(raised):
    _, queries, benign = sorted_distances("E", 2)
    candidate = vectors(BATCH, "E", 8).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda c: benign.hinge(row_distance(queries, c[:, None], "E"), raised), (candidate,)
    )


@pytest.mark.parametrize("raised", [True, False])
def test_the_hinge_below_and_above_all_distances(raised):
    """k = 0 and k = N, the two ends of the lookup."""
    distances = torch.tensor([[[3.0, 1.0, 2.0]]])
    for t, expected in ((0.5, 0 if raised else 1.5), (4.0, 2.0 if raised else 0)):
        assert SortedDistances(distances).hinge(torch.tensor([[t]]), raised).item() == pytest.approx(expected)


def test_ranks_against_a_loop():
    _, queries, benign = sorted_distances("N", 3)
    t = row_distance(queries, vectors(BATCH, "N", 9)[:, None], "N")
    t[0, 0], t[0, 1], t[0, 2] = 0, 3, benign.values[0, 2, 4]  # closer than all, further than all, and a tie
    expected = torch.tensor(
        [[sum(1 for x in benign.values[i, j] if x < t[i, j]) for j in range(3)] for i in range(BATCH)]
    )
    assert torch.equal(benign.rank(t), expected)
    assert benign.rank(t)[0].tolist() == [0, SIZE, 4]


def test_the_hinge_of_a_large_gallery_keeps_its_digits():
    """In float32, with 100,000 items: a running sum in float32 would be off in the third digit."""
    distances = torch.rand(2, 1, 100_000, generator=torch.Generator().manual_seed(10)) * 1e-3 + 1
    t = torch.tensor([[1.0005], [1.00001]])
    expected = (t[..., None].double() - distances.double()).relu().mean(-1)
    actual = SortedDistances(distances).hinge(t, True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-7, check_dtype=False)


def over_all(gallery: Gallery, candidates: Tensor) -> HingeItems:
    return HingeItems(gallery, candidates, len(gallery))


def hinges_and_gradient(queries, gallery, candidates, signs, distance, upstream):
    queries = queries.clone().requires_grad_(True)
    hinges = QueryHinges.apply(queries, over_all(Gallery(gallery, distance), candidates), signs)
    return hinges.detach(), torch.autograd.grad((hinges * upstream).sum(), queries)[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("count", TARGETS)
def test_the_hinges_of_a_query_and_their_gradient(device, distance, sign, count):
    queries, gallery = vectors(BATCH, distance, 11).requires_grad_(True), vectors(SIZE, distance, 12)
    candidates, signs = positions(count, 13), torch.full((count,), sign, dtype=torch.float64)
    upstream = torch.rand(BATCH, count, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    expected = slow_query_hinge(queries, gallery, candidates, signs, distance)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), queries)
    given = (tensor.detach().to(device) for tensor in (queries, gallery, candidates, signs))
    actual, gradient = hinges_and_gradient(*given, distance, upstream.to(device))
    torch.testing.assert_close(actual.cpu(), expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=0, atol=1e-12)
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_hinges_of_a_query_pass_gradcheck_with_mixed_signs_and_repeated_candidates(distance):
    """As in the semantics-preserving attack: some candidates fall, some are kept up, and one is drawn twice."""
    queries, gallery = vectors(BATCH, distance, 15).requires_grad_(True), vectors(SIZE, distance, 16)
    candidates = positions(4, 17)
    candidates[:, 1] = candidates[:, 0]
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    searched = Gallery(gallery, distance)
    assert torch.autograd.gradcheck(lambda q: QueryHinges.apply(q, over_all(searched, candidates), signs), (queries,))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gradient_of_a_query_that_is_a_gallery_item(distance, sign):
    """The first step of every attack: the query's own item, at distance zero, must add nothing to the gradient.

    In float32, where that distance is rounding noise, and against float64 without the own item. The noise is at least
    about sqrt(eps) times the length of the query, and what is divided by it is rounded to eps times that length: what
    is left is some sqrt(eps) times the slope, 2 of 40, where that item counts (2.9 at most in 2,400 draws).
    """
    gallery = vectors(SIZE, distance, 18)
    queries, candidates = gallery[:BATCH], positions(2, 19).clamp(min=BATCH)
    signs, upstream = torch.full((2,), sign, dtype=torch.float64), torch.ones(BATCH, 2, dtype=torch.float64)
    single = [tensor.float() for tensor in (queries, gallery)]
    _, gradient = hinges_and_gradient(*single, candidates, signs.float(), distance, upstream.float())
    divided_by_noise = distance != "C" and sign > 0
    bound = 4 * (2 / SIZE) * torch.finfo(torch.float32).eps ** 0.5 if divided_by_noise else 4e-6
    for i in range(BATCH):
        q = queries[i].clone().requires_grad_(True)
        others = slow_distance(q, gallery[torch.arange(SIZE) != i], distance)
        own = slow_distance(q, gallery[i], "C")[None] if distance == "C" else torch.zeros(1, dtype=torch.float64)
        to_all = torch.cat([own, others])  # for "C" the own item does have a slope, -x
        hinges = [(sign * (slow_distance(q, gallery[c], distance) - to_all)).relu().mean() for c in candidates[i]]
        expected = torch.autograd.grad(torch.stack(hinges).sum(), q)[0]
        torch.testing.assert_close(gradient[i].double(), expected, rtol=0, atol=bound)


def test_only_the_queries_get_a_gradient():
    queries, gallery = vectors(BATCH, "N", 20).requires_grad_(True), vectors(SIZE, "N", 21).requires_grad_(True)
    signs = torch.ones(1, dtype=torch.float64)
    QueryHinges.apply(queries, over_all(Gallery(gallery), positions(1, 22)), signs).sum().backward()
    assert queries.grad is not None and gallery.grad is None


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_hinges_over_a_sample_are_those_over_its_items(distance, sign, monkeypatch):
    """The candidates, few of which are in it, keep their places; the published form takes all items."""
    monkeypatch.setattr("robret_lib.attacks.gallery.SAMPLE", 13)
    items, candidates = vectors(SIZE, distance, 23), positions(3, 24)
    queries, signs = vectors(BATCH, distance, 25).requires_grad_(True), torch.full((3,), sign, dtype=torch.float64)
    gallery = Gallery(items, distance)
    for mode, counted in (("fixed", gallery.sample), ("reference", items)):
        pairs = zip(queries, candidates, strict=True)
        to_candidates = torch.stack([slow_distance(q, items[c], distance) for q, c in pairs])
        to_items = torch.stack([slow_distance(q, counted, distance) for q in queries])
        expected = (sign * (to_candidates[..., None] - to_items[:, None])).relu().mean(2)
        found = QueryHinges.apply(queries, HingeItems.of(gallery, candidates, mode), signs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        gradients = [torch.autograd.grad(loss.square().sum(), queries)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [60, 61, 77, 119])
def test_the_sample_holds_one_item_of_each_stretch(count, monkeypatch):
    monkeypatch.setattr("robret_lib.attacks.gallery.SAMPLE", 60)
    gallery = Gallery(torch.arange(1.0, count + 1)[:, None])
    found = gallery.sample[:, 0].long() - 1
    stretches = [range(i * count // 60, (i + 1) * count // 60) for i in range(60)]
    assert all(position in stretch for position, stretch in zip(found.tolist(), stretches, strict=True))
    assert torch.equal(found, Gallery(gallery.embeddings).sample[:, 0].long() - 1)  # whatever was drawn in between


def test_no_pattern_of_the_order_falls_in_with_the_sample(monkeypatch):
    """Every third item would be of one class here."""
    monkeypatch.setattr("robret_lib.attacks.gallery.SAMPLE", 1000)
    gallery = Gallery(torch.arange(3000.0)[:, None] % 3)
    assert (gallery.sample[:, 0].long().bincount(minlength=3) / 1000 - 1 / 3).abs().max() < 0.05


# Soft minima


def slow_soft_margin(queries: Tensor, gallery: Tensor, others: Tensor, own: Tensor, temperature: float, distance: str):
    """``[B]``: one loop over the queries; an empty set counts as zero."""

    def soft_minimum(distances):
        return -temperature * (-distances / temperature).exp().sum().log() if len(distances) else 0.0

    rows = zip(slow_distance(queries[:, None], gallery, distance), others, own, strict=True)
    return torch.stack([soft_minimum(d[other]) - soft_minimum(d[same]) for d, other, same in rows])


def two_sets(seed=30):
    """Bool ``[B, N]`` each, disjoint, some items in neither; the first query has no item of the second set."""
    kind = torch.randint(3, (BATCH, SIZE), generator=torch.Generator().manual_seed(seed))
    own = kind == 1
    own[0] = False
    return kind == 0, own


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("temperature", [0.02, 0.3])
def test_the_soft_margin_and_its_gradient(device, distance, temperature):
    queries, gallery = vectors(BATCH, distance, 31).requires_grad_(True), vectors(SIZE, distance, 32)
    others, own = two_sets()
    upstream = torch.rand(BATCH, generator=torch.Generator().manual_seed(33), dtype=torch.float64)
    expected = slow_soft_margin(queries, gallery, others, own, temperature, distance)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), queries)
    moved = queries.detach().to(device).requires_grad_(True)
    searched = Gallery(gallery.to(device), distance)
    sets = ItemSets(others.to(device)), ItemSets(own.to(device))
    actual = SoftMargin.apply(moved, searched, *sets, temperature)
    (gradient,) = torch.autograd.grad((actual * upstream.to(device)).sum(), moved)
    torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient.cpu(), expected_gradient, rtol=0, atol=1e-9)


def test_the_soft_margin_passes_gradcheck():
    queries, searched = vectors(BATCH, "E", 34).requires_grad_(True), Gallery(vectors(SIZE, "E", 35), "E")
    others, own = map(ItemSets, two_sets())
    assert torch.autograd.gradcheck(lambda q: SoftMargin.apply(q, searched, others, own, 0.1), (queries,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_cold_soft_margin_is_the_hard_one(distance):
    """In float32, at a temperature where the exponentials of most items underflow."""
    queries, gallery = (vectors(count, distance, seed, torch.float32) for count, seed in ((BATCH, 36), (SIZE, 37)))
    others, own = two_sets()
    distances = slow_distance(queries[:, None], gallery, distance)
    nearest = [torch.where(chosen, distances, torch.inf).amin(1) for chosen in (others, own)]
    actual = SoftMargin.apply(queries, Gallery(gallery, distance), ItemSets(others), ItemSets(own), 1e-4)
    torch.testing.assert_close(actual[1:], (nearest[0] - nearest[1])[1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(actual[0], nearest[0][0], rtol=0, atol=1e-3)


def test_an_empty_set_has_no_slope():
    queries = vectors(BATCH, "N", 38).requires_grad_(True)
    nothing = ItemSets(torch.zeros(BATCH, SIZE, dtype=torch.bool))
    margin = SoftMargin.apply(queries, Gallery(vectors(SIZE, "N", 39)), nothing, nothing, 0.1)
    assert torch.equal(margin, torch.zeros_like(margin))
    assert torch.equal(torch.autograd.grad(margin.sum(), queries)[0], torch.zeros_like(queries))
