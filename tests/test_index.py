"""Each index against the brute-force ranking, its errors, and its life on disk."""

import importlib

import pytest
import torch
from torch.nn.functional import normalize

from robret_lib import index
from robret_lib.hamming import hamming_distance

KINDS = ("exact", "ivf", "hnsw", "pq")


def clusters(n=1500, dim=32, seed=0):
    """Unit vectors around 30 centers, as embeddings of 30 classes are."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(30, dim, generator=generator)
    return normalize(centers[torch.arange(n) % 30] + 0.5 * torch.randn(n, dim, generator=generator), dim=1)


def brute_force(queries, gallery, k):
    distances = (queries[:, None].double() - gallery[None].double()).norm(dim=2)
    return distances.topk(k, largest=False)


def overlap(positions, expected):
    return (positions[:, :, None] == expected[:, None, :]).any(1).double().mean().item()


def test_exact_is_the_brute_force_ranking():
    gallery, queries = clusters(), clusters(50, seed=1)
    distances, positions = index.build(gallery).search(queries, 10)
    expected = brute_force(queries, gallery, 10)
    assert positions.dtype == torch.int64 and distances.dtype == torch.float32
    assert torch.equal(positions, expected.indices)
    torch.testing.assert_close(distances.double(), expected.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "share"), [("ivf", 0.95), ("hnsw", 0.95), ("pq", 0.5)])
def test_defaults_find_most_neighbors(kind, share):
    gallery, queries = clusters(), clusters(50, seed=1)
    distances, positions = index.build(gallery, kind).search(queries, 10)
    assert overlap(positions, brute_force(queries, gallery, 10).indices) >= share
    assert (distances.diff(dim=1) >= 0).all()
    if kind != "pq":
        found = (queries[:, None] - gallery[positions]).norm(dim=2)
        torch.testing.assert_close(distances, found, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "few", "many"),
    [
        ("ivf", {"lists": 30, "probes": 1}, {"lists": 30, "probes": 30}),
        ("hnsw", {"links": 4, "candidates": 1}, {"links": 32, "candidates": 500}),
        ("pq", {"parts": 2}, {"parts": 32}),
    ],
)
def test_each_option_trades_what_it_says(kind, few, many):
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(1500, 32, generator=generator)
    expected = brute_force(gallery[:100], gallery, 10).indices
    found = [
        overlap(index.build(gallery, kind, **options).search(gallery[:100], 10)[1], expected) for options in (few, many)
    ]
    assert found[0] < 0.8 < 0.95 < found[1]
    if kind == "ivf":
        assert found[1] == 1


def test_hamming_distances_of_codes():
    generator = torch.Generator().manual_seed(0)
    for bits in (12, 32):  # faiss itself takes multiples of 8 only
        codes = torch.randint(0, 2, (300, bits), generator=generator) * 2 - 1
        distances, positions = index.build(codes.float(), "binary").search(codes[:20], 300)
        expected = (codes[:20, None] != codes[None]).sum(2)
        assert distances.dtype == torch.int64
        assert torch.equal(distances, expected.sort(dim=1).values)
        assert torch.equal(expected.gather(1, positions), distances)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_the_first_codes_are_the_nearest_by_hamming_distance(k):
    generator = torch.Generator().manual_seed(0)
    codes, queries = (torch.randint(0, 2, (n, 64), generator=generator) * 2 - 1 for n in (400, 20))
    distances, positions = index.build(codes, "binary").search(queries, k)
    expected = hamming_distance(queries, codes).long()
    assert torch.equal(distances, expected.sort(dim=1).values[:, :k])
    assert torch.equal(expected.gather(1, positions), distances)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_search_returns_k_items_once(kind, patched):
    """faiss marks with -1 what its lists or its graph did not reach, which would index the last item.

    Importing pytorch-metric-learning imports ``faiss.contrib.torch_utils``, which replaces the search method.
    """
    if patched:
        importlib.import_module("faiss.contrib.torch_utils")
    gallery = clusters(600)
    gallery[100:] = gallery[100]  # equal items tear the graph apart
    made = index.build(gallery, kind)
    distances, positions = made.search(gallery[:5], 600)
    assert torch.equal(positions.sort(dim=1).values, torch.arange(600).expand(5, -1))
    assert torch.isfinite(distances).all()
    assert kind != "ivf" or made.engine.nprobe < made.engine.nlist


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_built_the_same_twice(kind):
    gallery = clusters()
    first, second = (index.build(gallery, kind).search(gallery[:50], 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_any_float_type_and_gradients_are_taken(dtype):
    gallery = clusters(100).to(dtype).requires_grad_(True)
    _, positions = index.build(gallery).search(gallery[:10], 1)
    assert torch.equal(positions[:, 0], torch.arange(10))


def test_small_galleries_work_with_the_defaults():
    for kind in ("exact", "ivf", "hnsw"):
        assert index.build(torch.eye(3), kind).search(torch.eye(3), 1)[1][:, 0].tolist() == [0, 1, 2]
    assert index.build(torch.randn(256, 3), "pq").engine.pq.M == 1  # 3 dimensions do not split


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in KINDS), ("ivf", {"probes": 3}), ("hnsw", {"candidates": 5})]
)
def test_saved_and_read_it_answers_the_same(kind, options, tmp_path):
    gallery = clusters()
    made = index.build(gallery, kind, **options)
    made.save(tmp_path / "deep" / "gallery.index")
    read = index.read(tmp_path / "deep" / "gallery.index")
    assert (read.kind, read.dim, len(read)) == (kind, 32, 1500)
    for before, after in zip(made.search(gallery[:50], 7), read.search(gallery[:50], 7), strict=True):
        assert torch.equal(before, after)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["gallery.index"]


def test_codes_survive_the_disk(tmp_path):
    codes = clusters(50, 12).sign()
    made = index.build(codes, "binary")
    made.save(tmp_path / "codes")
    assert torch.equal(index.read(tmp_path / "codes").search(codes, 1)[0], torch.zeros(50, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ('expected "exact"', {"kind": "flat"}),
        ("divide the 32 dimensions", {"kind": "pq", "parts": 5}),
        ("use kind='exact'", {"embeddings": torch.randn(255, 32), "kind": "pq"}),
        ("probes <= lists <= 1500", {"kind": "ivf", "lists": 1501}),
        ("probes <= lists", {"kind": "ivf", "lists": 10, "probes": 11}),
        ('mean nothing to kind "exact"', {"probes": 3}),
        ("it takes \\['lists', 'probes'\\]", {"kind": "ivf", "links": 3}),
        ("at least 1", {"kind": "hnsw", "links": 0}),
        ("NaN or infinity", {"embeddings": torch.tensor([[0.0, torch.nan]])}),
        ("NaN or infinity", {"embeddings": torch.tensor([[0.0, torch.inf]])}),
        ("other than -1 and \\+1", {"kind": "binary"}),
        ("other than -1 and \\+1", {"kind": "binary", "embeddings": torch.zeros(3, 8)}),
        ("other than -1 and \\+1", {"kind": "binary", "embeddings": torch.full((3, 8), torch.nan)}),
        ("expected \\[N, D\\]", {"embeddings": torch.randn(8)}),
        ("at least one", {"embeddings": torch.randn(0, 8)}),
    ],
)
def test_what_cannot_be_built_is_said(message, arguments):
    with pytest.raises(ValueError, match=message):
        index.build(**({"embeddings": clusters()} | arguments))


def test_what_cannot_be_searched_is_said():
    made = index.build(clusters(20))
    for k in (0, 21):
        with pytest.raises(ValueError, match="expected 1 to 20"):
            made.search(clusters(2), k)
    with pytest.raises(ValueError, match="the gallery has 32 dimensions"):
        made.search(clusters(2, dim=16), 1)
    with pytest.raises(ValueError, match="queries hold NaN"):
        made.search(torch.full((1, 32), torch.nan), 1)
    with pytest.raises(ValueError, match="the gallery has 12 dimensions"):  # padded to the same 16 bits
        index.build(clusters(20, 12).sign(), "binary").search(clusters(2, 14).sign(), 1)


def test_nothing_is_printed_while_training(capfd):
    index.build(clusters(300), "pq")
    index.build(clusters(300), "ivf", lists=100)
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu_come_back_there():
    gallery = clusters().cuda()
    distances, positions = index.build(gallery).search(gallery[:5], 3)
    assert distances.is_cuda and positions.is_cuda
    assert positions[:, 0].tolist() == [0, 1, 2, 3, 4]
