"""Defenses that were judged: result files as the judge writes them, by label and seed, and side by side."""

from pathlib import Path

import pytest

from robret_lib import runs
from robret_lib.recipes.recipe import READ_BY

ROOT = Path(__file__).parents[1]
RULES = {
    "label": runs.text(),
    "scale": runs.choice("quick", "full"),
    "seed": runs.integer(),
    "mode": runs.choice("fixed", "reference"),
    "dataset": runs.text(),
    "eps": runs.fraction(),
    "temperature": runs.optional(runs.fraction()),
    "device": runs.choice("cpu"),
    "out_dir": runs.folder(),
}


@pytest.fixture
def write(tmp_path):
    """Writes the result of a run; of every query, at each radius, 1 where it was answered right."""

    def written(
        label, seed=0, standing=None, metrics=None, chapter="judge_defense", rules=RULES, details=None, **changes
    ):
        given = {"label": label, "scale": "quick", "seed": seed, "mode": "fixed", "eps": 0.1, "temperature": None}
        given |= {"dataset": "fashion-mnist"}
        given |= {"device": "cpu", "out_dir": str(tmp_path)} | changes
        run = runs.start(chapter, {name: given[name] for name in rules}, **rules)
        found = {name: runs.measured(value, n=4) for name, value in (metrics or {"R@1": 80.0}).items()}
        kept = {"standing": standing or {}, "warnings": []} | (details or {})
        return run.finish(found, "toy", given["mode"], kept)

    return written


@pytest.fixture
def judged(tmp_path):
    def found(scale="quick", **changes):
        return runs.judged(scale, folder=tmp_path, **changes)

    return found


def test_without_a_result_nobody_has_been_judged(judged):
    assert judged() == {}


def test_labels_come_in_their_order_and_seeds_in_theirs(write, judged):
    """Whatever the names of the files are, and the order they were written in; 10 is after 2."""
    for label in ("b", "c", "a"):
        for seed in (10, 0, 2):
            write(label, seed, metrics={"R@1": seed + 0.5, "ERS": 30.0})
    found = judged()
    assert list(found) == ["a", "b", "c"]
    for label, defense in found.items():
        assert defense.label == label and set(defense.records) == {0, 2, 10}
        assert all(record["seed"] == seed for seed, record in defense.records.items())
        assert defense.values("R@1") == [0.5, 2.5, 10.5]


def test_a_metric_that_some_runs_do_not_have_is_told_of_the_others(write, judged):
    for seed, metrics in enumerate(({"R@1": 1.0, "ERS": 2.0}, {"R@1": 3.0}, {"R@1": 4.0, "ERS": 5.0})):
        write("a", seed, metrics=metrics)
    assert judged()["a"].values("ERS") == [2.0, 5.0]
    assert judged()["a"].values("mAP") == []


def test_every_data_set_has_its_own(write, judged):
    """Also where the radii differ."""
    write("a", metrics={"R@1": 1.0})
    write("a", metrics={"R@1": 2.0}, dataset="birds.npz", eps=0.2)
    assert judged()["a"].values("R@1") == [1.0]
    assert judged(dataset="birds.npz")["a"].values("R@1") == [2.0]


def test_what_the_training_was_and_how_it_ended(write, judged):
    """Early runs without a defense were not watched."""
    for label, ends in (("a", [0.5, 0.25]), ("b", [None])):
        for seed, spread in enumerate(ends):
            history = [{"spread": 1.0}, {"step": 9} | ({} if spread is None else {"spread": spread})]
            write(label, seed, details={"recipe": {"steps": 9}, "history": history})
    a, b = judged().values()
    assert (a.steps, a.last("spread"), b.last("spread")) == (9, [0.5, 0.25], [])
    assert [[entry.get("spread") for entry in history] for history in a.histories] == [[1.0, 0.5], [1.0, 0.25]]


def test_levels_are_numbers_in_their_order(write, judged):
    """In a file they are words, of which "16" comes before "8"; the published mode has none."""
    write("a", standing={0: "1111", 16: "1000", 8: "1100"})
    write("b", mode="reference")
    assert judged()["a"].levels == (0, 8, 16)
    assert judged(mode="reference")["b"].levels == ()


def test_what_is_left_is_a_share_of_the_queries_for_each_seed(write, judged):
    write("a", 10, {0: "1110", 8: "0010"})
    write("a", 2, {0: "11110", 8: "00000"})
    defense = judged()["a"]
    assert defense.left(0) == [80.0, 75.0]
    assert defense.left(8) == [0.0, 25.0]


