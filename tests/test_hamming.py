"""Rankings by Hamming distance, judged as a slow loop judges them over every order of their ties."""

from fractions import Fraction
from itertools import permutations
from math import comb, floor

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robret_lib import hamming, metrics
from robret_lib.data import DataError

seeds = st.integers(0, 2**32 - 1)

GALLERY = torch.tensor([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1], [1, -1, 1, 1]])
GALLERY_LABELS = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0]])
QUERIES = torch.tensor([[1, 1, 1, 1], [-1, -1, -1, 1]])
QUERY_LABELS = torch.tensor([[1, 0], [0, 1]])
WORLD = QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS


def world(seed, n_queries=6, n_gallery=7, bits=3, multi_hot=False, n_classes=3):
    """Codes of few bits, so that there are ties, with labels; of the multi-hot ones some are empty."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (n_queries, n_gallery)
    codes = [2 * torch.randint(0, 2, (n, bits), generator=generator) - 1 for n in sizes]
    if multi_hot:
        labels = [(torch.rand(n, n_classes, generator=generator) < 0.35).to(torch.uint8) for n in sizes]
    else:
        labels = [torch.randint(0, n_classes, (n,), generator=generator) for n in sizes]
    return *codes, *labels


def distances_and_hits(queries, gallery, query_labels, gallery_labels):
    """Of each query, (distance, relevant) of each item, in gallery order."""
    for code, label in zip(queries.tolist(), query_labels.tolist(), strict=True):
        items = []
        for other, its in zip(gallery.tolist(), gallery_labels.tolist(), strict=True):
            shared = label == its if isinstance(label, int) else any(a and b for a, b in zip(label, its, strict=True))
            items.append((sum(a != b for a, b in zip(code, other, strict=True)), shared))
        yield items


def slow_ap(hits, depth=None):
    hits = hits[:depth]
    precisions = [Fraction(sum(hits[: i + 1]), i + 1) for i, hit in enumerate(hits) if hit]
    return sum(precisions) / len(precisions) if precisions else Fraction(0)


def rankings(items):
    """Every ranking of a list of at most seven items that its distances allow."""
    for order in set(permutations(range(len(items)))):
        ranked = [items[i] for i in order]
        if all(a[0] <= b[0] for a, b in zip(ranked, ranked[1:], strict=False)):
            yield [hit for _, hit in ranked]


@settings(max_examples=15, deadline=None)
@given(seed=seeds, multi_hot=st.booleans(), depth=st.sampled_from([None, 1, 2, 3, 5, 6, 7, 9]))
def test_expected_ties_are_the_mean_over_all_their_orders(seed, multi_hot, depth):
    given = world(seed, n_queries=2, n_gallery=6, multi_hot=multi_hot)
    expected = []
    for items in distances_and_hits(*given):
        aps = [slow_ap(ranking, depth) for ranking in rankings(items)]
        expected.append(float(sum(aps) / len(aps)))
    assert hamming.average_precisions(*given, depth).tolist() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=seeds, multi_hot=st.booleans())
def test_best_and_worst_are_the_extremes_over_all_orders(seed, multi_hot):
    given = world(seed, n_queries=2, n_gallery=6, multi_hot=multi_hot)
    aps = [[float(slow_ap(ranking)) for ranking in rankings(items)] for items in distances_and_hits(*given)]
    assert hamming.average_precisions(*given, ties="best").tolist() == pytest.approx([max(each) for each in aps])
    assert hamming.average_precisions(*given, ties="worst").tolist() == pytest.approx([min(each) for each in aps])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, multi_hot=st.booleans(), bits=st.sampled_from([1, 3, 16, 64, 65, 130]), depth=st.integers(1, 60))
def test_stable_ties_are_those_of_a_stable_sort(seed, multi_hot, bits, depth):
    given = world(seed, 5, 50, bits, multi_hot)
    expected = []
    for items in distances_and_hits(*given):
        expected.append(float(slow_ap([hit for _, hit in sorted(items, key=lambda item: item[0])], depth)))
    found = hamming.average_precisions(*given, depth, "stable")
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert hamming.hamming_map(*given, depth, "stable") == pytest.approx(100 * np.mean(expected))


def test_the_worked_example():
    found = {
        ties: hamming.average_precisions(*WORLD, ties=ties).tolist() for ties in ("stable", "best", "worst", "expected")
    }
    assert found["stable"] == pytest.approx([0.8041667, 0.8333333], abs=1e-7)
    assert found["best"] == pytest.approx([0.8875, 0.8333333], abs=1e-7)
    assert found["worst"] == pytest.approx([0.8041667, 0.7222222], abs=1e-7)
    assert found["expected"] == pytest.approx([0.8458333, 0.7777778], abs=1e-7)
    assert hamming.average_precisions(*WORLD, 3, "stable").tolist() == pytest.approx([0.8333333, 1.0], abs=1e-7)


def test_a_shorter_list_of_answers_can_have_the_higher_precision_at_k():
    """The example that users of DeepHash-pytorch complain about: AP@3 of [+ - -] is above that of [+ - +]."""
    codes = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, -1]])
    query, label = torch.tensor([[1, 1, 1]]), torch.tensor([0])
    with_two, with_one = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])
    assert hamming.average_precisions(query, codes, label, with_two, 3).item() == pytest.approx(5 / 6)
    assert hamming.average_precisions(query, codes, label, with_one, 3).item() == 1.0


def test_a_gallery_of_one_group_of_ties():
    """All items at one distance: a random order of 16 relevant ones among 300, by simulation."""
    generator = np.random.default_rng(0)
    hits = np.zeros(300, bool)
    hits[:16] = True
    simulated = [float(slow_ap(list(generator.permutation(hits)), 40)) for _ in range(4000)]
    query = torch.ones(1, 8)
    found = hamming.average_precisions(
        query, query.expand(300, 8), torch.tensor([1]), torch.from_numpy(hits).long(), top_k=40
    )
    assert abs(found.item() - np.mean(simulated)) < 4 * np.std(simulated) / 4000**0.5


@pytest.mark.parametrize(("items", "relevant", "depth"), [(2000, 700, 300), (900, 890, 450), (500, 1, 499)])
def test_a_depth_that_cuts_a_large_group_of_ties_by_fractions(items, relevant, depth):
    """Over how many relevant ones come before the depth, and at which of its places, all exactly."""
    expected = Fraction(0)
    for hits in range(max(1, depth - items + relevant), min(depth, relevant) + 1):
        ahead = Fraction(hits - 1, depth - 1)
        precision = sum((ahead * (place - 1) + 1) / place for place in range(1, depth + 1)) / depth
        expected += comb(relevant, hits) * comb(items - relevant, depth - hits) * precision
    labels = (torch.arange(items) < relevant).long()
    found = hamming.average_precisions(torch.ones(1, 4), torch.ones(items, 4), torch.tensor([1]), labels, depth)
    assert found.item() == pytest.approx(float(expected / comb(items, depth)), rel=1e-12)


def test_more_queries_than_are_counted_at_once():
    given = world(0, 600, 40, 16)
    found = hamming.average_precisions(*given)
    rows = [hamming.average_precisions(given[0][i : i + 1], given[1], given[2][i : i + 1], given[3]) for i in (0, 599)]
    assert [found[0].item(), found[599].item()] == [row.item() for row in rows]


@settings(max_examples=20, deadline=None)
@given(seed=seeds, bits=st.sampled_from([8, 16, 64, 72, 128]))
def test_distances_are_those_of_faiss(seed, bits):
    queries, gallery, _, _ = world(seed, 4, 30, bits)
    index = faiss.IndexBinaryFlat(bits)
    index.add(np.packbits(gallery.numpy() > 0, axis=1))
    distances, positions = index.search(np.packbits(queries.numpy() > 0, axis=1), 30)
    found = hamming.hamming_distance(queries, gallery)
    assert found.gather(1, torch.from_numpy(positions)).tolist() == distances.tolist()
    assert torch.equal(found.long(), (bits - queries @ gallery.T) // 2)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, multi_hot=st.booleans())
def test_precision_at_depths_is_the_mean_over_all_orders(seed, multi_hot):
    given = world(seed, n_queries=2, n_gallery=6, multi_hot=multi_hot)
    expected = torch.zeros(6, dtype=torch.float64)
    for items in distances_and_hits(*given):
        lists = list(rankings(items))
        for depth in range(1, 7):
            expected[depth - 1] += 50 * sum(sum(ranking[:depth]) / depth for ranking in lists) / len(lists)
    torch.testing.assert_close(hamming.precision_at(*given, range(1, 7)), expected)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, multi_hot=st.booleans(), radius=st.integers(0, 3))
def test_precision_within_a_radius(seed, multi_hot, radius):
    given = world(seed, 5, 20, multi_hot=multi_hot)
    shares = []
    for items in distances_and_hits(*given):
        near = [hit for distance, hit in items if distance <= radius]
        shares.append(sum(near) / len(near) if near else 0.0)
    assert hamming.precision_within(*given, radius) == pytest.approx(100 * np.mean(shares))


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_the_curve_of_precision_over_recall(seed):
    given = world(seed, 5, 20)
    recalls, expected = (0.01, 0.3, 0.5, 1.0), []
    for items in distances_and_hits(*given):
        hits = [hit for _, hit in sorted(items, key=lambda item: item[0])]
        row = []
        for recall in recalls if any(hits) else ():
            wanted = max(1, floor(recall * sum(hits) + 1e-9))
            depth = next(n for n in range(1, 21) if sum(hits[:n]) == wanted)
            row.append(100 * wanted / depth)
        expected += [row] if row else []
    found = hamming.precision_at_recall(*given, recalls, "stable")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).mean(0))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, multi_hot=st.booleans())
def test_the_curve_is_the_mean_over_all_orders_of_ties(seed, multi_hot):
    given = world(seed, n_queries=2, n_gallery=6, bits=2, multi_hot=multi_hot)
    recalls, rows = (0.01, 0.4, 0.5, 0.7, 1.0), []
    for items in distances_and_hits(*given):
        if any(hit for _, hit in items):
            rows.append(np.mean([slow_curve(ranking, recalls) for ranking in rankings(items)], axis=0))
    if rows:
        found = hamming.precision_at_recall(*given, recalls)
        assert found.tolist() == pytest.approx((100 * np.mean(rows, axis=0)).tolist())


def slow_curve(hits, recalls):
    places = [place for place, hit in enumerate(hits, start=1) if hit]
    wanted = [max(1, floor(recall * len(places) + 1e-9)) for recall in recalls]
    return [count / places[count - 1] for count in wanted]


def test_the_curve_of_a_large_gallery_of_ties_by_fractions():
    """The 100th of 300 relevant ones among 2,000, after five others that are nearer."""
    items, relevant, nearer, nth = 2000, 300, 5, 100
    expected = sum(
        Fraction(comb(place - 1, nth - 1) * comb(items - place, relevant - nth), nearer + place)
        for place in range(nth, items - relevant + nth + 1)
    )
    gallery = torch.ones(nearer + items, 4)
    gallery[nearer:, 0] = -1
    labels = torch.zeros(nearer + items, dtype=torch.long)
    labels[nearer : nearer + relevant] = 1
    found = hamming.precision_at_recall(torch.ones(1, 4), gallery, torch.tensor([1]), labels, (nth / relevant,))
    assert found.item() == pytest.approx(float(100 * nth * expected / comb(items, relevant)), rel=1e-11)


def test_without_ties_the_order_of_the_gallery_does_not_matter_to_the_curve():
    codes = torch.tensor([[-1, -1, -1], [1, 1, 1], [1, -1, -1], [1, 1, -1]])
    given = torch.ones(1, 3), codes, torch.tensor([1]), torch.tensor([1, 0, 1, 1])
    curves = [hamming.precision_at_recall(*given, (0.3, 0.7, 1.0), ties) for ties in ("expected", "stable")]
    for curve in curves:
        assert curve.tolist() == pytest.approx([50, 200 / 3, 75])


def test_the_first_k_relevant_ones_are_another_measure_than_precision_at_k():
    assert hamming.map_first_k_relevant(*WORLD, 100) == pytest.approx(hamming.hamming_map(*WORLD, ties="stable"))
    first_two = (1 + 2 / 3) / 2, 1.0  # of the rankings + - + + + - and + + + - - -, if stable
    stable = [[hit for _, hit in sorted(i, key=lambda item: item[0])] for i in distances_and_hits(*WORLD)]
    slow = [np.mean([sum(hits[: i + 1]) / (i + 1) for i in np.flatnonzero(hits)[:2]]) for hits in stable]
    assert hamming.map_first_k_relevant(*WORLD, 2) == pytest.approx(100 * np.mean(slow))
    assert first_two[1] == slow[1]


def test_items_and_queries_without_labels_answer_nothing():
    labels = GALLERY_LABELS.clone()
    labels[0] = 0
    nothing = torch.zeros(1, 2, dtype=torch.long)
    found = hamming.average_precisions(QUERIES, GALLERY, torch.cat([nothing, QUERY_LABELS[1:]]), labels)
    assert found[0] == 0 and found[1] > 0
    assert hamming.precision_within(QUERIES[:1], GALLERY, nothing, labels) == 0
    with pytest.raises(ValueError, match="no query has a relevant item"):
        hamming.precision_at_recall(QUERIES[:1], GALLERY, nothing, labels, (0.5,))


def test_zero_and_nan_have_a_defined_sign():
    assert hamming.codes_of(torch.tensor([[0.0, -0.0, 1e-30, -1e-30]])).tolist() == [[1, 1, 1, -1]]
    with pytest.raises(ValueError, match="NaN"):
        hamming.codes_of(torch.tensor([[0.0, torch.nan]]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_codes_of_zeros_and_ones_are_told_how_to_become_codes(dtype):
    """By the signs all of them would be +1."""
    bits = (GALLERY > 0).to(dtype)
    with pytest.raises(ValueError, match=r"gallery codes with other .*: codes of zeros and ones become .* by 2 \* cod"):
        hamming.hamming_map(QUERIES, bits, QUERY_LABELS, GALLERY_LABELS)
    assert torch.equal(2 * bits - 1, GALLERY.to(2 * bits - 1))
    if dtype == torch.bool:
        with pytest.raises(ValueError, match=r"outputs of shape \(.*\) of type bool: .* by 2 \* codes - 1"):
            hamming.codes_of(bits)
    with pytest.raises(ValueError, match=r"gallery codes with other values than -1 and \+1: see hamming.codes_of"):
        hamming.hamming_map(QUERIES, GALLERY / 2, QUERY_LABELS, GALLERY_LABELS)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_codes_may_have_any_type(dtype):
    expected = hamming.hamming_map(*WORLD)
    assert hamming.hamming_map(QUERIES.to(dtype), GALLERY.to(dtype), QUERY_LABELS, GALLERY_LABELS) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: QUERIES.float() / 2}, ValueError, "query codes with other values than -1 and"),
        ({1: (GALLERY > 0).long()}, ValueError, "gallery codes with other values than -1 and"),
        ({1: GALLERY[:, :3]}, ValueError, "query codes of 4 bits, gallery codes of 3"),
        ({0: QUERIES[0]}, ValueError, r"query codes of shape \(4,\): expected \[N, bits\]"),
        ({0: QUERIES[:0], 2: QUERY_LABELS[:0]}, ValueError, r"query codes of shape \(0, 4\)"),
        ({2: QUERY_LABELS[:1]}, DataError, "2 query codes and 1 labels"),
        ({3: GALLERY_LABELS[:, 0]}, DataError, "expected both"),
        ({4: 0}, ValueError, "top_k=0: expected a whole number of at least 1"),
        ({4: True}, ValueError, "top_k=True: expected a whole number"),
        ({4: 2.5}, ValueError, "top_k=2.5: expected a whole number"),
        ({5: "random"}, ValueError, "ties='random': expected one of"),
        ({4: 3, 5: "best"}, ValueError, "ties='best' with top_k=3: expected top_k=None"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, error, message):
    given = dict(enumerate((*WORLD, None, "expected"))) | change
    with pytest.raises(error, match=message):
        hamming.average_precisions(*given.values())


def test_impossible_depths_recalls_and_radii_are_refused():
    for call in (
        lambda: hamming.precision_at(*WORLD, (0,)),
        lambda: hamming.precision_at(*WORLD, (7,)),
        lambda: hamming.precision_at(*WORLD, (1, 1.5)),
        lambda: hamming.precision_at(*WORLD, (True,)),
        lambda: hamming.precision_at(*WORLD, ()),
        lambda: hamming.precision_at_recall(*WORLD, (0.0,)),
        lambda: hamming.precision_at_recall(*WORLD, (1.1,)),
        lambda: hamming.precision_at_recall(*WORLD, ()),
        lambda: hamming.precision_at_recall(*WORLD, (float("nan"),)),
        lambda: hamming.precision_at_recall(*WORLD, (0.5, float("nan"))),
        lambda: hamming.precision_at_recall(*WORLD, (0.5,), "best"),
        lambda: hamming.precision_within(*WORLD, -1),
        lambda: hamming.precision_within(*WORLD, 1.5),
        lambda: hamming.map_first_k_relevant(*WORLD, 0),
        lambda: hamming.map_first_k_relevant(*WORLD, 1.5),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_metrics_know_it_too():
    assert metrics.hamming_map is hamming.hamming_map


# Protocols


def test_a_protocol_measures_and_says_how():
    found = hamming.MapProtocol("a toy", 3, "stable").measure(*WORLD)
    assert found.percent == pytest.approx(hamming.hamming_map(*WORLD, 3, "stable"))
    assert str(found.protocol) == "MAP@3 on a toy, ties stable, queries without an answer zero"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "data='': expected the data set"),
        ({"data": None}, "data=None: expected the data set"),
        ({"top_k": 0}, "top_k=0: expected a whole number of at least 1"),
        ({"top_k": True}, "top_k=True: expected a whole number"),
        ({"ties": "random"}, "ties='random': expected one of"),
        ({"unanswered": "one"}, "unanswered='one': expected one of"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        hamming.MapProtocol(**({"data": "a toy"} | change))


@pytest.mark.parametrize("unanswered", ["zero", "left out"])
def test_a_protocol_leaves_out_the_queries_own_items(unanswered):
    """The last one has no answer but itself."""
    codes, labels = GALLERY, torch.tensor([0, 1, 0, 1, 0, 2])
    given, own = (codes, codes, labels, labels), torch.arange(6)
    expected = hamming.average_precisions(*given, own=own)
    assert expected[:5].all() and expected[5] == 0
    counted = expected if unanswered == "zero" else expected[:5]
    found = hamming.MapProtocol("a toy", unanswered=unanswered).measure(*given, own=own)
    assert torch.equal(found.by_query, counted)
    assert found.percent == pytest.approx(100 * counted.mean().item())


def test_queries_without_an_answer_count_zero_or_not_at_all():
    """One that is answered beyond the depth has an answer, and counts zero in both."""
    query_labels = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    gallery_labels = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    codes = torch.tensor([[1, 1, 1], [1, 1, -1], [-1, -1, -1]])
    given = torch.ones(3, 3), codes, query_labels, gallery_labels
    counted, left_out = (
        hamming.MapProtocol("a toy", 1, unanswered=rule).measure(*given) for rule in ("zero", "left out")
    )
    assert counted.percent == pytest.approx(100 / 3) and left_out.percent == pytest.approx(50)
    assert len(counted.by_query) == 3 and len(left_out.by_query) == 2
    with pytest.raises(ValueError, match="no query has an answer"):
        hamming.MapProtocol("a toy", unanswered="left out").measure(
            given[0][2:], codes, query_labels[2:], gallery_labels
        )


def test_numbers_of_different_protocols_refuse_one_table():
    measured = [hamming.MapProtocol("a toy", top_k).measure(*WORLD) for top_k in (None, None, 3)]
    table = hamming.side_by_side({"a": measured[0], "b": measured[1]})
    assert table.splitlines()[0] == "MAP@all on a toy, ties expected, queries without an answer zero:"
    assert table.count("81.2") == 2
    with pytest.raises(ValueError, match="MAPs of different top_k in one table: a: MAP@all .*; b: MAP@3"):
        hamming.side_by_side({"a": measured[0], "b": measured[2]})
    with pytest.raises(ValueError, match="no MAP"):
        hamming.side_by_side({})


def test_numbers_of_other_queries_or_of_lists_that_leave_out_an_item_refuse_one_table():
    codes, labels = GALLERY, torch.tensor([0, 1, 0, 1, 0, 2])
    protocol, given = hamming.MapProtocol("a toy"), (codes, codes, labels, labels)
    whole, fewer = protocol.measure(*given), protocol.measure(codes[:3], codes, labels[:3], labels)
    without = protocol.measure(*given, own=torch.arange(6))
    for other, what in ((fewer, "queries"), (without, "without itself")):
        with pytest.raises(ValueError, match=f"MAPs of different {what} in one table: a: .*, 6 queries; b: "):
            hamming.side_by_side({"a": whole, "b": other})


@pytest.mark.parametrize("ties", ["expected", "stable", "best", "worst"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_query_that_is_an_item_does_not_find_itself(ties, top_k):
    if top_k and ties in ("best", "worst"):
        pytest.skip("for the whole gallery alone")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (30, 8), generator=generator) * 2 - 1
    labels = torch.randint(0, 3, (30,), generator=generator)
    own = torch.tensor([4, 0, 29])
    found = hamming.average_precisions(codes[own], codes, labels[own], labels, top_k, ties, own)
    for value, at in zip(found, own.tolist(), strict=True):
        rest = [other for other in range(30) if other != at]
        alone = hamming.average_precisions(codes[[at]], codes[rest], labels[[at]], labels[rest], top_k, ties)
        assert value.item() == pytest.approx(alone.item())


def test_a_position_that_is_not_there_is_refused():
    codes, labels = torch.ones(3, 4), torch.tensor([0, 0, 1])
    impossible = {
        r"own of shape \(3,\), torch.int64": torch.tensor([0, 1, 3]),
        r"own of shape \(2,\), torch.int64": torch.tensor([0, 1]),
        r"own of shape \(3,\), torch.float32": torch.tensor([0.0, 1.0, 2.0]),
        r"own of shape \(3,\), torch.complex64": torch.tensor([0j, 1, 2]),
        r"own of shape \(3,\), torch.bool": torch.tensor([True, False, True]),
        "own is a list": [0, 1, 2],
    }
    for said, own in impossible.items():
        with pytest.raises(ValueError, match=rf"{said}: expected int \[3\], a gallery position below 3"):
            hamming.average_precisions(codes, codes, labels, labels, own=own)
