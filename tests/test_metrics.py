"""Rankings judged as a slow loop judges them, with ties, several labels and self excluded; in bounded memory."""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.cluster import KMeans
from sklearn.metrics import average_precision_score, normalized_mutual_info_score
from torch.nn.functional import normalize, one_hot

from robret_lib import metrics

seeds = st.integers(0, 2**32 - 1)


def world(seed, n_queries=25, n_gallery=60, dim=3, n_classes=4, tied=False, multi_hot=False):
    """Embeddings and labels of queries and gallery; ``tied`` puts them on a coarse grid, where many distances agree."""
    generator = torch.Generator().manual_seed(seed)
    n = n_queries + n_gallery
    points = torch.randn(n, dim, generator=generator)
    points = points.round() if tied else points
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    if multi_hot:
        labels = (torch.rand(n, n_classes, generator=generator) < 0.3).to(torch.uint8)  # some have none
    return points[:n_queries], points[n_queries:], labels[:n_queries], labels[n_queries:]


def ranked_hits(queries, gallery, query_labels, gallery_labels, own):
    """For each query whether the items of its ranking are relevant, nearest first, ties by index: lists of bool."""
    for i, query in enumerate(queries.tolist()):
        items = []
        for j, item in enumerate(gallery.tolist()):
            if own is not None and own[i] == j:
                continue
            distance = sum((a - b) ** 2 for a, b in zip(query, item, strict=True))
            a, b = query_labels[i].tolist(), gallery_labels[j].tolist()
            relevant = a == b if isinstance(a, int) else any(x and y for x, y in zip(a, b, strict=True))
            items.append((distance, j, relevant))
        yield [relevant for _, _, relevant in sorted(items)]


def slow_recall(hits_per_query, k):
    return 100 * sum(any(hits[:k]) for hits in hits_per_query) / len(hits_per_query)


def slow_average_precision(hits, depth):
    """Precisions at the relevant among the first ``depth``, summed."""
    return sum(sum(hits[: i + 1]) / (i + 1) for i in range(min(depth, len(hits))) if hits[i])


def slow_map(hits_per_query):
    return 100 * sum(slow_average_precision(h, len(h)) / max(1, sum(h)) for h in hits_per_query) / len(hits_per_query)


def slow_map_at_r(hits_per_query, r):
    total = 0.0
    for hits in hits_per_query:
        depth = sum(hits) if r is None else r
        total += slow_average_precision(hits, depth) / max(1, depth)
    return 100 * total / len(hits_per_query)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("excluded", ["nothing", "self", "positions"])
@pytest.mark.parametrize("chunk_bytes", [metrics.CHUNK_BYTES, 7 * 4 * 60, 1])
def test_every_metric_is_what_the_loop_says(tied, multi_hot, excluded, chunk_bytes, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", chunk_bytes)  # one block, blocks of 7 queries, one query at a time
    queries, gallery, ql, gl = world(0, tied=tied, multi_hot=multi_hot)
    own, self_excluded = None, False
    if excluded == "self":
        queries, ql, own, self_excluded = gallery, gl, list(range(60)), True
    if excluded == "positions":
        self_excluded = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:25]
        queries, ql, own = gallery[self_excluded], gl[self_excluded], self_excluded.tolist()
    hits = list(ranked_hits(queries, gallery, ql, gl, own))
    arguments = (queries, gallery, ql, gl)
    recall = metrics.recall_at_k(*arguments, k=(1, 3, 10, 59), self_excluded=self_excluded)
    assert recall == pytest.approx({k: slow_recall(hits, k) for k in (1, 3, 10, 59)})
    average = metrics.mean_average_precision(*arguments, self_excluded=self_excluded)
    assert average == pytest.approx(slow_map(hits), rel=1e-5)
    for r in (None, 1, 10, 59, 1000):
        found = metrics.map_at_r(*arguments, r=r, self_excluded=self_excluded)
        assert found == pytest.approx(slow_map_at_r(hits, r), rel=1e-5)


def test_average_precision_is_sklearns():
    queries, gallery, ql, gl = world(3)
    distances = torch.cdist(queries.double(), gallery.double())
    expected = [average_precision_score(gl == label, -row) for row, label in zip(distances, ql, strict=True)]
    assert metrics.mean_average_precision(queries, gallery, ql, gl) == pytest.approx(100 * sum(expected) / 25, rel=1e-5)


