"""The table of published numbers beside ours."""

import json
import statistics

import pytest
import torch

from robret_lib import runs

CHAPTER = "90_tiny"
ROWS = [
    {"metric": "R@1 (N)", "value": 87.6, "tolerance": 2.0, "unit": "%"},
    {"metric": "CA+|w=1", "value": 49.2, "tolerance": 0.5},
    {"metric": "ES:D", "value": "not found", "tolerance": 1},
    {"metric": "NMI", "value": None},
]


@pytest.fixture
def workflow(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "expected").mkdir()
    table = {"schema": 1, "title": "Table J", "source": "RobRank README", "rows": ROWS}
    (tmp_path / "expected" / "table.json").write_text(json.dumps(table))
    return tmp_path


def run_once(workflow, values, seed=0, steps=5, scale="full", **finish):
    rules = {
        "scale": runs.choice("quick", "full"),
        "seed": runs.integer(),
        "steps": runs.integer(),
        "device": runs.choice("cpu"),
        "out_dir": runs.folder(),
    }
    given = {
        "scale": scale,
        "seed": seed,
        "steps": steps,
        "device": "cpu",
        "out_dir": str(workflow / "results"),
    }
    pairs = {name: value if isinstance(value, tuple) else (value, None) for name, value in values.items()}
    metrics = {name: runs.measured(value, n=10_000, spread=error) for name, (value, error) in pairs.items()}
    run = runs.start(CHAPTER, given, **rules)
    return run.finish(**({"metrics": metrics, "protocol": "toy", "mode": "fixed"} | finish))


def cells(workflow):
    """The table's rows without its head, as lists of cells."""
    lines = runs.comparison_table("table", CHAPTER, workflow).splitlines()[2:]
    return [[cell.strip() for cell in line.replace("\\|", "¦").split("|")[1:-1]] for line in lines]


def test_without_any_run_every_metric_says_so(workflow):
    assert cells(workflow) == [
        ["R@1 (N), %", "87.6", "not run", "", "", "of 2", "", "", ""],
        ["CA+¦w=1", "49.2", "not run", "", "", "of 0.5", "", "", ""],
        ["ES:D", "not published", "not run", "", "", "of 1", "", "", ""],
        ["NMI", "not published", "not run", "", "", "", "", "", ""],
    ]


def test_the_head_has_as_many_columns_as_the_rows(workflow):
    head, rule, *rows = runs.comparison_table("table", CHAPTER, workflow).replace("\\|", "").splitlines()
    columns = "metric | published | ours ± s.e. | difference | in s.e. | within tolerance | run with | n | mode"
    assert head == f"| {columns} |"
    assert {line.count("|") for line in (head, rule, *rows)} == {10}


def test_one_run_stands_beside_the_published_number(workflow):
    run_once(workflow, {"R@1 (N)": (85.6, 0.4), "CA+|w=1": 50.0, "ES:D": (1.2, 0.03)})
    assert cells(workflow)[:3] == [
        ["R@1 (N), %", "87.6", "85.60 ± 0.40", "−2.00", "5.0", "yes, of 2", "seed 0", "10,000", "fixed"],
        ["CA+¦w=1", "49.2", "50.00", "+0.80", "", "no, of 0.5", "seed 0", "10,000", "fixed"],
        ["ES:D", "not published", "1.20 ± 0.03", "", "", "of 1", "seed 0", "10,000", "fixed"],
    ]


def test_seeds_are_averaged_with_the_standard_error_over_them(workflow):
    values = [87.0, 88.0, 89.5]
    for seed in (2, 0, 1):
        run_once(workflow, {"R@1 (N)": (values[seed], 9.9)}, seed=seed)
    row = runs.comparison("table", CHAPTER, workflow)[0]
    assert row.ours == pytest.approx(sum(values) / 3)
    assert row.error == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert row.errors_apart == pytest.approx(abs(row.difference) / row.error)
    assert row.seeds == (0, 1, 2)
    assert cells(workflow)[0][2:5] == ["88.17 ± 0.73", "+0.57", "0.8"]
    assert cells(workflow)[0][6] == "seeds 0, 1, 2"


def test_each_mode_has_a_row_of_its_own(workflow):
    run_once(workflow, {"R@1 (N)": 87.0}, seed=0)
    run_once(workflow, {"R@1 (N)": 88.0}, seed=1, mode="reference")
    assert [(row[2], row[-1]) for row in cells(workflow)[:2]] == [("87.00", "fixed"), ("88.00", "reference")]


