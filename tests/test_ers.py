"""ERS: the formula gives every number that was printed."""

import pytest

from robret_lib import runs
from robret_lib.scores import ers
from robret_lib.scores.ers import NORMALIZED

TABLES = runs.expected("hm_ers_tables")["rows"]


def rows_of(*values):
    return dict(zip(NORMALIZED, values, strict=True))


@pytest.mark.parametrize("table", "ABCDEFGH")
def test_every_printed_score_follows_from_its_rows(table):
    """The rows are rounded to a tenth or a thousandth, the printed score as well."""
    printed = [row for row in TABLES if row["table"] == table]
    assert len(printed) >= 6
    for row in printed:
        assert ers(row["rows"]) == pytest.approx(row["value"], abs=0.11), row["metric"]


def test_all_of_the_published_rows_are_there():
    assert len(TABLES) == 88 == len({row["metric"] for row in TABLES})
    assert [sum(row["table"] == table for row in TABLES) for table in "ABCDEFGH"] == [9, 9, 9, 20, 13, 10, 6, 12]


@pytest.mark.parametrize(
    "rows, score",
    [
        (rows_of(0.0, 100.0, 0.0, 99.9, 0.883, 1.762, 0.0, 0.0, 14.1, 0.0), 3.8),
        (rows_of(15.5, 37.7, 16.6, 30.9, 0.753, 0.506, 17.9, 16.7, 27.3, 2.9), 36.0),
        (rows_of(19.8, 92.4, 42.0, 51.9, 1.000, 0.000, 1.2, 1.2, 1.0, 14.1), 29.7),
        (rows_of(50, 0, 50, 0, 0, 0, 100, 100, 100, 100), 100.0),
        (rows_of(0, 100, 0, 100, 1, 2, 0, 0, 0, 0), 0.0),
    ],
)
def test_rows_and_scores_one_knows(rows, score):
    """No defense, a defense, a collapsed model; the ends of the scale."""
    assert ers(rows) == pytest.approx(score, abs=0.05)


def test_the_order_of_the_rows_does_not_matter_and_each_weighs_a_tenth():
    rows = rows_of(10, 20, 30, 40, 0.5, 0.6, 70, 80, 90, 15)
    assert ers(dict(reversed(rows.items()))) == ers(rows)
    steps = {"CA+": 0.2, "CA-": -0.1, "QA+": 0.2, "QA-": -0.1, "TMA": -10, "ES:D": -5}
    for name in rows:
        assert ers(rows | {name: rows[name] + 1}) - ers(rows) == pytest.approx(steps.get(name, 0.1))


def test_rows_that_are_missing_or_unknown_are_named():
    rows = rows_of(*range(10))
    with pytest.raises(ValueError, match=r"rows: ES:D GTT missing; expected CA\+ CA- QA\+"):
        ers({name: value for name, value in rows.items() if name not in ("ES:D", "GTT")})
    with pytest.raises(ValueError, match="rows: TMA missing, tma R@1 unknown; expected"):
        ers({name: value for name, value in rows.items() if name != "TMA"} | {"tma": 0.5, "R@1": 80})


def test_the_published_table_of_fashion_mnist_follows_from_its_rows():
    """Its scores are not printed but computed, for the two distances that have one."""
    values = {row["metric"]: row["value"] for row in runs.expected("05_ers_fashion")["rows"]}
    for model in ("(N)", "(C)", "(EST, N)", "(EST, C)", "(ACT, N)", "(ACT, C)"):
        assert ers({name: values[f"{name} {model}"] for name in NORMALIZED}) == pytest.approx(
            values[f"ERS {model}"], abs=0.06
        )
    assert not any(metric.startswith("ERS") and "E)" in metric for metric in values)