def test_a_difference_is_that_of_the_same_seed_and_only_of_seeds_that_both_have(write, judged):
    for seed, standing in ((0, "1111"), (1, "1000"), (3, "1100")):
        write("a", seed, {8: standing})
    for seed, standing in ((3, "1000"), (2, "1111"), (1, "1110")):
        write("b", seed, {8: standing})
    a, b = judged().values()
    assert a.left_less(b, 8) == [25.0 - 75.0, 50.0 - 25.0]
    assert b.left_less(a, 8) == [50.0, -25.0]
    assert a.left(8) == [100.0, 25.0, 50.0]  # as before


def test_a_difference_of_one_common_seed_is_that_of_each_query(write, judged):
    for seed in (0, 1):
        write("a", seed, {8: "1011"})
    write("b", 1, {8: "1101"})
    a, b = judged().values()
    assert a.left_less(b, 8) == [0.0, -100.0, 100.0, 0.0]
    assert a.by_query(8) == [100.0, 0.0, 100.0, 100.0] * 2


def test_without_a_common_seed_there_is_no_difference(write, judged):
    write("a", 0, {8: "1111"})
    write("b", 1, {8: "1111"})
    a, b = judged().values()
    assert a.left_less(b, 8) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (["1110" * 9, "1110" * 9, "1111" * 9], ["1000" * 9, "1000" * 9, "1100" * 9], True),
        (["1110", "1110", "1111"], ["1000", "1000", "1100"], False),  # of the same size, on four queries
        (["1111" * 9, "1100" * 9, "1111" * 9], ["1110" * 9, "1000" * 9, "1000" * 9], False),  # 25, 25, 75 points
        (["1100", "1100"], ["1100", "1100"], False),
        (["1" + "0" * 399] * 3, ["0" * 400] * 3, False),  # seeds agree, by one and the same query
        (["1" * 40], ["1" * 20 + "0" * 20], False),  # one training decides nothing
        (["1" * 40] * 2, ["1" * 20 + "0" * 20], False),  # nor one that both have
    ],
)
def test_one_beats_another_by_more_than_the_interval_of_their_difference(write, judged, ours, theirs, expected):
    for label, standings in (("a", ours), ("b", theirs)):
        for seed, standing in enumerate(standings):
            write(label, seed, {8: standing})
    a, b = judged().values()
    assert a.beats(b, 8) == expected
    assert not b.beats(a, 8)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([50, 51, 52], [40, 41, 42], True),
        ([50, 51, 52], [40, 41, 52], False),  # a mean difference of 6.7, with an interval of 14.3 to each side
        ([50], [40], False),
        ([50, 60, 52], [40, 41, None], False),  # of the two that both have, 10 and 19
        ([50, 51, None], [None, 41, 42], False),  # they share one
    ],
)
def test_a_metric_is_larger_by_more_than_the_interval_of_the_difference(write, judged, ours, theirs, expected):
    for label, values in (("a", ours), ("b", theirs)):
        for seed, value in enumerate(values):
            write(label, seed, {8: "1111"}, {"R@1": 80.0} | ({"ERS": value} if value else {}))
    a, b = judged().values()
    assert a.has_more(b, "ERS") == expected
    assert not b.has_more(a, "ERS")


def test_nobody_beats_whom_it_shares_no_seed_with(write, judged):
    write("a", 0, {8: "1111"})
    write("b", 1, {8: "0000"})
    a, b = judged().values()
    assert not a.beats(b, 8)
    with pytest.raises(runs.ResultError, match="'a' and 'b' have no seed in common"):
        a.less(b)


def test_whom_more_was_asked_cannot_be_compared(write, judged):
    write("a", 0, {8: "1111"})
    write("b", 0, {8: "00"})
    a, b = judged().values()
    with pytest.raises(runs.ResultError, match=r"'a' and 'b' have been asked \{4\} and \{2\} queries"):
        a.left_less(b, 8)


def test_who_was_asked_other_queries_cannot_be_compared(write, judged):
    """As many, but others; a record from before this was kept is believed."""
    for label, asked in (("a", {"asked": "1f"}), ("b", {"asked": "2e"}), ("c", {"asked": "1f"}), ("d", {})):
        write(label, standing={8: "1100"}, details=asked)
    found = judged()
    for other in ("c", "d"):
        assert found["a"].left_less(found[other], 8) == [0.0] * 4
    with pytest.raises(runs.ResultError, match="'a' and 'b' have been asked other queries"):
        found["a"].left_less(found["b"], 8)