def test_quick_runs_and_other_chapters_are_left_out(workflow):
    quick = run_once(workflow, {"R@1 (N)": 80.0}, scale="quick")
    assert runs.results(CHAPTER, workflow / "results") == []
    path = run_once(workflow, {"R@1 (N)": 80.0})
    for scale, file in (("quick", quick), ("full", path)):
        assert runs.results(CHAPTER, workflow / "results", scale) == [json.loads(file.read_text())]
    assert runs.results(CHAPTER, workflow / "results") == [json.loads(path.read_text())]
    assert runs.results("91_other", workflow / "results") == []
    assert runs.results(CHAPTER, workflow / "absent") == []


@pytest.mark.parametrize(
    ("changes", "named"), [({"steps": 6}, "differ in steps"), ({"protocol": "other"}, "differ in protocol")]
)
def test_runs_of_different_settings_are_not_averaged(workflow, changes, named):
    run_once(workflow, {"R@1 (N)": 87.0})
    run_once(workflow, {"R@1 (N)": 88.0}, seed=1, **changes)
    with pytest.raises(runs.ResultError, match=named):
        runs.comparison("table", CHAPTER, workflow)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "[]", "has no schema"),
        (lambda text: text.replace('"metrics"', '"numbers"'), "has no metrics"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2; this version reads schema 1"),
    ],
)
def test_a_damaged_result_is_named(workflow, damage, message):
    path = run_once(workflow, {"R@1 (N)": 87.0})
    path.write_text(damage(path.read_text()))
    with pytest.raises(runs.ResultError, match=f"{path.name} .*{message}"):
        runs.comparison_table("table", CHAPTER, workflow)


def test_published_values_that_are_absent_or_incomplete_are_named(workflow):
    with pytest.raises(runs.ResultError, match="no published values tabel .*known there: table"):
        runs.expected("tabel", workflow / "expected")
    table = {"schema": 1, "title": "", "source": "", "rows": [{"metric": "R@1"}]}
    (workflow / "expected" / "table.json").write_text(json.dumps(table))
    with pytest.raises(runs.ResultError, match="table.json has the row .*needs a metric and a value"):
        runs.expected("table", workflow / "expected")


NONE_AWAY = "Of the rows within it, none that has a standard error is farther away than chance explains."


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({}, "None of these rows has been run."),
        ({"ES:D": 1.0}, "None of these rows has been run."),
        ({"R@1 (N)": (87.5, 0.2)}, "The one row lies within the tolerance."),
        ({"R@1 (N)": 80.0}, "The one row lies outside the tolerance. Outside is R@1 (N) (−7.60)."),
        ({"R@1 (N)": (87.5, 0.2), "CA+|w=1": (49.2, 0.1)}, "All of the 2 rows lie within the tolerance."),
        (
            {"R@1 (N)": (86.6, 0.2), "CA+|w=1": (49.2, 0.1)},
            "All of the 2 rows lie within the tolerance. "
            "Within it and yet farther away than chance explains is R@1 (N) (−1.00, 5.0 s.e.).",
        ),
        (
            {"R@1 (N)": (87.5, 0.2), "CA+|w=1": (50.2, 0.5)},
            f"Of 2 rows, 1 lies within the tolerance. Outside is CA+|w=1 (+1.00, 2.0 s.e.). {NONE_AWAY}",
        ),
        (
            {"R@1 (N)": 87.5, "CA+|w=1": (50.2, 0.5)},
            "Of 2 rows, 1 lies within the tolerance. Outside is CA+|w=1 (+1.00, 2.0 s.e.).",
        ),
        (
            {"R@1 (N)": (80.0, 2.0), "CA+|w=1": (50.2, 0.1)},
            "None of the 2 rows lies within the tolerance. Outside are R@1 (N) (−7.60, 3.8 s.e.) "
            "and CA+|w=1 (+1.00, 10.0 s.e.).",
        ),
    ],
)
def test_the_table_in_words(workflow, measured, words):
    if measured:
        run_once(workflow, measured)
    assert runs.comparison_words("table", CHAPTER, workflow) == words


@pytest.mark.parametrize(("apart", "told"), [(235.0, False), (236.5, True)])
def test_two_seeds_need_a_far_larger_difference_than_one_run_of_many_queries(workflow, apart, told):
    """Of two seeds, P(|t| > 3) is 20 %; 0.27 %, as of the normal distribution, lies beyond 235.8."""
    for seed, sign in enumerate((-1, 1)):
        run_once(workflow, {"R@1 (N)": (86.6 + sign / apart, 0.1)}, seed=seed)
    assert runs.comparison("table", CHAPTER, workflow)[0].errors_apart == pytest.approx(apart)
    assert ("chance explains" in runs.comparison_words("table", CHAPTER, workflow)) == told


