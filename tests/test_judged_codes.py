"""Hash networks that were judged: result files as the judge writes them, runs of one network joined, and tables."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from robret_lib import runs
from robret_lib.recipes import HashRecipe
from robret_lib.recipes.hash_recipe import OF_A_DEFENSE
from robret_lib.runs.judged_codes import LOOKED_AT, WITH_TARGET, YOUNGER
from robret_lib.scores.published_codes import with_target

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
    "defense": runs.optional(runs.text()),
    "device": runs.choice("cpu"),
    "out_dir": runs.folder(),
}
GIVEN = {"label": "CSQ", "scale": "quick", "dataset": "fashion-mnist", "seed": 0, "bits": 16, "attacked": "none"}
GIVEN |= {"eps": "8/255", "most_steps": 2000, "effort": "standard", "n_queries": 0, "top_k": 0, "device": "cpu"}
GIVEN |= {"prototype_steps": 0, "generator_steps": 0, "reconstruction": 50, "defense": None}
RANKED = "4 queries search 60 other images."
UNDER_ATTACK = "MAP@all on 4 queries, ties expected."


@pytest.fixture
def write(tmp_path):
    """Writes the result of a run; ``of_query`` says what each attack leaves of every query."""

    def written(
        of_query=None,
        searched=RANKED,
        attacked="none",
        metrics=None,
        asked="1f",
        recipe=None,
        aimed=None,
        steps=100,
        **changes,
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
        details |= {"steps": {name: steps for name in of_query if "AutoPGD" not in name}, "curves": {}}
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


def test_a_file_of_a_judge_that_knew_no_defense_is_one_without_a_defense(write, only):
    """Its recipe is that of a run which says so."""
    for attacked in ("without target", "none"):
        path = write(attacked=attacked)
        record = json.loads(path.read_text())
        del record["parameters"]["defense"]
        path.write_text(json.dumps(record))
        write(attacked="robust", recipe=YOUNGER, metrics={"MAP@all": 80.0, "robust MAP at 4/255": 7.0})
        assert only(defense=None).told("robust MAP at 4/255") == "7.0 ± 0.5"
        assert only().details["recipe"]["defense"] is None
        path.unlink()


def test_a_recipe_says_by_default_what_is_taken_of_files_that_say_nothing():
    later = ("augmented", "defense", *OF_A_DEFENSE)
    said = {field.name: field.default for field in fields(HashRecipe) if field.name in later}
    assert said == YOUNGER


def test_a_defended_network_and_one_that_is_not_are_never_one(write, judged):
    """Not even where all else that both recipes know is equal; with labels of their own they are two."""
    write()
    path = write(attacked="robust", defense="cgat", recipe={"defense": "cgat"})
    with pytest.raises(runs.ResultError, match="two runs of 'CSQ' with 16 bits have different recipes: delete one"):
        judged()
    assert [each.details["recipe"]["defense"] for each in judged(defense="cgat")] == ["cgat"]
    path.unlink()
    write(label="CgAT", defense="cgat", recipe={"defense": "cgat"})
    assert [each.label for each in judged()] == ["CSQ", "CgAT"]


def test_two_tunings_under_one_label_are_refused(write, judged):
    """They differ in the network that was tuned."""
    for seed, attacked in enumerate(("none", "robust")):
        write(attacked=attacked, recipe={"defense": "cgat", "origin": {"steps": 9, "seed": seed}})
    with pytest.raises(runs.ResultError, match="two runs of 'CSQ' with 16 bits have different recipes: delete one"):
        judged()


def test_a_setting_that_no_run_knows_is_refused(write, judged):
    assert judged(sede=0) == []
    write()
    with pytest.raises(runs.ResultError, match="no run has a parameter sede: expected some of .*, scale, seed, top_k"):
        judged(sede=0)


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


# Differences between networks


BY_SEARCH = {"CgA": [9.0, 2.0], "CgA, AutoPGD, alpha one": [3.0, 5.0], "CgA, AutoPGD, alpha rising": [4.0, 4.0]}


@pytest.fixture
def pair(write, judged):
    """Two networks, the second with changes; what is left of the first is 10, 30, 50, 70."""

    def found(attack="CgA", left=(8.0, 26.0, 44.0, 62.0), of_first=None, **changes):
        shared = {"attacked": "robust" if attack.startswith("robust") else "without target"}
        write({attack: [10.0, 30.0, 50.0, 70.0]}, label="a", **(shared | (of_first or {})))
        write({attack: list(left)}, label="b", **(shared | changes))
        return judged()

    return found


def test_the_difference_of_two_networks_is_paired(pair):
    """2, 4, 6, 8 of each query: the queries differ by far more."""
    one, other = pair()
    assert one.apart_from(other, "CgA") == "+5.0 ± 1.3"  # 2.582 / 2
    assert other.apart_from(one, "CgA") == "\N{MINUS SIGN}5.0 ± 1.3"


def test_two_networks_are_compared_in_robust_map_too(pair):
    one, other = pair("robust MAP at 8/255")
    assert one.apart_from(other, "robust MAP at 8/255") == "+5.0 ± 1.3"


@pytest.mark.parametrize(
    ("attack", "changes", "message"),
    [
        ("CgA", {"asked": "2e"}, "'CgA' of 'a' and .*of 'b' attacked other queries: judge one anew"),
        ("CgA", {"left": [1.0, 2.0]}, "'CgA' of 'a' and of 'b' attacked other queries"),
        ("CgA", {"searched": "4 queries search 30 other images."}, "'a' and 'b' have different protocols"),
        ("CgA", {"top_k": 9}, "'CgA' of 'a' and of 'b' had top_k 0 and 9: judge one anew"),
        ("CgA", {"steps": 7}, "'CgA' of 'a' and of 'b' had steps 100 and 7: judge one anew"),
        ("robust MAP at 8/255", {"effort": "quick"}, "had effort standard and quick: judge one anew"),
        ("P2P", {"of_first": {"aimed": "x"}, "aimed": "y"}, "had aimed at x and y: judge one anew"),
        ("ProS-GAN", {"of_first": {"aimed": "x"}, "aimed": "y"}, "had aimed at x and y: judge one anew"),
    ],
)
def test_networks_that_were_attacked_otherwise_do_not_compare(pair, attack, changes, message):
    """Neither in words nor in a table."""
    one, other = pair(attack, **changes)
    with pytest.raises(runs.ResultError, match=message):
        one.apart_from(other, attack)
    if "left" not in changes:
        with pytest.raises(runs.ResultError, match=message):
            runs.defenses_side_by_side([one, other], {attack: attack})


def test_networks_that_were_attacked_at_another_radius_do_not_compare(pair, judged):
    """They are read one by one, so it shows in nothing else."""
    pair(eps="1/255")
    (one,), (other,) = judged(), judged(eps=1 / 255)
    with pytest.raises(runs.ResultError, match="'CgA' of 'a' and of 'b' had eps 0.03.* and 0.003.*: judge one anew"):
        one.apart_from(other, "CgA")


def test_who_aims_at_nothing_may_aim_at_anything(pair):
    one, other = pair(of_first={"aimed": "x"}, aimed="y")
    assert one.apart_from(other, "CgA") == "+5.0 ± 1.3"


def test_what_decided_nothing_may_differ(pair):
    """As many queries as there are by default, and more steps than any attack takes."""
    one, other = pair(n_queries=4, most_steps=999)
    assert one.apart_from(other, "CgA") == "+5.0 ± 1.3"


def test_the_steps_of_every_search_of_a_loss_are_those_of_its_own(write, judged):
    for label, steps in (("a", 100), ("b", 7)):
        write(BY_SEARCH, label=label, attacked="without target", steps=steps)
    one, other = judged()
    for attack in (*BY_SEARCH, "CgA, any search"):
        with pytest.raises(runs.ResultError, match=f"'{attack}' of 'a' and of 'b' had steps 100 and 7: judge one anew"):
            one.apart_from(other, attack)


def test_what_was_run_on_one_network_alone_has_no_difference(pair, judged, write):
    pair()
    write({"SAAT": [1.0] * 4}, label="c", attacked="without target")
    one, _, other = judged()
    with pytest.raises(runs.ResultError, match="'c' has no attack 'CgA': expected one of those that were run, 'SAAT'"):
        one.apart_from(other, "CgA")


# The strongest search of a loss


def test_any_search_is_of_each_query_what_the_strongest_leaves(write, only):
    """3 and 2: less than each search leaves in the mean."""
    write(BY_SEARCH, attacked="without target")
    assert only().told("CgA, any search") == "2.5 ± 0.5"
    assert only().less("CgA, any search", "CgA") == "\N{MINUS SIGN}3.0 ± 3.0"


def test_with_a_target_the_strongest_search_reaches_most(write, only):
    write({name.replace("CgA", "DHTA"): values for name, values in BY_SEARCH.items()}, attacked="with target")
    assert only().told("DHTA, any search") == "7.0 ± 2.0"


def test_a_ported_search_is_one_of_those_of_its_loss(write, only):
    found = {name.replace("CgA", "HAG"): values for name, values in BY_SEARCH.items()}
    write(found | {"HAG, ported": [1.0, 8.0]}, attacked="without target")
    assert only().told("HAG, any search") == "1.5 ± 0.5"
    assert only().told("HAG, ported, any search") == "not run"


def test_a_search_of_one_query_has_no_error(write, only):
    write({name: values[:1] for name, values in BY_SEARCH.items()}, attacked="without target")
    assert only().told("CgA, any search") == "3.0"


@pytest.mark.parametrize("missing", BY_SEARCH)
def test_without_one_of_the_searches_it_is_not_known_which_is_the_strongest(write, only, missing):
    write({name: values for name, values in BY_SEARCH.items() if name != missing}, attacked="without target")
    assert only().told("CgA, any search") == "not run"


SUITE = {"robust MAP at 4/255": [0.0, 0.0], "robust MAP at 8/255": [4.0, 1.0]}


def test_any_attack_is_of_each_query_what_the_strongest_leaves(write, only):
    """3 by a loss and 1 by the suite at the same radius; what has a target does not count, nor a loss of one search."""
    aimed = {name.replace("CgA", "DHTA"): [0.0, 0.0] for name in BY_SEARCH}
    write(BY_SEARCH | {"HAG": [0.0, 0.0]}, attacked="without target")
    write(aimed, attacked="with target")
    write(SUITE, attacked="robust")
    assert only().told("any attack") == "2.0 ± 1.0"
    assert only().less("any attack", "robust MAP at 8/255") == "\N{MINUS SIGN}0.5 ± 0.5"


@pytest.mark.parametrize("others", [{"eps": "16/255"}, {"asked": "2e"}])
def test_attacks_at_other_radii_or_on_other_queries_are_not_weighed_against_the_suite(write, judged, others):
    write(BY_SEARCH, attacked="without target", **others)
    write(SUITE, attacked="robust")
    (network,) = judged(eps=16 / 255 if "eps" in others else 8 / 255)
    assert network.told("CgA, any search") == "2.5 ± 0.5"
    assert network.told("any attack") == "not run"


@pytest.mark.parametrize("run", [(BY_SEARCH, "without target"), (SUITE, "robust")])
def test_without_the_suite_or_without_single_losses_no_attack_is_the_strongest_of_all(write, only, run):
    write(run[0], attacked=run[1])
    assert only().told("any attack") == "not run"


def test_any_attack_was_run_alike_where_each_was(write, judged):
    for label, steps, effort in (("a", 100, "standard"), ("b", 7, "standard"), ("c", 100, "high")):
        write(BY_SEARCH, label=label, attacked="without target", steps=steps)
        write(SUITE, label=label, attacked="robust", effort=effort)
    one, *others = judged()
    for other, differing in zip(
        others, ("steps of CgA 100 and 7", "effort of the suite standard and high"), strict=True
    ):
        with pytest.raises(runs.ResultError, match=f"had {differing}: judge one anew"):
            one.apart_from(other, "any attack")


def test_the_attacks_with_a_target_are_those_that_are_published():
    published = with_target(torch.zeros(1, 2), 8, prototypes=nn.Identity())
    assert sorted(WITH_TARGET) == sorted(published)


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


def test_defenses_stand_side_by_side(write, judged):
    """What has not been run is said so; a network without any attack stands there too."""
    for label, bits, value in (("CgAT", 16, 40.0), ("CgAT", 32, 41.0), ("none", 16, 5.0)):
        recipe = {"defense": None if label == "none" else "cgat"}
        left = {name: [value] * 4 for name in ("benign", "CgA", "robust MAP at 8/255", "robust MAP at 0.5/255")}
        write(left, label=label, bits=bits, attacked="without target, robust", recipe=recipe)
    write(label="SAAT", recipe={"defense": "saat"})
    metrics = {"MAP": "benign", "by CgA": "CgA", "by any": "CgA, any search"}
    metrics |= {f"at {level}": f"robust MAP at {level}/255" for level in ("0.5", "8", "16")}
    assert runs.defenses_side_by_side(judged(), metrics).splitlines() == [
        "| | CgAT, 16 bits | CgAT, 32 bits | SAAT, 16 bits | none, 16 bits |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| MAP | 40.0 ± 0.5 | 41.0 ± 0.5 | not run | 5.0 ± 0.5 |",
        "| by CgA | 40.0 ± 0.5 | 41.0 ± 0.5 | not run | 5.0 ± 0.5 |",
        "| by any | not run | not run | not run | not run |",
        "| at 0.5 | 40.0 ± 0.5 | 41.0 ± 0.5 | not run | 5.0 ± 0.5 |",
        "| at 8 | 40.0 ± 0.5 | 41.0 ± 0.5 | not run | 5.0 ± 0.5 |",
        "| at 16 | not run | not run | not run | not run |",
    ]
    of_all_queries = runs.defenses_side_by_side(judged(), {"all": "MAP@all"}).splitlines()[2:]
    assert of_all_queries == ["| all | 80.0 ± 0.5 | 80.0 ± 0.5 | 80.0 ± 0.5 | 80.0 ± 0.5 |"]


def test_rows_on_other_queries_stand_in_no_table(write, judged):
    """Also where no two networks have been attacked alike."""
    write({"CgA": [4.0] * 4}, label="a", attacked="without target")
    write({"robust MAP at 8/255": [4.0] * 4}, label="b", attacked="robust", asked="2e")
    message = "'CgA' of 'a' and 'robust MAP at 8/255' of 'b' attacked other queries: judge one anew"
    with pytest.raises(runs.ResultError, match=message):
        runs.defenses_side_by_side(judged(), {"CgA": "CgA", "robust": "robust MAP at 8/255"})
    rows = runs.defenses_side_by_side(judged(), {"CgA": "CgA", "robust": "robust MAP at 4/255"}).splitlines()[2:]
    assert rows == ["| CgA | 4.0 ± 0.5 | not run |", "| robust | not run | not run |"]


def test_the_second_and_the_third_must_compare_also_where_the_first_was_not_attacked(write, judged):
    write(label="a")
    for label, steps in (("b", 100), ("c", 7)):
        write({"CgA": [4.0] * 4}, label=label, attacked="without target", steps=steps)
    with pytest.raises(runs.ResultError, match="'CgA' of 'b' and of 'c' had steps 100 and 7: judge one anew"):
        runs.defenses_side_by_side(judged(), {"CgA": "CgA"})


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


# Several seeds


@pytest.fixture
def trained(tmp_path):
    def found(bits=16, **settings):
        return runs.trainings("fashion-mnist", "quick", bits, tmp_path, **settings)

    return found


def left(value):
    return {"robust MAP at 8/255": [value, value + 2]}


def test_trainings_of_one_recipe_are_one(write, trained):
    """Seeds come in their order; other bits, data sets and radii are others."""
    for seed, value in ((10, 5.0), (2, 1.0)):
        write(left(value), seed=seed, attacked="robust", recipe={"seed": seed})
    write(left(7.0), seed=2, bits=32, attacked="robust")
    write(left(9.0), seed=3, dataset="coco", attacked="robust")
    write(label="CgAT")
    write({"CgA": [8.0]}, seed=4, attacked="without target", eps="1/255")
    assert {label: sorted(each.networks) for label, each in trained().items()} == {"CSQ": [2, 10], "CgAT": [0]}
    assert trained()["CSQ"].values("robust MAP at 8/255") == [2.0, 6.0]
    assert trained()["CSQ"].by_query("robust MAP at 8/255") == [[1.0, 3.0], [5.0, 7.0]]
    assert trained()["CgAT"].values("robust MAP at 8/255") == trained()["CgAT"].by_query("CgA") == []
    assert trained(eps=1 / 255)["CSQ"].values("CgA") == [8.0]
    assert trained(bits=64) == {}


def test_trainings_are_compared_where_both_have_a_seed(write, trained):
    for label, values in (("CgAT", {0: 9.0, 1: 7.0, 2: 8.0}), ("ATRDH", {0: 4.0, 1: 8.0})):
        for seed, value in values.items():
            write(left(value), label=label, seed=seed, attacked="robust")
    write(label="ATRDH", seed=2)
    one, other = trained()["CgAT"], trained()["ATRDH"]
    assert one.less(other, "robust MAP at 8/255") == [5.0, -1.0]
    assert other.less(one, "robust MAP at 8/255") == [-5.0, 1.0]
    assert one.less(other, "robust MAP at 4/255") == []


def test_trainings_that_do_not_compare_are_refused(write, trained):
    for label, effort in (("CgAT", "standard"), ("ATRDH", "quick")):
        write(left(4.0), label=label, attacked="robust", effort=effort)
    with pytest.raises(runs.ResultError, match="'robust MAP at 8/255' of 'CgAT' and of 'ATRDH' had effort"):
        trained()["CgAT"].less(trained()["ATRDH"], "robust MAP at 8/255")


@pytest.mark.parametrize(
    ("recipe", "differing"),
    [({"steps": 9, "origin": {"lr": 2.0}}, "steps"), ({"steps": 8, "origin": {"lr": 1.0}}, "origin")],
)
def test_one_label_of_two_recipes_is_refused(write, trained, recipe, differing):
    """The seeds of their origins may differ."""
    write(seed=0, recipe={"steps": 8, "origin": {"lr": 2.0, "seed": 0}})
    write(seed=1, recipe={"steps": 8, "origin": {"lr": 2.0, "seed": 1}})
    assert len(trained()["CSQ"].networks) == 2
    write(seed=2, recipe={"steps": 8, "origin": {"lr": 2.0, "seed": 2}} | recipe)
    message = f"'CSQ' with 16 bits: the recipe of seed 0 and another differ in {differing}"
    with pytest.raises(runs.ResultError, match=message):
        trained()