def test_of_two_runs_with_one_seed_none_is_lost_in_silence(write, judged):
    """Written by two versions of the judge, of which one knows a parameter more, they have two names."""
    write("a")
    write("a", rules={name: rule for name, rule in RULES.items() if name != "temperature"})
    with pytest.raises(runs.ResultError, match="two runs of 'a' have seed 0"):
        judged()


def test_doubts_are_those_of_any_seed_once_and_of_robust_recall(write, judged):
    told = ["loss at the last step: ES: 54 of 336", "gradient is the slope: foretells a small step"]
    write("a", 0, details={"warnings": []})
    write("a", 1, details={"warnings": told[:1] + 2 * told[1:]})
    assert judged()["a"].doubts == ("gradient is the slope",)
    write("b[-1]", details={"warnings": told[1:]})
    write("c")
    told = "a (*gradient is the slope*); b[−1] (*gradient is the slope*)."
    assert runs.doubted(judged().values()) == f"Robust recall may be too high where a check fails (in brackets): {told}"
    assert runs.doubted([judged()["c"]]) == ""


@pytest.mark.parametrize(("changes", "named"), [({"eps": 0.2}, "eps"), ({"temperature": 0.1}, "temperature")])
@pytest.mark.parametrize("first_seed", [0, 1])
def test_runs_of_one_label_with_different_settings_are_refused(write, judged, changes, named, first_seed):
    """Whichever of the two files is read first."""
    write("a", first_seed)
    write("a", 1 - first_seed, **changes)
    write("b")
    with pytest.raises(runs.ResultError, match=f"the runs of 'a' differ in {named}$"):
        judged()


def test_all_settings_that_differ_are_named(write, judged):
    write("a")
    write("a", 1)
    write("a", 2, eps=0.2, temperature=0.1)
    with pytest.raises(runs.ResultError, match="the runs of 'a' differ in eps, temperature$"):
        judged()


@pytest.mark.parametrize("first_seed", [0, 1])
def test_a_setting_that_the_judge_did_not_know_at_first_differs_only_where_it_is_set(write, judged, first_seed):
    """Whichever of the two files is read first."""
    older = {name: rule for name, rule in RULES.items() if name != "temperature"}
    write("a", first_seed, rules=older)
    write("a", 1 - first_seed)
    assert set(judged()["a"].records) == {0, 1}
    write("b", first_seed, rules=older)
    write("b", 1 - first_seed, temperature=0.1)
    with pytest.raises(runs.ResultError, match="the runs of 'b' differ in temperature$"):
        judged()


def test_scales_modes_and_chapters_are_told_apart(write, judged):
    """One label may have runs of each, whose settings differ."""
    write("a", metrics={"R@1": 1.0})
    write("a", scale="full", eps=0.2, metrics={"R@1": 2.0})
    write("a", mode="reference", eps=0.3, metrics={"R@1": 3.0})
    write("a", mode="reference", scale="full", eps=0.4, metrics={"R@1": 4.0})
    write("b", chapter="judge_defenses", metrics={"R@1": 5.0})
    found = [judged(scale, mode=mode) for mode in ("fixed", "reference") for scale in ("quick", "full")]
    assert [list(each) for each in found] == [["a"]] * 4
    assert [each["a"].values("R@1") for each in found] == [[1.0], [2.0], [3.0], [4.0]]


def test_efforts_are_told_apart(write, judged):
    write("a", metrics={"R@1": 1.0})
    write("a", metrics={"R@1": 2.0}, rules=RULES | {"effort": runs.choice("standard", "high")}, effort="high")
    assert judged()["a"].values("R@1") == [1.0] and judged(effort="high")["a"].values("R@1") == [2.0]


def test_a_damaged_result_is_named(write, judged):
    path = write("a")
    path.write_text(path.read_text()[:100])
    with pytest.raises(runs.ResultError, match=f"{path.name} is damaged"):
        judged()


def test_results_of_the_source_tree_are_read_by_default():
    for scale in ("quick", "full"):
        assert runs.judged(scale) == runs.judged(scale, folder=ROOT / "workflow" / "results")