@pytest.mark.parametrize("self_excluded", [False, True])
def test_pytorch_metric_learning_agrees(self_excluded):
    queries, gallery, ql, gl = world(4, n_queries=200, n_gallery=300, dim=8, n_classes=10)
    if self_excluded:
        queries, ql = gallery, gl
    names = ("precision_at_1", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    theirs = calculator.get_accuracy(queries, ql, gallery, gl, ref_includes_query=self_excluded)
    arguments = (queries, gallery, ql, gl)
    assert metrics.recall_at_k(*arguments, k=(1,), self_excluded=self_excluded)[1] == pytest.approx(
        100 * theirs[names[0]]
    )
    assert metrics.map_at_r(*arguments, self_excluded=self_excluded) == pytest.approx(100 * theirs[names[1]], rel=1e-4)


@settings(max_examples=50)
@given(seeds, st.booleans())
def test_the_order_of_queries_and_gallery_does_not_matter(seed, multi_hot):
    """But for two items whose distances differ by less than float32 tells, which may change places."""
    queries, gallery, ql, gl = world(seed, multi_hot=multi_hot)
    squares = torch.cdist(queries.double(), gallery.double()).square().sort(dim=1).values
    assume(squares.diff(dim=1).min() > 2e-5)
    generator = torch.Generator().manual_seed(seed)
    of_queries, of_gallery = (torch.randperm(n, generator=generator) for n in (len(queries), len(gallery)))
    shuffled = (queries[of_queries], gallery[of_gallery], ql[of_queries], gl[of_gallery])
    for metric in (metrics.recall_at_k, metrics.mean_average_precision, metrics.map_at_r):
        assert metric(*shuffled) == pytest.approx(metric(queries, gallery, ql, gl), rel=1e-5)


@settings(max_examples=50)
@given(seeds, st.booleans(), st.booleans())
def test_recall_grows_with_k(seed, tied, multi_hot):
    recall = metrics.recall_at_k(*world(seed, tied=tied, multi_hot=multi_hot), k=range(1, 61))
    values = list(recall.values())
    assert list(recall) == list(range(1, 61)) and values == sorted(values)
    assert values[0] >= 0 and values[-1] <= 100


@settings(max_examples=50)
@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_a_perfect_ranking_scores_100(seed, n_classes, per_class):
    labels = torch.arange(n_classes).repeat(per_class)
    points = 10.0 * one_hot(labels) + torch.rand(len(labels), n_classes, generator=torch.Generator().manual_seed(seed))
    arguments = (points, points, labels, labels)
    assert metrics.recall_at_k(*arguments, k=(1, 2), self_excluded=True) == {1: 100, 2: 100}
    assert metrics.mean_average_precision(*arguments, self_excluded=True) == pytest.approx(100)
    assert metrics.map_at_r(*arguments, self_excluded=True) == pytest.approx(100)
    assert metrics.map_at_r(*arguments, r=per_class - 1, self_excluded=True) == pytest.approx(100)


@settings(max_examples=50)
@given(seeds)
def test_self_is_excluded_by_its_index_among_duplicates(seed):
    """All items equal: dropping "the first of the sorted list" would drop another item for all queries but one."""
    labels = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(seed))
    points = torch.ones(12, 4)
    found = metrics.recall_at_k(points, points, labels, labels, k=(1,), self_excluded=True)[1]
    nearest = [1] + [0] * 11  # the lowest index that is not oneself
    assert found == pytest.approx(100 * (labels == labels[nearest]).double().mean().item())


def test_self_alone_in_its_class_is_no_answer():
    labels = torch.arange(5)
    points = torch.randn(5, 2)
    assert metrics.recall_at_k(points, points, labels, labels, k=(1, 4), self_excluded=True) == {1: 0, 4: 0}
    assert metrics.mean_average_precision(points, points, labels, labels, self_excluded=True) == 0
    assert metrics.map_at_r(points, points, labels, labels, self_excluded=True) == 0


def test_cosine_and_euclidean_rank_unit_vectors_alike():
    queries, gallery, ql, gl = world(5, dim=8)
    queries, gallery = normalize(queries, dim=1), normalize(gallery, dim=1)
    by_cosine = metrics.pairwise_distance(queries, gallery, "C").argsort(1)
    assert torch.equal(by_cosine, metrics.pairwise_distance(queries, gallery, "N").argsort(1))


def test_distances():
    queries, gallery, _, _ = world(6, dim=8)
    expected = (queries[:, None].double() - gallery[None].double()).norm(dim=2)
    for distance in ("N", "E"):
        found = metrics.pairwise_distance(queries, gallery, distance)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)
    unit = normalize(queries, dim=1)
    found = metrics.pairwise_distance(unit, unit, "C")
    torch.testing.assert_close(found, 1 - torch.cosine_similarity(unit[:, None], unit[None], dim=2), atol=1e-6, rtol=0)


