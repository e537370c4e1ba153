"""Center-guided training: its loss by the formula, centers in both modes, and codes that have to be known."""

import pytest
import torch

from robret_lib.defenses import CenterGuided, cgat
from robret_lib.hashing import DPH, HashObjective, KnownCodes, center_code
from robret_lib.hashing.center_code import center_votes, votes_of
from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    INNER,
    MODES,
    a_defense,
    assert_the_loss_is,
    first_codes,
    given,
    in_modes_with_dropout,
    share,
    small_network,
    some_split,
)
from tests.test_center_code import CODES, LABELS


def slow_center(label, known, mode, overlap=share):
    """``sign(N_n sum_p w_p b_p - sum_p w_p sum_n b_n)``, the published one; where a side is empty, the other."""
    own = [(float(overlap(label, theirs)), as_kept(code, mode)) for code, theirs in known if share(label, theirs)]
    others = [as_kept(code, mode) for code, theirs in known if not share(label, theirs)]
    if not own or not others:
        if mode == "reference":
            return torch.zeros(known.codes.shape[1], dtype=torch.float64)
        return slow_sign(sum(weight * code for weight, code in own) if own else -sum(others), mode)
    pulled, pushed = sum(weight * code for weight, code in own), sum(others)
    return slow_sign(len(others) * pulled - sum(weight for weight, _ in own) * pushed, mode)


def as_kept(code, mode):
    """A code of the training set: as published what a batch has left there, relaxed; else binary."""
    return code if mode == "reference" else code.sign()


def slow_sign(votes, mode):
    draw = 0.0 if mode == "reference" else 1.0
    return torch.tensor([draw if abs(vote) < 1e-9 else 1.0 if vote > 0 else -1.0 for vote in votes.tolist()]).double()


def price_by(center, mode, *more):
    """``-mean_k h_k c_k`` with the center of each image."""

    def price(labels, known):
        centers = [center(label, known, mode, *more) for label in labels]
        return [lambda code, c=c: -(code * c).sum() / len(c) for c in centers]

    return price


@in_modes_with_dropout
def test_the_loss_is_the_slow_one(mode, dropout):
    assert_the_loss_is("cgat", mode, dropout, price_by(slow_center, mode))


@pytest.mark.parametrize("mode", MODES)
def test_by_jaccard_weights_it_is_the_slow_one(mode):
    def jaccard(one, other):
        return (one * other).sum() / ((one + other) > 0).sum()

    assert_the_loss_is("cgat", mode, 0.0, price_by(slow_center, mode, jaccard), weights="jaccard")


def of_four_codes(mode, labels=LABELS, made=CenterGuided):
    """With the codes of the worked example."""
    clean = HashObjective(DPH(), KnownCodes(labels, 4, "zeros" if mode == "reference" else "left out"))
    clean.known.fill(0.3 * CODES)
    return made(INNER, clean, mode=mode)


def centers_of(defense, labels):
    return defense.centers(defense.label_information(torch.tensor(labels))).tolist()


EXAMPLE = [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_the_published_centers_of_the_worked_example():
    """A draw is no vote, and nobody's center is none."""
    centers = centers_of(of_four_codes("reference"), EXAMPLE)
    assert centers == [[1, 0, 0, -1], [1, 1, 1, -1], [-1, -1, -1, 1], [0, 0, 0, 0]]


def test_where_the_published_code_has_no_center_there_is_a_better_one():
    """+1 for a draw; without company the negative of all others, among which three bits are even."""
    centers = centers_of(of_four_codes("fixed"), EXAMPLE)
    assert centers == [[1, 1, 1, -1], [1, 1, 1, -1], [-1, -1, -1, 1], [1, 1, 1, -1]]


def test_where_all_share_a_label_the_published_code_has_no_center():
    everyone = torch.tensor([[1, 0, 0]]).expand(4, 3)
    assert centers_of(of_four_codes("reference", everyone), [[1, 0, 0]]) == [[0, 0, 0, 0]]
    assert centers_of(of_four_codes("fixed", everyone), [[1, 0, 0]]) == [[1, 1, 1, 1]]


@pytest.mark.parametrize("weights", ["binary", "jaccard", "cosine"])
def test_centers_are_those_of_all_codes_one_by_one(weights):
    """Though these are summed up by label vectors."""
    split, codes = some_split(), first_codes()
    defense = a_defense("cgat", weights=weights)
    expected = center_code(split.labels, codes, split.labels, weights)
    assert torch.equal(defense.centers(defense.label_information(split.labels)), expected)
    sums = torch.zeros(len(defense.label_vectors), BITS).index_add_(0, defense.group, codes)
    votes = votes_of(defense.label_information(split.labels), sums, defense.counts)
    one_by_one = center_votes(split.labels, codes, split.labels, weights)
    torch.testing.assert_close(votes, one_by_one, rtol=0, atol=1e-12)
    assert len(defense.label_vectors) < len(codes) and defense.counts.sum() == len(codes)


@pytest.mark.parametrize("mode", MODES)
def test_the_center_is_told_anew_by_the_clean_codes_of_the_batch(mode, monkeypatch):
    defense, model, told = a_defense("cgat", mode), small_network(), []
    centers = CenterGuided.centers

    def noted(self, shared):
        told.append((centers(self, shared), self.clean.known.codes.clone()))
        return told[-1][0]

    monkeypatch.setattr(CenterGuided, "centers", noted)
    before = defense.clean.known.codes.clone()
    given(defense, model, BATCHES[0])
    (first, known_first), (second, known_second) = told
    assert torch.equal(known_first, before) and not torch.equal(first, second)
    changed = (known_second != before).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(BATCHES[0].tolist())


def test_a_step_makes_two_centers_of_sums_over_label_vectors(monkeypatch):
    """So what they cost does not grow with the training set, but for one sum."""
    told = []
    monkeypatch.setattr(
        cgat, "votes_of", lambda shared, sums, counts: told.append(sums) or votes_of(shared, sums, counts)
    )
    defense = a_defense("cgat")
    given(defense, small_network(), BATCHES[0])
    assert [len(sums) for sums in told] == [len(defense.label_vectors)] * 2
    assert len(defense.label_vectors) < len(defense.clean.known.codes)


@pytest.mark.parametrize("mode", MODES)
def test_codes_that_are_not_known_are_missed(mode):
    defense = a_defense("cgat", mode, known=False)
    with pytest.raises(RuntimeError, match=r"37 codes of the training set are not known: .* see KnownCodes\.fill"):
        given(defense, small_network(), BATCHES[0])
    defense.clean.known.with_batch(torch.arange(36), torch.ones(36, 8))
    with pytest.raises(RuntimeError, match="1 codes of the training set are not known"):
        given(defense, small_network(), BATCHES[0])


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights='mean': expected one of"):
        a_defense("cgat", weights="mean")
