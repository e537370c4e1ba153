"""The center code is the best of all codes, and its negative the worst."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robret_lib.data import relevance
from robret_lib.hashing.center_code import center_code, center_votes, overlap, votes_of

CODES = torch.tensor([[1, -1, 1, -1], [-1, 1, 1, 1], [1, 1, -1, 1], [-1, -1, -1, 1]])
LABELS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("label", "own", "others", "expected"),
    [
        ([1, 0, 0], 2, 2, [8, 0, 0, -4]),
        ([1, 1, 0], 3, 1, [4, 4, 4, -2]),
        ([0, 0, 1], 1, 3, [-4, -4, -4, 2]),
    ],
)
def test_the_worked_example(label, own, others, expected):
    """By CgAT's formula: N_n times the sum over positives, less N_p times that over negatives."""
    votes = center_votes(torch.tensor([label]), CODES, LABELS)[0]
    torch.testing.assert_close(votes * own * others, torch.tensor(expected, dtype=torch.float64))
    assert center_code(torch.tensor([label]), CODES, LABELS).tolist() == [[1.0 if v >= 0 else -1.0 for v in expected]]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([1, 0, 0], [2, -0.171573, 0.171573, -1.171573]),
        ([1, 1, 0], [1.414214, 1.414214, 1.171573, -0.585786]),
        ([0, 0, 1], [-4 / 3, -4 / 3, -4 / 3, 2 / 3]),
        ([0, 0, 0], [0, 0, 0, -0.5]),
    ],
)
def test_the_worked_example_of_the_mainstay_code(label, expected):
    """SAAT's: cosine weights."""
    votes = center_votes(torch.tensor([label]), CODES, LABELS, "cosine")[0]
    assert votes.tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.sampled_from(["binary", "jaccard", "cosine"]),
    balanced=st.booleans(),
)
def test_no_code_is_nearer_to_its_own_and_farther_from_the_others(seed, weights, balanced):
    """Of all 256 there are; the last image has no label."""
    generator = torch.Generator().manual_seed(seed)
    codes = 2 * torch.randint(0, 2, (9, 8), generator=generator) - 1
    labels = (torch.rand(9, 3, generator=generator) < 0.4).long()
    asked = (torch.rand(4, 3, generator=generator) < 0.5).long()
    asked[-1] = 0
    own = overlap(asked, labels, weights).double()
    others = (own == 0).double()
    every = torch.tensor(list(product((-1, 1), repeat=8)))
    distances = (8 - every @ codes.T).double() / 2
    for row, code in enumerate(center_code(asked, codes, labels, weights, balanced)):
        sums = [part[row].sum().clamp(min=1e-12) if balanced else 1 for part in (own, others)]
        goals = distances @ (own[row] / sums[0] - others[row] / sums[1])
        place = (every == code).all(1).nonzero().item()
        opposite = (every == -code).all(1).nonzero().item()
        assert goals[place] == pytest.approx(goals.min().item(), abs=1e-9)
        assert goals[opposite] == pytest.approx(goals.max().item(), abs=1e-9)


@pytest.mark.parametrize(
    ("label", "weights", "votes"),
    [
        ([1, 0, 0], "binary", [4, 0, 0, -2]),
        ([1, 1, 0], "binary", [2, 2, 2, 0]),
        ([0, 0, 1], "binary", [-2, -2, -2, 0]),
        ([0, 0, 0], "binary", [0, 0, 0, -2]),
        ([1, 0, 0], "jaccard", [3.5, -0.5, 0.5, -2.5]),
    ],
)
def test_without_balance_the_larger_side_decides(label, weights, votes):
    """As in CgAT's first commits: sums in the place of means."""
    assert center_votes(torch.tensor([label]), CODES, LABELS, weights, balanced=False)[0].tolist() == votes