def test_nmi_of_separated_and_of_mixed_clusters():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat(60)
    points = 20.0 * one_hot(labels, 8) + torch.randn(300, 8, generator=generator)
    assert metrics.nmi(points, labels) == pytest.approx(100)
    assert metrics.nmi(points, labels[torch.randperm(300, generator=generator)]) < 10


def test_nmi_is_sklearns_on_sklearns_clusters():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4).repeat(150)
    points = 3.0 * one_hot(labels, 6) + torch.randn(600, 6, generator=generator)
    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(points.numpy())
    expected = 100 * normalized_mutual_info_score(labels, clusters)
    assert 30 < expected < 90
    assert metrics.nmi(points, labels, seed=0) == pytest.approx(expected, abs=4)
    assert metrics.nmi(points, labels, seed=0) == metrics.nmi(points, labels, seed=0)


def test_nmi_takes_any_class_numbers():
    points, _, labels, _ = world(7, n_queries=100)
    assert metrics.nmi(points, labels) == pytest.approx(metrics.nmi(points, 1000 - 37 * labels))


E = torch.eye(4)
L = torch.arange(4)


@pytest.mark.parametrize(
    ("message", "arguments", "options"),
    [
        ("\\[A, D\\] and \\[B, D\\]", (E, E[:, :2], L, L), {}),
        ("\\[A, D\\] and \\[B, D\\]", (E[0], E, L, L), {}),
        ("A, B > 0", (E, E[:0], L, L[:0]), {}),
        ("A, B > 0", (E[:0], E, L[:0], L), {}),
        ("3 and 4 labels for 4 queries", (E, E, L[:3], L), {}),
        ("both int \\[N\\], or both multi-hot", (E, E, L, one_hot(L)), {}),
        ("NaN or infinity", (E * math.nan, E, L, L), {}),
        ("NaN or infinity", (E, E / 0, L, L), {}),
        ("4 queries and a gallery of 3", (E, E[:3], L, L[:3]), {"self_excluded": True}),
        ("each of the 4 queries", (E, E, L, L), {"self_excluded": L[:2]}),
        ("from 0 to 3", (E, E, L, L), {"self_excluded": L + 1}),
        ("from 0 to 3", (E, E, L, L), {"self_excluded": L - 1}),
    ],
)
def test_what_cannot_be_ranked_is_said(message, arguments, options):
    for metric in (metrics.mean_average_precision, metrics.map_at_r):
        with pytest.raises(ValueError, match=message):
            metric(*arguments, **options)
    if len(arguments[1]):  # else recall says that there is no depth to choose
        with pytest.raises(ValueError, match=message):
            metrics.recall_at_k(*arguments, k=(1,), **options)


def test_impossible_depths_are_said():
    for k, options in (((0,), {}), ((5,), {}), ((4,), {"self_excluded": True}), ((), {})):
        with pytest.raises(ValueError, match="expected depths from 1 to"):
            metrics.recall_at_k(E, E, L, L, k=k, **options)
    with pytest.raises(ValueError, match="r=0: expected at least 1"):
        metrics.map_at_r(E, E, L, L, r=0)


@pytest.mark.parametrize("labels", [L[:2], one_hot(L)])
def test_nmi_refuses_what_is_no_clustering(labels):
    with pytest.raises(ValueError, match="one int class each"):
        metrics.nmi(E, labels)
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.nmi(E * math.nan, L)


