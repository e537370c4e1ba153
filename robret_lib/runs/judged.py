"""Defenses as `workflow/judge_defense.ipynb` has judged them, over seeds and side by side."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from robret_lib.runs.comparison import half_interval, results, with_error, with_minus
from robret_lib.runs.records import ResultError

JUDGE = "judge_defense"


@dataclass(frozen=True)
class Judged:
    """One defense in one setting.

    Args:
        label: What tables call it.
        records: Of its runs, by seed; each is a result file.
    """

    label: str
    records: dict[int, dict[str, Any]]

    def values(self, metric: str) -> list[float]:
        """Of each seed whose run has the metric, in the order of the seeds."""
        metrics = (self.records[seed]["metrics"] for seed in sorted(self.records))
        return [found[metric]["value"] for found in metrics if metric in found]

    def last(self, sign: str) -> list[float]:
        """What the history of each seed's training says at its end, such as "spread"; of those that have it."""
        return [history[-1][sign] for history in self.histories if sign in history[-1]]

    @property
    def histories(self) -> list[list[dict[str, float]]]:
        """Of each seed's training, in the order of the seeds."""
        return [self.records[seed]["details"]["history"] for seed in sorted(self.records)]

    @property
    def steps(self) -> int:
        """Of the training."""
        return next(iter(self.records.values()))["details"]["recipe"]["steps"]

    @property
    def levels(self) -> tuple[int, ...]:
        """The radii of robust recall, times 255; the first is 0."""
        return tuple(sorted(map(int, next(iter(self.records.values()))["details"]["standing"])))

    def left(self, level: int) -> list[float]:
        """Robust recall in percent at a radius times 255, of each seed; at 0, what is right without an attack."""
        standing = (self.records[seed]["details"]["standing"][str(level)] for seed in sorted(self.records))
        return [100 * each.count("1") / len(each) for each in standing]

    def by_query(self, level: int) -> list[float]:
        """At a radius times 255, of each query of each seed 100 where its first answer stays right, else 0."""
        standing = (self.records[seed]["details"]["standing"][str(level)] for seed in sorted(self.records))
        return [100.0 * (stands == "1") for each in standing for stands in each]

    def left_less(self, other: "Judged", level: int) -> list[float]:
        """The difference in robust recall to another defense, of each seed that both have; of one seed, of each query.

        Queries are the same, so the differences are paired.

        Raises:
            ResultError: They are not.
        """
        seeds = self._shared(other)
        if len(seeds) == 1:
            return self._less_by_query(other, level)
        mine, its = (each._of(seeds).left(level) for each in (self, other))
        return [a - b for a, b in zip(mine, its, strict=True)]

    def beats(self, other: "Judged", level: int) -> bool:
        """Whether it leaves more at a radius times 255, by more than chance.

        The difference must be larger than half of two 95 % intervals (`half_interval`): over the seeds that both have,
        and over the queries, each a mean over these seeds. So one seed decides nothing.
        """
        if len(self._shared(other)) < 2:
            return False
        over = self.left_less(other, level), self._less_by_query(other, level)
        return fmean(over[0]) > max(half_interval(values) for values in over)

    def has_more(self, other: "Judged", metric: str) -> bool:
        """Whether a metric is larger by more than chance: than half of a 95 % interval over the seeds that both have.

        One seed, or a run without the metric, decides nothing.
        """
        both = [seed for seed in self._shared(other) if all(each._has(metric, seed) for each in (self, other))]
        mine, its = (each._of(both).values(metric) for each in (self, other))
        apart = [a - b for a, b in zip(mine, its, strict=True)]
        return len(apart) > 1 and fmean(apart) > half_interval(apart)

    def less(self, other: "Judged") -> str:
        """In words, what it leaves less what another defense leaves, at every radius (see `left_less`).

        In bold where one `beats` the other.

        Raises:
            ResultError: They have no seed in common.
        """
        apart = (f"{self.told_less(other, at)} at {at}/255" for at in self.levels)
        paired = "query by query" if len(self._shared(other)) == 1 else "seed by seed, in bold where decided"
        return f"{with_minus(self.label)} less {with_minus(other.label)}, {paired}: {', '.join(apart)}."

    def told_less(self, other: "Judged", level: int) -> str:
        """What it leaves less what another defense leaves (see `left_less`), in bold where one `beats` the other.

        Raises:
            ResultError: They have no seed in common.
        """
        if not self._shared(other):
            raise ResultError(f"{self.label!r} and {other.label!r} have no seed in common: nothing to compare")
        told = with_error(self.left_less(other, level), 1, signed=True)
        return f"**{told}**" if self.beats(other, level) or other.beats(self, level) else told

    def _has(self, metric: str, seed: int) -> bool:
        return metric in self.records[seed]["metrics"]

    def _shared(self, other: "Judged") -> list[int]:
        seeds = sorted(self.records.keys() & other.records.keys())
        mine, its = ({n for seed in seeds for n in each._queries(seed)} for each in (self, other))
        if mine != its:
            raise ResultError(f"{self.label!r} and {other.label!r} have been asked {mine} and {its} queries")
        asked, others = self._asked(seeds), other._asked(seeds)
        if asked and others and asked != others:
            raise ResultError(f"{self.label!r} and {other.label!r} have been asked other queries: judge one anew")
        return seeds

    def _asked(self, seeds: Iterable[int]) -> set[str]:
        """What tells the queries of some seeds from others; empty where records are from before it was kept."""
        kept = (self.records[seed]["details"].get("asked") for seed in seeds)
        return {digest for digest in kept if digest}

    def _queries(self, seed: int) -> set[int]:
        return {len(stands) for stands in self.records[seed]["details"]["standing"].values()}

    def _of(self, seeds: Iterable[int]) -> "Judged":
        return Judged(self.label, {seed: self.records[seed] for seed in seeds})

    def _less_by_query(self, other: "Judged", level: int) -> list[float]:
        """The difference of each query, a mean over the seeds that both have."""
        seeds = self._shared(other)
        mine, its = (zip(*(each._of([seed]).by_query(level) for seed in seeds), strict=True) for each in (self, other))
        return [fmean(a) - fmean(b) for a, b in zip(mine, its, strict=True)]

    @property
    def doubts(self) -> tuple[str, ...]:
        """The checks that warn of its robust recall in any run, by their names (`robret_lib.checks`)."""
        warned = [words for record in self.records.values() for words in record["details"]["warnings"]]
        return tuple(dict.fromkeys(name for words in warned if (name := words.split(":")[0]) != OF_A_FIXED_SEARCH))