@pytest.mark.parametrize("size", [6, 60_000, 3_000_006])
def test_a_draw_is_exactly_no_vote_however_many_there_are(size):
    """Of those that share the label, and of the others, as many have the first bit, and all the last."""
    place = torch.arange(size)
    labels = torch.nn.functional.one_hot((place % 3 > 0).long(), 2)
    codes = torch.ones(size, 2)
    codes[place // 3 % 3 == 0, 0] = -1
    codes = codes if size > 6 else torch.tensor([[1, 1], [1, 1], [1, 1], [-1, 1], [-1, 1], [-1, 1]])
    assert center_votes(torch.eye(2, dtype=torch.int64), codes, labels).tolist() == [[0, 0], [0, 0]]
    assert center_code(torch.eye(2, dtype=torch.int64), codes, labels).tolist() == [[1, 1], [1, 1]]
    codes[0, 0] *= -1
    votes = center_votes(torch.eye(2, dtype=torch.int64), codes, labels)
    assert votes[0, 0] * votes[1, 0] < 0 and votes[:, 1].tolist() == [0, 0]


def test_votes_may_be_told_by_what_is_in_common():
    shared = overlap(LABELS, LABELS, "cosine")
    assert torch.equal(votes_of(shared, CODES), center_votes(LABELS, CODES, LABELS, "cosine"))


def test_by_single_labels_all_weights_are_alike():
    labels, codes = torch.arange(7) % 3, 2 * (torch.arange(28).reshape(7, 4) % 5 > 2).long() - 1
    hot = torch.nn.functional.one_hot(labels, 3)
    votes = [center_votes(hot, codes, hot, weights) for weights in ("binary", "jaccard", "cosine")]
    assert torch.equal(votes[0], votes[1]) and torch.equal(votes[0], votes[2])


def test_where_one_side_is_empty_the_other_decides():
    all_share = torch.ones_like(LABELS)
    assert center_code(torch.tensor([[1, 0, 0]]), CODES[:3], all_share[:3]).tolist() == [[1, 1, 1, 1]]
    nobody = center_code(torch.tensor([[0, 0, 0]]), CODES[:1], LABELS[:1])
    assert nobody.tolist() == (-CODES[:1]).tolist()


def test_classes_may_be_numbers():
    hot = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3)
    by_number = center_code(torch.tensor([0, 2]), CODES, torch.tensor([0, 1, 2, 0]))
    assert torch.equal(by_number, center_code(hot[[0, 2]], CODES, hot))


@pytest.mark.parametrize(
    ("weights", "expected"), [("binary", 1.0), ("jaccard", 1 / 3), ("cosine", 1 / 2**0.5 / 2**0.5)]
)
def test_weights_of_labels_in_common(weights, expected):
    labels, others = torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.tensor([[0, 1, 1], [0, 0, 0]])
    found = overlap(labels, others, weights)
    assert found[0].tolist() == pytest.approx([expected, 0.0]) and found[1].tolist() == [0.0, 0.0]
    assert torch.equal(found > 0, relevance(labels, others))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_codes": CODES / 2}, "train codes with other values than -1 and"),
        ({"train_codes": CODES * torch.nan}, "train codes with other values than -1 and"),
        ({"train_codes": CODES[0]}, r"train codes of shape \(4,\): expected \[N, bits\]"),
        ({"train_codes": CODES[:0], "train_labels": LABELS[:0]}, r"train codes of shape \(0, 4\)"),
        ({"train_codes": CODES[:3]}, "3 train codes and 4 labels: expected one for each"),
        ({"train_labels": LABELS[:3]}, "4 train codes and 3 labels: expected one for each"),
        ({"labels": LABELS[:, :2]}, "expected both int"),
        ({"labels": torch.arange(4)}, "expected both int"),
        ({"labels": LABELS * 0.5}, "other values than 0 and 1"),
    ],
)
def test_codes_and_labels_that_do_not_fit_are_refused(change, message):
    given = {"labels": LABELS, "train_codes": CODES, "train_labels": LABELS} | change
    with pytest.raises(ValueError, match=message):
        center_code(**given)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights='mean': expected one of"):
        center_code(LABELS, CODES, LABELS, "mean")


def test_what_rounding_leaves_of_a_draw_is_a_draw():
    """Three of ten sum up to 0.3 or to a hair more, by the order of the sum."""
    codes = torch.tensor([[1.0, -1.0]] * 3 + [[-1.0, 1.0]])
    shared = torch.tensor([[0.1, 0.2, 0.3, 0.6]], dtype=torch.float64)
    assert 0.1 + 0.2 + 0.3 != 0.6
    assert votes_of(shared, codes).tolist() == [[0.0, 0.0]]