def test_defenses_stand_side_by_side_five_at_a_time(write, judged, monkeypatch):
    """A row of what is left, one of a metric with its error, and one that none has."""
    for label in (*"abcde", "f-a[-0.1]"):
        for seed, recall in enumerate((80.0, 90.0)):
            write(label, seed, {8: "1100"}, {"R@1": recall, "TMA": 0.125})
    first, second = runs.side_by_side(list(judged().values()), ["R@1", "TMA", "CA-", 8]).split("\n\n")
    assert first.splitlines()[0] == "| | a | b | c | d | e |"
    assert second.splitlines() == [
        "| | f-a[−0.1] |",
        "| --- | ---: |",
        "| trainings | 2 |",
        "| R@1 | 85.0 ± 5.0 |",
        "| TMA | 0.12 ± 0.00 |",
        "| CA− |  |",
        "| 8/255 | 50.0 ± 0.0 |",
    ]


def test_one_less_the_other_is_told_in_words(write, judged):
    """Of one seed over its queries, which are paired; of several over their means."""
    write("a[-1]", standing={0: "1111", 8: "1110"})
    write("b", standing={0: "1111", 8: "0110"})
    one, other = judged().values()
    assert one.less(other) == "a[−1] less b, query by query: +0.0 ± 0.0 at 0/255, +25.0 ± 25.0 at 8/255."
    for label in ("a[-1]", "b"):
        write(label, 1, standing={0: "1111", 8: "1000"})
    one, other = judged().values()
    paired = "seed by seed, in bold where decided"
    assert one.less(other) == f"a[−1] less b, {paired}: +0.0 ± 0.0 at 0/255, +12.5 ± 12.5 at 8/255."
    for seed in (0, 1):
        write("c", seed, standing={0: "1111", 8: "0000"})
        write("d", seed, standing={0: "1111", 8: "1111"})
    *_, one, other = judged().values()
    assert one.less(other) == f"c less d, {paired}: +0.0 ± 0.0 at 0/255, **−100.0 ± 0.0** at 8/255."


def test_a_difference_is_bold_where_one_beats_the_other(write, judged):
    for seed in (0, 1):
        write("a", seed, {8: "1111", 16: "1100"})
        write("b", seed, {8: "0000", 16: "1010"})
    found = judged()
    assert found["a"].told_less(found["b"], 8) == "**+100.0 ± 0.0**"
    assert found["b"].told_less(found["a"], 8) == "**\N{MINUS SIGN}100.0 ± 0.0**"
    assert found["a"].told_less(found["b"], 16) == "+0.0 ± 0.0"


def test_differences_stand_side_by_side_five_pairs_at_a_time(write, judged):
    for label, standing in (("a[-1]", "1111"), ("b", "1100"), ("c", "1010")):
        for seed in (0, 1):
            write(label, seed, {8: standing, 16: "0000"})
    a, b, c = judged().values()
    first, second = runs.differences([(a, b), *[(b, c)] * 5], (8, 16)).split("\n\n")
    assert first.splitlines()[0] == "| | a[\N{MINUS SIGN}1] less b |" + " b less c |" * 4
    assert second.splitlines() == [
        "| | b less c |",
        "| --- | ---: |",
        "| 8/255 | +0.0 ± 0.0 |",
        "| 16/255 | +0.0 ± 0.0 |",
    ]
    assert first.splitlines()[2].startswith("| 8/255 | +50.0 ± 0.0 | ")


def test_of_runs_without_a_common_seed_no_difference_stands_in_a_table(write, judged):
    write("a", 0, {8: "1111"})
    write("b", 1, {8: "1100"})
    with pytest.raises(runs.ResultError, match="'a' and 'b' have no seed in common"):
        runs.differences([tuple(judged().values())], (8,))


def test_one_seed_has_the_error_of_its_queries(write, judged):
    """For a metric, of which the file knows no queries, there is none."""
    write("a", standing={8: "1100"}, metrics={"R@1": 80.0})
    assert runs.side_by_side(list(judged().values()), ["R@1", 8]).splitlines()[2:] == [
        "| trainings | 1 |",
        "| R@1 | 80.0 |",
        "| 8/255 | 50.0 ± 28.9 |",
    ]


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("dataset", ["fashion-mnist", "cub100.npz", "cars196-half.npz"])
def test_runs_of_the_book_that_share_a_label_share_what_their_training_looked_at(scale, dataset):
    """Who asks for nothing gets a default, and that may change between two runs; fields come and go, too."""
    for one in runs.judged(scale, dataset=dataset).values():
        trained = [record["details"]["recipe"] for record in one.records.values()]
        for name in set.intersection(*(set(recipe) for recipe in trained)) - {"seed", "origin"}:
            if trained[0]["defense"] in READ_BY.get(name, (trained[0]["defense"],)):
                assert len({str(recipe[name]) for recipe in trained}) == 1, f"{name} of {one.label}"
