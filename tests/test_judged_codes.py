"""Hash networks that were judged: result files as the judge writes them, runs of one network joined, and tables."""

import json
from pathlib import Path

import pytest

from robret_lib import runs
from robret_lib.runs.judged_codes import LOOKED_AT

ROOT = Path(__file__).parents[1]
RULES = {
    "label": runs.text(),
    "scale": runs.choice("quick", "full"),
    "dataset": runs.text(),
    "seed": runs.integer(),
    "bits": runs.integer(),
    "attacked": runs.either(runs.choice("none"), runs.several(*LOOKED_AT)),
    "eps": runs.fraction(),
    "most_steps": runs.integer(),
    "effort": runs.text(),
    "n_queries": runs.integer(),
    "top_k": runs.integer(),
    "prototype_steps": runs.integer(),
    "generator_steps": runs.integer(),
    "reconstruction": runs.fraction(minimum=0),
    "device": runs.choice("cpu"),
    "out_dir": runs.folder(),
}
GIVEN = {"label": "CSQ", "scale": "quick", "dataset": "fashion-mnist", "seed": 0, "bits": 16, "attacked": "none"}
GIVEN |= {"eps": "8/255", "most_steps": 2000, "effort": "standard", "n_queries": 0, "top_k": 0, "device": "cpu"}
GIVEN |= {"prototype_steps": 0, "generator_steps": 0, "reconstruction": 50}
RANKED = "4 queries search 60 other images."
UNDER_ATTACK = "MAP@all on 4 queries, ties expected."


@pytest.fixture
def write(tmp_path):
    """Writes the result of a run; ``of_query`` says what each attack leaves of every query."""

    def written(
        of_query=None, searched=RANKED, attacked="none", metrics=None, asked="1f", recipe=None, aimed=None, **changes
    ):
        given = GIVEN | {"attacked": attacked, "out_dir": str(tmp_path)} | changes
        run = runs.start("judge_hashing", {name: given[name] for name in RULES}, **RULES)
        found = metrics or {"MAP@all": 80.0}
        of_query = of_query or {}
        found |= {name: sum(values) / len(values) for name, values in of_query.items()}
        details = {
            "asked": asked,
            "recipe": {"bits": given["bits"], "method": "csq", "source": "saat"} | (recipe or {}),
            "of_query": of_query,
        }
        details |= {"steps": {name: 100 for name in of_query if "AutoPGD" not in name}, "curves": {}}
        details |= {"aimed": aimed} if aimed else {}
        measured = {name: runs.measured(value, n=4, spread=0.5) for name, value in found.items()}
        return run.finish(measured, runs.both_protocols(searched, UNDER_ATTACK), "fixed", details)

    return written


@pytest.fixture
def judged(tmp_path):
    def found(dataset="fashion-mnist", scale="quick", **settings):
        return runs.judged_codes(dataset, scale, tmp_path, **settings)

    return found


@pytest.fixture
def only(judged):
    """The one network that was judged."""

    def found(**settings):
        (network,) = judged(**settings)
        return network

    return found


def test_without_a_result_no_network_has_been_judged(judged):
    assert judged() == []


def test_networks_come_by_label_and_then_by_bits(write, judged):
    """Bits are numbers: 16 comes before 128."""
    for label, bits in (("b", 16), ("a", 128), ("a", 16), ("a", 32)):
        write(label=label, bits=bits)
    assert [(each.label, each.bits) for each in judged()] == [("a", 16), ("a", 32), ("a", 128), ("b", 16)]
    assert [each.label for each in runs.of_bits(judged(), 16)] == ["a", "b"]


def test_data_sets_scales_and_settings_are_told_apart(write, only):
    write(metrics={"MAP@all": 1.0})
    write(metrics={"MAP@all": 2.0}, scale="full")
    write(metrics={"MAP@all": 3.0}, dataset="few.npz")
    write(metrics={"MAP@all": 4.0}, dataset="many.npz")
    write(metrics={"MAP@all": 5.0}, dataset="many.npz", seed=1, recipe={"seed": 1})
    assert only().told("MAP@all") == "1.0 ± 0.5"
    assert only(scale="full").told("MAP@all", error=False) == "2.0"
    assert only(dataset="few.npz").told("MAP@all", error=False) == "3.0"
    assert only(dataset="many.npz", seed=1).told("MAP@all", error=False) == "5.0"