def test_equal_seeds_tell_nothing_of_chance(workflow):
    for seed in (0, 1):
        run_once(workflow, {"R@1 (N)": (86.6, 0.1)}, seed=seed)
    assert runs.comparison_words("table", CHAPTER, workflow) == "The one row lies within the tolerance."


def test_words_of_one_mode(workflow):
    run_once(workflow, {"R@1 (N)": 87.5, "CA+|w=1": 49.0})
    run_once(workflow, {"R@1 (N)": 80.0}, seed=1, mode="reference")
    words = runs.comparison_words("table", CHAPTER, workflow, mode="reference")
    assert words == "The one row lies outside the tolerance. Outside is R@1 (N) (−7.60)."
    assert runs.comparison_words("table", CHAPTER, workflow).startswith("Of 3 rows, 2 lie within")


def test_of_many_rows_only_the_farthest_is_told(workflow):
    rows = [{"metric": f"R@{k}", "value": 50.0, "tolerance": 9.0} for k in range(1, 9)]
    table = {"schema": 1, "title": "", "source": "", "rows": rows}
    (workflow / "expected" / "table.json").write_text(json.dumps(table))
    run_once(workflow, {f"R@{k}": (50.0 + k, 0.25) for k in range(1, 9)})
    assert runs.comparison_words("table", CHAPTER, workflow) == (
        "All of the 8 rows lie within the tolerance. Within it and yet farther away than chance explains are "
        "8 rows, the farthest of them R@8 (+8.00, 32.0 s.e.)."
    )


def test_the_farthest_is_so_many_tolerances_away(workflow):
    """In points, the rank is farther off; nor does it matter which row has a standard error."""
    rows = [{"metric": "rank", "value": 50.0, "tolerance": 4.0}, {"metric": "TMA", "value": 0.9, "tolerance": 0.04}]
    table = {"schema": 1, "title": "", "source": "", "rows": rows}
    (workflow / "expected" / "table.json").write_text(json.dumps(table))
    run_once(workflow, {"rank": (55.0, 0.5), "TMA": 0.7})
    assert runs.comparison_words("table", CHAPTER, workflow).endswith(
        "Outside are TMA (−0.20) and rank (+5.00, 10.0 s.e.)."
    )


def test_a_mean_is_told_with_its_standard_error():
    assert runs.with_error([1.0, 2.0, 3.0], digits=2) == "2.00 ± 0.58"
    assert runs.with_error(torch.tensor([-1.0, -2.0, -3.0]), signed=True) == "−2.0 ± 0.6"
    assert runs.with_error([1.0, 2.0, 3.0], digits=0, signed=True) == "+2 ± 1"
    assert runs.with_error(torch.tensor([2.5])) == "2.5"
    assert (runs.with_error([-0.04]), runs.with_error([-0.04], signed=True)) == ("0.0", "+0.0")
    with pytest.raises(ValueError, match="no values"):
        runs.with_error([])


def test_a_mean_over_trainings_is_told_with_their_standard_deviation():
    assert runs.with_deviation([1.0, 2.0, 3.0], digits=2) == "2.00 ± 1.00"
    assert runs.with_deviation([-0.06, 0.02], signed=True) == "+0.0 ± 0.1"
    assert runs.with_deviation([-2.5]) == "−2.5"
    with pytest.raises(ValueError, match="no values"):
        runs.with_deviation([])


def test_minus_signs_are_those_of_numbers_and_names_not_hyphens():
    assert runs.with_minus("CA-") == "CA−"
    assert runs.with_minus("CA-: -0.1 and H[S,-1/2], CA-TRIDE -") == "CA−: −0.1 and H[S,−1/2], CA-TRIDE −"
    assert runs.with_minus(-2) == "−2"


def test_the_interval_of_a_mean_is_student_s():
    """4.303 standard errors of three values, 1.984 of a hundred; of one value nothing is known."""
    assert abs(runs.half_interval([1.0, 2.0, 3.0]) - 4.302653 / 3**0.5) < 1e-5
    assert abs(runs.half_interval([0.0, 1.0] * 50) - 1.984217 * (25 / 99) ** 0.5 / 10) < 1e-5
    assert runs.half_interval([2.0]) == runs.half_interval([]) == float("inf")
    assert runs.half_interval([2.0, 2.0]) == 0.0