@pytest.mark.parametrize("search", ["_by_faiss", "_by_torch"])
@pytest.mark.parametrize("self_excluded", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_broken_by_index_whatever_finds_the_neighbors(search, self_excluded, seed, monkeypatch):
    """Five points on a line, many items on each: nearly every depth ends within a group of equals."""
    monkeypatch.setattr(metrics, "_by_faiss", getattr(metrics, search))
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.randint(5, (40, 1), generator=generator).float()
    labels = torch.randint(4, (40,), generator=generator)
    hits = {k: metrics.hits_at_k(gallery, gallery, labels, labels, (k,), self_excluded)[k] for k in range(1, 40)}
    precisions = []
    for query in range(40):
        others = [x for x in range(40) if not (self_excluded and x == query)]
        ranking = sorted(others, key=lambda x: (abs(gallery[x] - gallery[query]).item(), x))
        relevant = [(labels[x] == labels[query]).item() for x in ranking]
        assert [hits[k][query].item() for k in range(1, 40)] == [any(relevant[:k]) for k in range(1, 40)]
        depth = sum(relevant)
        found = [sum(relevant[: i + 1]) / (i + 1) for i in range(depth) if relevant[i]]
        precisions.append(sum(found) / max(depth, 1))
    expected = 100 * sum(precisions) / 40
    assert metrics.map_at_r(gallery, gallery, labels, labels, self_excluded=self_excluded) == pytest.approx(expected)


WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
KINDS = [*WHOLE, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("queries", KINDS, ids=str)
@pytest.mark.parametrize("gallery", [torch.int64, torch.uint16, torch.float32], ids=str)
def test_labels_of_any_two_types_are_compared_as_numbers(queries, gallery):
    measures = partial(metrics.recall_at_k, k=(1,)), metrics.mean_average_precision, metrics.map_at_r
    expected = [measure(E, E, L, L) for measure in measures]
    assert [measure(E, E, L.to(queries), L.to(gallery)) for measure in measures] == expected
    assert metrics.nmi(E, L.to(queries)) == metrics.nmi(E, L)
    hot = one_hot(L)
    assert metrics.map_at_r(E, E, hot.to(queries), hot.to(gallery)) == metrics.map_at_r(E, E, hot, hot)


MEASURE = """
import torch
from robret_lib import metrics

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def peak_growth(metric, gallery, n):
    metric(gallery[:3], gallery, labels[:3], labels, self_excluded=True)  # what is loaded once does not count
    open("/proc/self/clear_refs", "w").write("5")  # resets the peak
    before = kib("VmRSS")
    metric(gallery[:n], gallery, labels[:n], labels, self_excluded=True)
    return 1024 * (kib("VmHWM") - before)

torch.manual_seed(0)
gallery, labels = torch.randn(60_000, 4), torch.randint(0, 100, (60_000,))
print(peak_growth(metrics.recall_at_k, gallery, 2000))
print(peak_growth(metrics.mean_average_precision, gallery, 560))
print(peak_growth(metrics.map_at_r, gallery.sign(), 560))  # ties everywhere
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures peak memory with Linux's /proc")
def test_memory_stays_below_the_stated_bound():
    """A gallery of 60,000; the matrix of all distances of 2,000 queries alone would be 458 MiB."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    growths = [int(line) for line in run.stdout.split()]
    assert len(growths) == 3
    assert all(growth < 8 * metrics.CHUNK_BYTES for growth in growths)
    assert growths[1] > metrics.CHUNK_BYTES / 2, "not measured"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tied", [False, True])
def test_a_gpu_agrees_with_the_cpu(tied):
    queries, gallery, ql, gl = world(0, tied=tied)
    on_gpu = tuple(part.cuda() for part in (queries, gallery, ql, gl))
    for metric in (metrics.recall_at_k, metrics.mean_average_precision, metrics.map_at_r):
        assert metric(*on_gpu) == pytest.approx(metric(queries, gallery, ql, gl), rel=1e-5)
    assert metrics.nmi(on_gpu[1], on_gpu[3]) == metrics.nmi(gallery, gl)


@pytest.mark.parametrize(
    "labels, message",
    [
        (L[:, None], r"labels of shape \(\d+, 1\): expected whole numbers \[N\], or zeros and ones \[N, C\]"),
        (2 * one_hot(L), "with other values than 0 and 1: expected whole numbers"),
        (L + 0.5, "labels with fractions: expected whole numbers"),
        (one_hot(L)[None], r"labels of shape \(1, "),
    ],
)
def test_labels_of_the_wrong_kind_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.relevance(labels, labels)
    if labels.ndim < 3:
        for metric in (metrics.mean_average_precision, metrics.map_at_r):
            with pytest.raises(ValueError, match=message):
                metric(E, E, labels, labels)
        with pytest.raises(ValueError, match=message):
            metrics.recall_at_k(E, E, labels, labels, (1,))


def test_nmi_refuses_fractions():
    with pytest.raises(ValueError, match="labels with fractions: expected whole numbers"):
        metrics.nmi(E, L + 0.5)


@pytest.mark.parametrize("given", [None, 1, [0, 1, 2, 3]])
def test_what_says_neither_self_nor_positions_is_refused(given):
    with pytest.raises(ValueError, match="self_excluded=.*: expected True, False, or gallery positions"):
        metrics.recall_at_k(E, E, L, L, (1,), self_excluded=given)
