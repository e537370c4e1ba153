"""Committed tables of benchmarks are those of their scripts, as far as no machine changes them."""

from pathlib import Path

from tests.benchmarks import defense_cost

TABLES = Path(__file__).parent / "benchmarks"


def test_costs_of_defenses_are_told_as_they_are_measured_now():
    lines = (TABLES / "defense_cost.md").read_text().splitlines()
    assert lines[: len(defense_cost.head())] == defense_cost.head()
    told = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
    assert told == [[f"| {setting.backbone}", name] for setting in defense_cost.SETTINGS for name in setting.timed]
