"""Cross-modal triplets: an order in every one of them, which items may be chosen, and which anchors have none."""

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robret_lib.cross_modal.triplets import SHARE, Triplets, cross_modal_triplets
from tests.small_cross_modal import random_codes, seeded

CHOICES = ["ordered", "extreme"]


def distance(one, other):
    return sum(int(a != b) for a, b in zip(one.tolist(), other.tolist(), strict=True))


def draws(anchor, others, choice):
    """All pairs that may be drawn for an anchor, with whether they are in order: lists and loops."""
    distances = [distance(anchor, other) for other in others]
    few = max(1, ceil(SHARE * len(others)))
    ascending = sorted(distances)
    near = {item for item, d in enumerate(distances) if d <= ascending[few - 1]}
    far = {item for item, d in enumerate(distances) if d >= ascending[-few]}
    pairs = {}
    for positive in near:
        clearly = {n for n, d in enumerate(distances) if d >= distances[positive] + ceil(len(anchor) / 8)}
        negatives = clearly if choice == "ordered" and clearly else far
        pairs |= {(positive, negative): distances[negative] > distances[positive] for negative in negatives}
    return pairs


@settings(max_examples=60)
@given(
    anchors=st.integers(1, 6),
    others=st.integers(2, 45),
    bits=st.integers(1, 20),
    kinds=st.integers(1, 50),
    choice=st.sampled_from(CHOICES),
    seed=st.integers(0, 2**16),
)
def test_a_positive_is_strictly_nearer_and_both_are_as_the_rule_says(anchors, others, bits, kinds, choice, seed):
    """Few kinds of codes make many ties, one makes nothing else."""
    given_codes, other_codes = random_codes(anchors, bits, seed), random_codes(kinds, bits, seed + 1)
    other_codes = other_codes[torch.randint(kinds, (others,), generator=seeded(seed))]
    found = cross_modal_triplets(given_codes, other_codes, choice, seeded(seed))
    chosen = {}
    for anchor, positive, negative in zip(*(part.tolist() for part in found), strict=True):
        code = given_codes[anchor]
        assert distance(code, other_codes[positive]) < distance(code, other_codes[negative])
        assert draws(code, other_codes, choice)[positive, negative]
        chosen[anchor] = positive, negative
    assert list(chosen) == sorted(chosen) and len(chosen) == len(found.anchors)
    for anchor in set(range(anchors)) - set(chosen):
        assert not all(draws(given_codes[anchor], other_codes, choice).values())


@pytest.mark.parametrize("choice", CHOICES)
def test_every_pair_that_the_rule_allows_is_drawn_at_times(choice):
    """Among 30 items of 8 bits two are the nearest, and many are tied."""
    anchor, others = random_codes(1, 8, seed=3), random_codes(30, 8, seed=4)
    possible, drawn = draws(anchor[0], others, choice), set()
    expected = {pair for pair, in_order in possible.items() if in_order}
    for seed in range(40 * len(possible)):
        found = cross_modal_triplets(anchor, others, choice, seeded(seed))
        drawn |= set(zip(found.positives.tolist(), found.negatives.tolist(), strict=True))
    assert len(expected) > 5
    assert drawn == expected


def bits_apart(*counts, bits=16):
    """Codes that differ from one of ones in so many bits."""
    return torch.stack([1 - 2 * (torch.arange(bits) < count).to(torch.int8) for count in counts])


def test_the_worked_rule():
    """16 bits: a negative is at least two bits farther than the positive, whatever is farthest."""
    anchor, others = bits_apart(0), bits_apart(1, 2, 3, 9)
    drawn = {cross_modal_triplets(anchor, others, "ordered", seeded(seed)).negatives.item() for seed in range(50)}
    assert drawn == {2, 3}
    assert {cross_modal_triplets(anchor, others, "extreme", seeded(s)).negatives.item() for s in range(20)} == {3}


def test_where_nothing_is_clearly_farther_the_farthest_counts():
    anchor, others = bits_apart(0), bits_apart(3, 3, 4, 3)
    for choice in CHOICES:
        found = cross_modal_triplets(anchor, others, choice, seeded())
        assert found.negatives.tolist() == [2] and found.positives.item() != 2


@pytest.mark.parametrize("choice", CHOICES)
def test_an_anchor_without_an_order_is_left_out(choice):
    """Both other codes are as far from the second and fourth anchor; the first and third tell them apart."""
    others = torch.tensor([[1, 1, -1, -1], [-1, -1, -1, -1]])
    anchors = torch.tensor([[1, 1, 1, 1], [1, -1, 1, 1], [-1, -1, 1, 1], [-1, 1, 1, -1]])
    found = cross_modal_triplets(anchors, others, choice, seeded())
    assert found.anchors.tolist() == [0, 2]
    assert found.positives.tolist() == [0, 1] and found.negatives.tolist() == [1, 0]


def test_equal_codes_make_no_triplet():
    codes = random_codes(1).expand(10, -1)
    found = cross_modal_triplets(random_codes(5, seed=1), codes, generator=seeded())
    assert isinstance(found, Triplets) and [part.shape for part in found] == [(0,)] * 3


@pytest.mark.parametrize("choice", CHOICES)
def test_the_same_generator_makes_the_same_triplets_and_another_makes_others(choice):
    anchors, others = random_codes(30, seed=1), random_codes(40, seed=2)
    first, again, other = (cross_modal_triplets(anchors, others, choice, seeded(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(*each) for each in zip(first, again, strict=True))
    assert not torch.equal(first.positives, other.positives)


def test_without_a_generator_torch_s_own_is_drawn_from():
    anchors, others, found = random_codes(30, seed=1), random_codes(40, seed=2), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(cross_modal_triplets(anchors, others).negatives)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("anchors", "others", "choice", "message"),
    [
        (random_codes(3), random_codes(3), "nearest", "choice='nearest': expected one of"),
        (random_codes(3), random_codes(1), "ordered", "1 codes of the other kind: expected at least two"),
        (random_codes(3), random_codes(3).float() / 2, "ordered", "other values than -1 and"),
        (random_codes(3, 8), random_codes(3, 9), "ordered", "query codes of 8 bits, gallery codes of 9"),
    ],
)
def test_impossible_codes_and_choices_are_refused(anchors, others, choice, message):
    with pytest.raises(ValueError, match=message):
        cross_modal_triplets(anchors, others, choice)