def test_what_has_not_been_measured_is_told_in_words(write, only):
    write()
    assert only().told("MAP@5000") == "not run"
    assert only().parameters == {} and only().asked == {}


# Several runs of one network


def test_runs_that_differ_in_their_attacks_alone_are_one(write, only):
    """Whichever file is read first; of the parameters those are kept that an attack has looked at."""
    write()
    write({"CgA": [1.0, 2.0, 3.0, 6.0]}, attacked="without target", most_steps=100)
    write({"DHTA": [5.0, 5.0, 5.0, 5.0]}, attacked="with target", prototype_steps=9)
    write(metrics={"MAP@all": 80.0, "robust MAP at 4/255": 7.0}, attacked="robust", effort="quick")
    network = only()
    assert set(network.metrics) == {"MAP@all", "CgA", "DHTA", "robust MAP at 4/255"}
    assert network.details["steps"] == {"CgA": 100, "DHTA": 100}
    assert network.details["of_query"]["CgA"] == [1.0, 2.0, 3.0, 6.0]
    assert set(network.parameters) == {"eps", "most_steps", "effort", "n_queries", "top_k", "prototype_steps"}
    assert (network.parameters["prototype_steps"], network.parameters["effort"]) == (9, "quick")
    assert network.asked == {"CgA": "1f", "DHTA": "1f"}


def test_a_file_of_an_older_judge_that_attacked_nothing_is_read(write, only):
    """It knows no parameters of attacks that came later."""
    path = write()
    record = json.loads(path.read_text())
    del record["parameters"]["reconstruction"]
    path.write_text(json.dumps(record))
    assert only().parameters == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"MAP@all": 80.1}}, "two runs of 'CSQ' with 16 bits: MAP@all is 80.* and 80.*"),
        ({"recipe": {"bits": 16, "seed": 1}}, "two runs of 'CSQ' with 16 bits have different recipes: delete one"),
        ({"searched": "4 queries search 30 other images."}, "different protocols: '4 queries.*' and '4 queries"),
        ({"attacked": "with target", "n_queries": 9}, "attack with n_queries [09] and [09]: delete one"),
        ({"attacked": "generated", "top_k": 9}, "attack with top_k [09] and [09]: delete one"),
    ],
)
def test_runs_that_cannot_be_those_of_one_network_are_refused(write, judged, changes, message):
    write(attacked="without target")
    write(**({"attacked": "robust"} | changes))
    with pytest.raises(runs.ResultError, match=message):
        judged()


def test_runs_that_aim_at_different_targets_are_refused(write, judged):
    write(attacked="with target", aimed="a")
    write(attacked="without target")
    write(attacked="generated", aimed="b")
    with pytest.raises(runs.ResultError, match="two runs of 'CSQ' with 16 bits aim at different targets: delete one"):
        judged()


def test_attacks_of_one_radius_are_told_at_a_time(write, only, judged):
    write({"CgA": [4.0] * 4}, attacked="without target")
    write({"CgA": [9.0] * 4}, attacked="without target", eps="1/255")
    assert (only().told("CgA"), only(eps=1 / 255).told("CgA")) == ("4.0 ± 0.5", "9.0 ± 0.5")
    assert judged(eps=0.5) == []


def test_a_radius_is_that_of_attacks_which_look_at_it(write, only):
    """Robust MAP has radii of its own, and who attacks nothing has none."""
    write(attacked="with target")
    write(attacked="robust", eps="1/255", metrics={"robust MAP at 1/255": 3.0})
    write(eps="2/255")
    assert only().parameters["eps"] == pytest.approx(8 / 255)


# Differences


def test_the_difference_of_two_attacks_is_paired(write, only):
    """It is the same for each query, so it has no error, though the queries differ a lot."""
    write({"CgA": [10.0, 30.0, 50.0, 70.0], "HAG": [12.0, 32.0, 52.0, 72.0]}, attacked="without target")
    assert only().less("CgA", "HAG") == "\N{MINUS SIGN}2.0 ± 0.0"
    assert only().less("HAG", "CgA") == "+2.0 ± 0.0"


def test_the_error_of_a_difference_is_that_of_its_mean(write, only):
    write({"CgA": [1.0, 2.0, 3.0, 4.0], "HAG": [0.0, 0.0, 0.0, 0.0]}, attacked="without target")
    assert only().less("CgA", "HAG") == "+2.5 ± 0.6"  # 1.291 / 2


