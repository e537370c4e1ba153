"""Our own score of the ten rows: 0 where an attacker has all he wants, 100 where nothing moved."""

import pytest

from robret_lib import runs
from robret_lib.scores import ers, relative_robustness
from robret_lib.scores.ers import NORMALIZED

BENIGN = {
    "CA+": 50.0,
    "CA-": 1.5,
    "QA+": 49.0,
    "QA-": 0.5,
    "TMA": 0.2,
    "ES:D": 0.0,
    "ES:R": 80.0,
    "LTM": 80.0,
    "GTM": 80.0,
    "GTT": 100.0,
    "R@1": 80.0,
    "R@1 by chance": 10.0,
    "GTT by chance": 1.0,
    "pair distance": 1.2,
}
BROKEN = {"CA+": 0, "CA-": 100, "QA+": 0, "QA-": 100, "TMA": 1, "ES:D": 1.2, "ES:R": 10, "LTM": 10, "GTM": 10, "GTT": 1}
UNMOVED = {name: BENIGN[name] for name in NORMALIZED}


def test_unmoved_is_100_and_broken_is_0_and_between_them_it_is_straight():
    assert relative_robustness(UNMOVED, BENIGN) == 100
    assert relative_robustness(BROKEN, BENIGN) == 0
    halfway = {name: (UNMOVED[name] + BROKEN[name]) / 2 for name in NORMALIZED}
    assert relative_robustness(halfway, BENIGN) == pytest.approx(50)


@pytest.mark.parametrize("name", NORMALIZED)
def test_each_row_counts_a_tenth_and_nothing_beyond_its_ends(name):
    assert relative_robustness(UNMOVED | {name: BROKEN[name]}, BENIGN) == pytest.approx(90)
    assert relative_robustness(BROKEN | {name: UNMOVED[name]}, BENIGN) == pytest.approx(10)
    way = BROKEN[name] - UNMOVED[name]
    assert relative_robustness(UNMOVED | {name: BROKEN[name] + way}, BENIGN) == pytest.approx(90)
    assert relative_robustness(BROKEN | {name: UNMOVED[name] - way}, BENIGN) == pytest.approx(10)


def test_no_scale_of_distances_and_no_common_direction_gains_anything():
    """An embedding moved by a common offset and shrunk: cosines near one, small shifts, the same ranks."""
    rows = {name: 0.7 * UNMOVED[name] + 0.3 * BROKEN[name] for name in NORMALIZED}
    shrunk = BENIGN | {"TMA": 1 - 0.8 * 1e-4, "pair distance": 1.2e-2}
    small = rows | {"TMA": 1 - (1 - rows["TMA"]) * 1e-4, "ES:D": rows["ES:D"] / 100}
    assert relative_robustness(small, shrunk) == pytest.approx(relative_robustness(rows, BENIGN))
    assert abs(ers(small) - ers(rows)) > 3


@pytest.mark.parametrize("recall, factor", [(80.0, 1), (28.0, 1), (23.5, 0.5), (19.0, 0), (10.0, 0), (0.0, 0)])
def test_a_model_that_finds_nothing_has_nothing_to_lose(recall, factor):
    """Chance is 10 %; a tenth of the way from 10 to 100 is 9 points."""
    benign = BENIGN | {"R@1": recall, "ES:R": recall, "LTM": recall, "GTM": recall}
    unmoved = {name: benign[name] for name in NORMALIZED}
    assert relative_robustness(unmoved, benign) == pytest.approx(100 * factor * (1 if recall > 10 else 0))


def test_nothing_is_divided_by_zero():
    """All embeddings alike, one class alone, four items: whatever cannot be lost is not kept."""
    dead = BENIGN | {"CA+": 0, "CA-": 100, "QA+": 0, "QA-": 100, "TMA": 1, "pair distance": 0, "GTT by chance": 100}
    dead |= {"R@1 by chance": 80.0}
    assert relative_robustness({name: dead[name] for name in NORMALIZED}, dead) == 0
    certain = BENIGN | {"R@1": 100.0, "ES:R": 100.0, "LTM": 100.0, "GTM": 100.0, "R@1 by chance": 100.0}
    assert relative_robustness(UNMOVED, certain) == 0


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="rows: GTT missing"):
        relative_robustness({name: UNMOVED[name] for name in list(NORMALIZED)[:-1]}, BENIGN)
    with pytest.raises(ValueError, match=r"benign: CA\+, R@1 by chance missing; expected CA\+, .*, pair distance"):
        relative_robustness(UNMOVED, {n: v for n, v in BENIGN.items() if n not in ("CA+", "R@1 by chance")})


def test_a_collapsed_model_that_was_published_passes_a_working_one_in_ers_alone():
    """CUB, five steps of hardness manipulation apart: one finds 38 %, one nothing. 5,924 images of 100 classes."""
    printed = {(row["table"], row["defense"], row["eta"]): row for row in runs.expected("hm_ers_tables")["rows"]}
    collapsed, working = printed["E", "HM[S,0]", 8], printed["D", "HM[S,M]", 8]
    assert collapsed["benign"]["R@1"] < 1 and working["benign"]["R@1"] > 38
    assert ers(collapsed["rows"]) > ers(working["rows"])

    def ours(row, cosine, pair):
        recall = row["benign"]["R@1"]
        benign = BENIGN | {"R@1": recall, "ES:R": recall, "LTM": recall, "GTM": recall, "TMA": cosine}
        benign |= {"R@1 by chance": 1.0, "pair distance": pair}
        return relative_robustness(row["rows"], benign)

    assert ours(collapsed, cosine=1.0, pair=1e-3) == 0
    assert ours(working, cosine=0.5, pair=0.9) > 15
