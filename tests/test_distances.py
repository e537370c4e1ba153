"""Distances hold against float64, also between nearly equal embeddings and far from the origin."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from robret_lib import attacks, index, metrics
from robret_lib.attacks import PGD, Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.ranking import CandidateAttack, QueryAttack, SemanticsPreservingQueryAttack
from robret_lib.attacks.ranking_losses import HingeItems, ItemSets, QueryHinges, SoftMargin
from robret_lib.distances import Centered, center_of, check_embeddings, pairwise_distance, row_distance
from robret_lib.models import EmbeddingModel, embed
from tests.small_retrieval import DISTANCES, seeded

ITEMS, DIM, CLASSES = 300, 32, 12
SPREADS = [1e-1, 1e-2, 1e-3, 1e-4]
PLACES = [(distance, spread, 0.0) for distance in ("N", "C") for spread in SPREADS]
PLACES += [("E", spread, offset) for spread in SPREADS for offset in (0.0, 1.0, 100.0, 1e4)]


def classes_apart(distance, spread, offset):
    """Float32 embeddings of separated classes, around one point; that is the whole collapse of a model."""
    labels = torch.arange(ITEMS) % CLASSES
    centers, noise = (torch.randn(count, DIM, generator=seeded(count)) for count in (CLASSES, ITEMS))
    around = torch.full((DIM,), offset) if distance == "E" else normalize(torch.randn(DIM, generator=seeded()), dim=0)
    points = around.double() + spread * (centers[labels] + 0.2 * noise).double() / DIM**0.5
    return (points if distance == "E" else normalize(points, dim=1)).float(), labels


def exact(queries, gallery, distance):
    """In float64, difference by difference, of the same float32 numbers."""
    differences = queries.double()[:, None] - gallery.double()[None]
    squared = differences.square().sum(-1)
    return squared / 2 if distance == "C" else squared.sqrt()


@pytest.mark.parametrize(("distance", "spread", "offset"), PLACES)
def test_distances_between_nearly_equal_embeddings(distance, spread, offset):
    embeddings, _ = classes_apart(distance, spread, offset)
    expected = exact(embeddings, embeddings, distance)
    found = pairwise_distance(embeddings, embeddings, distance).double()
    others = ~torch.eye(ITEMS, dtype=torch.bool)
    torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-4 * expected.max().item())
    rows = row_distance(embeddings[:-1], embeddings[1:], distance).double()
    torch.testing.assert_close(rows, expected.diagonal(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("distance", "spread", "offset"), PLACES)
def test_metrics_of_nearly_equal_embeddings(distance, spread, offset):
    embeddings, labels = classes_apart(distance, spread, offset)
    arguments = embeddings, embeddings, labels, labels
    order = exact(embeddings, embeddings, "E").fill_diagonal_(torch.inf).sort(dim=1, stable=True).indices[:, :-1]
    hits = labels[order] == labels[:, None]
    expected = {k: 100 * hits[:, :k].any(1).double().mean().item() for k in (1, 4)}
    assert metrics.recall_at_k(*arguments, k=(1, 4), self_excluded=True) == pytest.approx(expected)
    precision = hits.double().cumsum(1) / torch.arange(1, ITEMS) * hits
    whole = 100 * (precision.sum(1) / hits.sum(1)).mean().item()
    assert metrics.mean_average_precision(*arguments, self_excluded=True) == pytest.approx(whole)
    r = ITEMS // CLASSES - 1
    at_r = 100 * (precision[:, :r].sum(1) / r).mean().item()
    assert metrics.map_at_r(*arguments, self_excluded=True) == pytest.approx(at_r)
    if spread >= 10 * torch.finfo(torch.float32).eps * offset:  # else float32 itself has dropped the classes
        assert expected[1] == at_r == 100
        assert metrics.nmi(embeddings, labels) > 90


def lumps(count, size, spread):
    """Unit vectors in several places, each place nearly collapsed; two of every class, and every class in one place."""
    places = torch.randn(count, 1, 1, DIM, generator=seeded(), dtype=torch.float64)
    classes = torch.randn(count, size // 2, 1, DIM, generator=seeded(1), dtype=torch.float64)
    noise = torch.randn(count, size // 2, 2, DIM, generator=seeded(2), dtype=torch.float64)
    points = places / DIM**0.5 + spread * (classes + 0.1 * noise) / DIM**0.5
    return normalize(points.flatten(0, 2), dim=1).float(), torch.arange(count * size // 2).repeat_interleave(2)


@pytest.mark.parametrize("count", [2, 10, 60])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("search", ["_by_faiss", "_by_torch"])
def test_metrics_of_several_collapsed_places(count, spread, search, monkeypatch):
    """Bursts of frames, or a model that knows a few things only: one center does not do."""
    monkeypatch.setattr(metrics, "_by_faiss", getattr(metrics, search))
    embeddings, labels = lumps(count, 600 // count, spread)
    arguments = embeddings, embeddings, labels, labels
    order = exact(embeddings, embeddings, "E").fill_diagonal_(torch.inf).argsort(1)
    first = 100 * (labels[order[:, 0]] == labels).double().mean().item()
    assert first > 95
    assert metrics.recall_at_k(*arguments, k=(1, 3), self_excluded=True)[1] == pytest.approx(first)
    ranks = 1 + (labels[order] == labels[:, None]).double().argmax(1)
    assert metrics.mean_average_precision(*arguments, self_excluded=True) == pytest.approx(
        100 * (1 / ranks).mean().item()
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("far", [0.0, 1.0])
def test_ranks_in_several_collapsed_places_and_far_from_one(distance, far):
    """Exact ranks of float32 embeddings, wherever they are."""
    embeddings, _ = lumps(1 if far else 3, 300 if far else 100, 1e-4)
    gallery = Gallery(embeddings, distance)
    queries = embeddings[:30] if not far else normalize(torch.randn(30, DIM, generator=seeded(3)), dim=1)
    candidates = torch.randint(300, (30, 2), generator=seeded(4))
    benign = Benign(gallery, queries)
    found = QueryAttack("raise", n_targets=2).plan(benign, candidates).measures(queries)["rank"]
    to_items = exact(queries, embeddings, distance)
    expected = 100 * (to_items[:, None] < to_items.gather(1, candidates)[:, :, None]).sum(2).double().mean(1) / 300
    torch.testing.assert_close(found, expected, rtol=0, atol=100 / 300 + 1e-9)
    assert (found != expected).double().mean() <= 0.1


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
@pytest.mark.parametrize(("distance", "spread", "offset"), [("N", 1e-4, 0.0), ("E", 1e-2, 1e4)])
def test_an_index_of_nearly_equal_embeddings(kind, distance, spread, offset, tmp_path):
    embeddings, labels = classes_apart(distance, spread, offset)
    built = index.build(embeddings, kind)
    built.save(tmp_path / "index")
    for searched in (built, index.read(tmp_path / "index")):
        distances, positions = searched.search(embeddings, 2)
        assert (labels[positions] == labels[:, None]).all()
        torch.testing.assert_close(distances[:, 1].double(), exact(embeddings, embeddings, "E").sort(1).values[:, 1])


def far_away_model(distance, spread, offset):
    """Embeds images ``[B, 1, 1, DIM]`` around one point, as a model does that has collapsed."""
    torch.manual_seed(0)
    layer = nn.Linear(DIM, DIM)
    with torch.no_grad():
        layer.weight.mul_(spread)
        layer.bias.copy_(torch.full((DIM,), offset) if distance == "E" else torch.randn(DIM) / DIM**0.5)
    return EmbeddingModel(nn.Sequential(nn.Flatten(), layer), distance)


def exact_ranks(queries, candidates, gallery, distance, left_out):
    """The least and the largest percentile in float64 that a hundred-thousandth of a distance more or less gives."""
    to_items = exact(queries, gallery, distance).scatter(1, left_out, torch.inf)
    to_candidate = torch.stack([exact(q[None], c[None], distance)[0] for q, c in zip(queries, candidates, strict=True)])
    return [100 * (to_items < share * to_candidate).sum(1) / len(gallery) for share in (1 - 1e-5, 1 + 1e-5)]


@pytest.mark.parametrize("attack", [QueryAttack, SemanticsPreservingQueryAttack, CandidateAttack])
@pytest.mark.parametrize(("distance", "spread", "offset"), PLACES)
def test_ranks_under_attack_are_those_of_float64(attack, distance, spread, offset):
    images = torch.rand(ITEMS, 1, 1, DIM, generator=seeded())
    model = far_away_model(distance, spread, offset)
    gallery = Gallery.of(model, images)
    own = torch.arange(20)
    found = attacks.run(attack("lower"), model, images[own], gallery, PGD(0.1, 0.02, 4), own, generator=seeded())
    targets = gallery.embeddings[found.targets[:, 0]]
    for rank, embeddings in ((found.benign["rank"], gallery.embeddings[own]), (found.measured["rank"], None)):
        embeddings = embed(model, found.images) if embeddings is None else embeddings
        asked, answer = (targets, embeddings) if attack is CandidateAttack else (embeddings, targets)
        left_out = torch.stack([own, found.targets[:, 0]], dim=1) if attack is CandidateAttack else own[:, None]
        least, most = exact_ranks(asked, answer, gallery.embeddings, distance, left_out)
        assert (least - 1e-4 <= rank).all() and (rank <= most + 1e-4).all()
        if spread >= 10 * torch.finfo(torch.float32).eps * offset:  # else most distances are equal in float32 itself
            assert (most - least).mean() < 0.5


@pytest.mark.parametrize("hinge", [True, False], ids=["query hinges", "soft margin"])
@pytest.mark.parametrize(("distance", "spread", "offset"), PLACES)
def test_losses_over_a_gallery_and_their_gradients_are_those_of_float64(hinge, distance, spread, offset):
    embeddings, labels = classes_apart(distance, spread, offset)
    candidates, signs = torch.randint(ITEMS, (20, 3), generator=seeded()), torch.tensor([1.0, -1.0, 1.0])
    own = ItemSets((labels[:20, None] == labels) & ~torch.eye(ITEMS, dtype=torch.bool)[:20])
    others = ItemSets(labels[:20, None] != labels)
    between, results = 0.7 * embeddings[:20] + 0.3 * embeddings[20:40], []
    for kind in (torch.float32, torch.float64):
        gallery = Gallery(embeddings.to(kind), distance)
        queries = between.to(kind).requires_grad_(True)
        if hinge:
            loss = QueryHinges.apply(queries, HingeItems(gallery, candidates, len(gallery)), signs.to(kind)).sum(1)
        else:
            temperature = 0.2 * gallery.euclidean.spread or 1.0  # far from the origin, all may be equal in float32
            loss = SoftMargin.apply(queries, gallery.euclidean, others, own, temperature)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), queries)[0]))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gallery_of_any_type(kind):
    embeddings = torch.randn(50, 8, generator=seeded(), dtype=torch.float64).to(kind)
    centered = Centered.of(embeddings)
    assert centered.columns.dtype == center_of(embeddings).dtype == torch.promote_types(kind, torch.float32)
    found = centered.distances_from(embeddings[:5])
    torch.testing.assert_close(found.double(), exact(embeddings[:5], embeddings, "E"), rtol=1e-4, atol=2e-3)


def test_what_lies_on_a_grid_is_exact():
    """Codes and counts: equal distances are equal, to the last bit."""
    codes = torch.randn(200, 16, generator=seeded()).sign() + 1000
    found = Centered.of(codes).distances_from(codes).square()
    torch.testing.assert_close(found.double(), exact(codes, codes, "E").square(), rtol=1e-6, atol=0)
    assert len(found.unique()) == len(found.double().round().unique())


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_item_at_the_query_has_no_slope(distance):
    gallery = torch.zeros(4, 3)
    centered = Centered.of(gallery)
    distances = centered.distances_from(gallery[:1], distance)
    assert (centered.pulled_back(torch.ones(1, 4), gallery[:1], distances, distance) == 0).all()


@pytest.mark.parametrize(
    ("message", "value"),
    [("hold NaN", float("nan")), ("hold NaN", float("inf")), ("hold NaN", -float("inf")), ("reach 1e.20", -1e20)],
)
def test_embeddings_that_cannot_be_ranked_are_refused(message, value):
    embeddings = torch.randn(20, 4, generator=seeded())
    check_embeddings("embeddings", embeddings)
    broken, labels = embeddings.clone(), torch.arange(20) % 2
    broken[3, 1] = value
    for refused in (
        lambda: check_embeddings("embeddings", broken),
        lambda: metrics.recall_at_k(broken, embeddings, labels, labels),
        lambda: metrics.map_at_r(embeddings, broken, labels, labels),
        lambda: metrics.mean_average_precision(embeddings, broken, labels, labels),
        lambda: metrics.nmi(broken, labels),
        lambda: index.build(broken),
        lambda: index.build(embeddings).search(broken, 1),
        lambda: Gallery(broken, "E"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_embeddings_whose_squares_vanish_are_refused():
    embeddings, labels = classes_apart("E", 1e-1, 0.0)
    for refused in (
        lambda: metrics.recall_at_k(1e-25 * embeddings, embeddings, labels, labels),
        lambda: index.build(1e-25 * embeddings),
        lambda: Gallery(1e-25 * embeddings, "E"),
    ):
        with pytest.raises(ValueError, match="where squared distances vanish"):
            refused()


def test_a_gallery_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        pairwise_distance(torch.zeros(2, 3), torch.zeros(0, 3))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_largest_embeddings_that_are_accepted_rank_right(kind):
    embeddings = torch.randn(20, 4, generator=seeded(), dtype=kind)
    large = embeddings * 4e18 / embeddings.abs().max()
    labels = torch.arange(20) % 3
    for measure in (metrics.mean_average_precision, metrics.map_at_r):
        assert measure(large, large, labels, labels) == measure(embeddings, embeddings, labels, labels)