def test_attacks_on_other_queries_do_not_compare(write, only):
    """As many, but others; in two runs, which are those of one network all the same."""
    write({"CgA": [1.0, 2.0, 3.0, 4.0], "HAG": [0.0] * 4}, attacked="without target")
    write({"DHTA": [1.0, 2.0, 3.0, 4.0]}, attacked="with target", asked="2e")
    assert only().less("CgA", "HAG") == "+2.5 ± 0.6"
    with pytest.raises(runs.ResultError, match="'CSQ': 'CgA' and 'DHTA' attacked other queries: judge one anew"):
        only().less("CgA", "DHTA")


def test_an_attack_that_was_not_run_has_no_difference(write, only):
    write({"CgA": [1.0]}, attacked="without target")
    with pytest.raises(runs.ResultError, match="'CSQ' has no attack 'SDHA': expected one of .*, 'CgA'$"):
        only().less("SDHA", "CgA")
    with pytest.raises(runs.ResultError, match="has no attack 'SDHA'"):
        only().less("CgA", "SDHA")


# Tables


def test_networks_stand_side_by_side(write, judged):
    write(label="DPH", metrics={"MAP@all": 81.25, "within": 3.0})
    write(metrics={"MAP@all": 70.0})
    assert runs.codes_side_by_side(
        judged(), ["MAP@all", "within"], ["MAP", "within radius 2"], ["csq"]
    ).splitlines() == [
        "| method | source | bits | MAP | within radius 2 |",
        "| --- | --- | ---: | ---: | ---: |",
        "| CSQ | saat | 16 | 70.0 | not run |",
        "| DPH | saat | 16 | 81.2 | 3.0 |",
    ]


def test_networks_of_different_protocols_stand_in_no_table(write, judged):
    """What was attacked, how many queries, say, is another matter."""
    write(label="DPH", searched="4 queries search 30 other images.")
    write()
    with pytest.raises(runs.ResultError, match=f"'CSQ' and 'DPH' have different protocols: '{RANKED}' and '4 queries"):
        runs.codes_side_by_side(judged(), ["MAP@all"], ["MAP"])
    told = [runs.both_protocols(RANKED, f"{count} queries.") for count in (3, 4)]
    same = [
        runs.JudgedCodes("a", 16, {}, {"recipe": {"method": "dph", "source": "saat"}}, {}, protocol, {})
        for protocol in told
    ]
    assert same[0].searched == same[1].searched == RANKED
    assert len(runs.codes_side_by_side(same, [], []).splitlines()) == 4


def test_attacks_stand_side_by_side(write, only):
    found = {f"CgA{how}": [value] * 4 for how, value in (("", 4.0), (", AutoPGD, alpha one", 3.0), (", bound", 1.0))}
    write(found, attacked="without target")
    assert runs.attacks_side_by_side(only(), ["CgA", "THA"]).splitlines() == [
        "| attack | steps | its own search | AutoPGD, $\\mu = 1$ | AutoPGD, $\\mu$ rises | bound |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| CgA | 100 | 4.0 ± 0.5 | 3.0 ± 0.5 | not run | 1.0 ± 0.5 |",
        "| THA | not run | not run | not run | not run | not run |",
    ]


def test_a_ported_attack_has_the_auto_pgd_of_its_authors(write, only):
    write({"HAG": [4.0] * 4, "HAG, AutoPGD, alpha one": [3.0] * 4, "HAG, ported": [5.0] * 4}, attacked="without target")
    rows = runs.attacks_side_by_side(only(), ["HAG", "HAG, ported"]).splitlines()[2:]
    assert [row.split(" | ")[2:4] for row in rows] == [["4.0 ± 0.5", "3.0 ± 0.5"], ["5.0 ± 0.5", "3.0 ± 0.5"]]


@pytest.mark.parametrize("dataset", ["fashion-mnist", "coco18_multilabel_96px.npz"])
def test_the_networks_of_the_book_can_stand_in_one_table(dataset):
    networks = runs.judged_codes(dataset)
    assert networks == runs.judged_codes(dataset, folder=ROOT / "workflow" / "results") != []
    assert "not run" not in runs.codes_side_by_side(networks, ["MAP@all", "MAP@5000"], ["all", "first"])