OF_A_FIXED_SEARCH = "loss at the last step"
"""The check that warns of rows whose search is too short; robust recall has others."""

IN_HUNDREDTHS = ("spread", "TMA", "ES:D")
COLUMNS = 5
"""How many fit on a page."""


def side_by_side(defenses: Sequence[Judged], rows: Sequence[str | int]) -> str:
    """Markdown tables with a column for each defense, as many of them as fit beside each other.

    The first row says of how many trainings each column is. Errors are those over seeds; of robust recall with one
    seed, over its queries.

    Args:
        defenses: In their order.
        rows: Metrics; radii of robust recall, times 255; "steps" and "spread" of the training.
    """
    names = ["trainings", *(f"{row}/255" if isinstance(row, int) else with_minus(row) for row in rows)]
    columns = [
        [with_minus(each.label), str(len(each.records)), *(_cell(each, row) for row in rows)] for each in defenses
    ]
    return _tables(names, columns)


def differences(pairs: Sequence[tuple[Judged, Judged]], levels: Sequence[int]) -> str:
    """Markdown tables with a column for each pair, as many as fit: what the first leaves less what the second leaves.

    See `Judged.told_less`, also for the errors.

    Args:
        pairs: In their order.
        levels: Radii of robust recall, times 255.
    """
    columns = [
        [
            f"{with_minus(one.label)} less {with_minus(other.label)}",
            *(one.told_less(other, level) for level in levels),
        ]
        for one, other in pairs
    ]
    return _tables([f"{level}/255" for level in levels], columns)


def _tables(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    """Markdown tables of columns, the head of each first, as many as fit beside each other; ``names`` of the rows."""
    tables = []
    for first in range(0, len(columns), COLUMNS):
        heads, *rows = zip(*columns[first : first + COLUMNS], strict=True)
        lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        lines += [f"| {name} | {' | '.join(row)} |" for name, row in zip(names, rows, strict=True)]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def doubted(defenses: Iterable[Judged]) -> str:
    """A sentence on those whose robust recall a check doubts (`Judged.doubts`); empty where there are none."""
    told = [f"{with_minus(each.label)} (*{', '.join(each.doubts)}*)" for each in defenses if each.doubts]
    return f"Robust recall may be too high where a check fails (in brackets): {'; '.join(told)}." if told else ""


def _cell(defense: Judged, row: str | int) -> str:
    if row == "steps":
        return str(defense.steps)
    if isinstance(row, int):
        values = defense.left(row) if len(defense.records) > 1 else defense.by_query(row)
    else:
        values = defense.last(row) if row == "spread" else defense.values(row)
    return with_error(values, 2 if row in IN_HUNDREDTHS else 1) if values else ""


def judged(
    scale: str,
    mode: str = "fixed",
    dataset: str = "fashion-mnist",
    folder: Path | None = None,
    effort: str = "standard",
) -> dict[str, Judged]:
    """All defenses whose result files there are, by label, in the order of the labels.

    Args:
        scale: "quick" or "full".
        mode: Of the ten rows.
        dataset: As it was given to the judge.
        folder: See `comparison.results`.
        effort: Of robust recall.

    Raises:
        ResultError: Two runs of one label differ in more than seed and device, or have the same seed.
    """
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in results(JUDGE, folder, scale):
        settings = record["parameters"]
        if (settings["mode"], settings["dataset"], settings.get("effort", "standard")) != (mode, dataset, effort):
            continue
        of_label = found[settings["label"]]
        for other in of_label.values():
            differing = _asked_differently(settings, other["parameters"])
            if differing:
                raise ResultError(f"the runs of {settings['label']!r} differ in {', '.join(sorted(differing))}")
        if record["seed"] in of_label:
            raise ResultError(f"two runs of {settings['label']!r} have seed {record['seed']}: expected one, delete one")
        of_label[record["seed"]] = record
    return {label: Judged(label, found[label]) for label in sorted(found)}


def _asked_differently(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {k for k in one | other if one.get(k) != other.get(k)} - {"seed", "device"}
