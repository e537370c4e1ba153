"""The paper's number beside ours: published values, result files of full-scale runs, the table of both, in words."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsFloat

from scipy.special import stdtrit

from robret_lib.runs import records

WORKFLOW = Path(__file__).parents[2] / "workflow"
COLUMNS = ("metric", "published", "ours ± s.e.", "difference", "in s.e.", "within tolerance", "run with", "n", "mode")

FAR = 3.0
"""From how many standard errors on a difference is told, though it lies within the tolerance; of few seeds, whose
spread is itself uncertain, from as many as chance reaches equally seldom (0.27 %): 235.8 of two seeds, 6.6 of five."""

TOLD = 5
"""How many rows of a kind are told one by one; of more, only the farthest is."""


@dataclass(frozen=True)
class Comparison:
    """One metric: the published value and, where it has been run, ours in one mode.

    Attributes:
        metric: the name in the published table.
        unit: of all its numbers; may be empty.
        published: the value, or ``None`` where none was published.
        tolerance: the largest difference that counts as reproduced, or ``None`` where none was set.
        ours: the mean over seeds, or ``None`` where it has not been run.
        error: its standard error: over seeds where there are several (standard deviation with divisor seeds - 1,
            over the root of their number), else over the ``n`` items of the one run; ``None`` where neither is known.
        seeds: the seeds it was run with.
        n: what each seed's value is an average over.
        mode: "fixed" or "reference", or ``None`` where it has not been run.
    """

    metric: str
    unit: str
    published: float | None
    tolerance: float | None
    ours: float | None = None
    error: float | None = None
    seeds: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    mode: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the published value."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def errors_apart(self) -> float | None:
        """The size of the difference in standard errors of ours; the published value has an error too, unknown."""
        return None if self.difference is None or not self.error else abs(self.difference) / self.error

    @property
    def beyond_chance(self) -> bool:
        """Whether ours is farther away than its standard error explains; see `FAR`."""
        if self.errors_apart is None:
            return False
        seeds = len(self.seeds)
        far = FAR if seeds < 2 else -stdtrit(seeds - 1, statistics.NormalDist().cdf(-FAR))
        return self.errors_apart > far

    @property
    def within(self) -> bool | None:
        """Whether the difference is inside the tolerance; ``None`` where either is missing."""
        if self.difference is None or self.tolerance is None:
            return None
        return abs(self.difference) <= self.tolerance + 1e-9  # 87.6 - 85.6 is not exactly 2.0


def results(chapter: str, folder: Path | None = None, scale: str = "full") -> list[dict[str, Any]]:
    """The result files of a chapter's runs at one scale, as `runs.Run.finish` wrote them, sorted by file name.

    Args:
        chapter: the chapter's name, such as "04_candidate_and_query_attacks".
        folder: where they lie; by default ``workflow/results`` of the source tree.
        scale: "full", or "quick".

    Raises:
        ResultError: naming a file that is cut off or no result file.
    """
    folder = WORKFLOW / "results" if folder is None else folder
    keys = ("chapter", "parameters", "metrics", "protocol", "mode", "seed")
    return [records.read(path, keys) for path in sorted(folder.glob(f"{chapter}-{scale}-s*.json"))]


def expected(name: str, folder: Path | None = None) -> dict[str, Any]:
    """The published values of one table.

    A row names its ``metric`` and its ``value``, and may have a ``unit``, a ``tolerance``, and ``dependent``: the mode
    in which the images of a run depend on each other, so that their spread gives no standard error.

    Args:
        name: the file's name without its ending.
        folder: where it lies; by default ``workflow/expected`` of the source tree.

    Raises:
        ResultError: where there is no such file, it is damaged, or a row has no metric or value.
    """
    path = (WORKFLOW / "expected" if folder is None else folder) / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.json"))) or "none"
        raise records.ResultError(f"There are no published values {name} in {path.parent}; known there: {known}.")
    table = records.read(path, ("title", "source", "rows"))
    for row in table["rows"]:
        if not {"metric", "value"} <= row.keys():
            raise records.ResultError(f"{path} has the row {row}; each row needs a metric and a value.")
    return table


def comparison(name: str, chapter: str, workflow: Path | None = None) -> list[Comparison]:
    """Each published metric with ours beside it, one row for each mode it was run in.

    Args:
        name: of the published values, see `expected`.
        chapter: whose runs measured the metrics, see `results`.
        workflow: the folder that holds ``expected`` and ``results``; by default that of the source tree.

    Raises:
        ResultError: where a file is damaged, or runs of one metric in one mode differ in more than seed and
            device, since a mean over different protocols or parameters says nothing.
    """
    workflow = WORKFLOW if workflow is None else workflow
    runs = results(chapter, workflow / "results")
    rows = []
    for row in expected(name, workflow / "expected")["rows"]:
        published = row["value"] if isinstance(row["value"], int | float) else None
        head = (row["metric"], row.get("unit", ""), published, row.get("tolerance"))
        measured = [run for run in runs if row["metric"] in run["metrics"]]
        dependent = row.get("dependent", "in no mode")
        modes = sorted({run["mode"] for run in measured})
        by_mode = [_summary(head, [run for run in measured if run["mode"] == mode]) for mode in modes]
        by_mode = [_without_error(each) if each.mode == dependent else each for each in by_mode]
        rows.extend(by_mode or [Comparison(*head)])
    return rows


def comparison_table(name: str, chapter: str, workflow: Path | None = None) -> str:
    """The rows of `comparison` as a Markdown table; same arguments and errors."""
    lines = [_line(COLUMNS), "| --- |" + " ---: |" * 4 + " --- |" * 4]
    lines.extend(_line(_cells(row)) for row in comparison(name, chapter, workflow))
    return "\n".join(lines)


def comparison_words(name: str, chapter: str, workflow: Path | None = None, mode: str | None = None) -> str:
    """What the table of `comparison_table` says, in a few sentences made from its rows; same arguments and errors.

    How many rows lie within their tolerance; which lie outside; which lie within it, and yet so many standard errors
    away that chance does not explain them (`Comparison.beyond_chance`). With a ``mode``, of the rows of that mode.
    """
    rows = [row for row in comparison(name, chapter, workflow) if row.within is not None and mode in (None, row.mode)]
    if not rows:
        return "None of these rows has been run."
    outside = [row for row in rows if not row.within]
    far = [row for row in rows if row.within and row.beyond_chance]
    sentences = [_how_many(len(rows), len(outside))]
    if outside:
        sentences.append(f"Outside {_are(outside)} {_told(outside)}.")
    if far:
        sentences.append(f"Within it and yet farther away than chance explains {_are(far)} {_told(far)}.")
    elif outside and any(row.within and row.errors_apart is not None for row in rows):
        sentences.append("Of the rows within it, none that has a standard error is farther away than chance explains.")
    return " ".join(sentences)


def with_minus(text: object) -> str:
    """Text as it is typeset, with minus signs; a hyphen within a word is none: "CA−" and "−0.1", but "CA-TRIDE"."""
    return re.sub(r"(?<!\w)-|-(?=\W|$)", "−", str(text))


def with_error(values: Iterable[SupportsFloat], digits: int = 1, signed: bool = False) -> str:
    """Mean and standard error in words, such as "86.8 ± 1.5"; of a single value, which has no error, "86.8".

    Args:
        values: one number for each image or query. For two methods on the same images give the differences, image by
            image: that makes the comparison paired.
        digits: behind the point.
        signed: write a plus as well, as for differences.

    Raises:
        ValueError: where there is no value.
    """
    return _mean_in_words(values, digits, signed, of_mean=True)


def with_deviation(values: Iterable[SupportsFloat], digits: int = 1, signed: bool = False) -> str:
    """Mean and standard deviation in words, as `with_error` has the standard error: how far trainings differ.

    Args:
        values: one number for each training.
        digits, signed: see `with_error`; errors as well.
    """
    return _mean_in_words(values, digits, signed, of_mean=False)


def _mean_in_words(values: Iterable[SupportsFloat], digits: int, signed: bool, of_mean: bool) -> str:
    """With the standard deviation of the mean, or of one value."""
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("Got no values; the mean of nothing is not defined.")
    rounded = round(statistics.fmean(numbers), digits) + 0.0  # no minus before a zero
    mean = with_minus(f"{rounded:{'+' if signed else ''}.{digits}f}")
    if len(numbers) == 1:
        return mean
    spread = statistics.stdev(numbers) / (math.sqrt(len(numbers)) if of_mean else 1)
    return f"{mean} ± {spread:.{digits}f}"


def half_interval(values: Iterable[SupportsFloat]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; of fewer than two values, infinity.

    Args:
        values: as in `with_error`; for two methods, the paired differences.
    """
    numbers = [float(value) for value in values]
    if len(numbers) < 2:
        return math.inf
    return -stdtrit(len(numbers) - 1, 0.025).item() * statistics.stdev(numbers) / math.sqrt(len(numbers))


def _how_many(rows: int, outside: int) -> str:
    if rows == 1:
        return f"The one row lies {'outside' if outside else 'within'} the tolerance."
    if outside in (0, rows):
        return f"{'None' if outside else 'All'} of the {rows} rows lie{'s' * bool(outside)} within the tolerance."
    return f"Of {rows} rows, {rows - outside} lie{'s' * (rows - outside == 1)} within the tolerance."


def _are(rows: Sequence[Comparison]) -> str:
    return "is" if len(rows) == 1 else "are"


def _told(rows: Sequence[Comparison]) -> str:
    """The rows one by one, or how many there are and the farthest; first those that are the most tolerances away."""
    ordered = sorted(rows, key=lambda row: -abs(row.difference or 0) / max(row.tolerance or 0, 1e-9))
    if len(rows) > TOLD:
        return f"{len(rows)} rows, the farthest of them {_row_in_words(ordered[0])}"
    words = [_row_in_words(row) for row in ordered]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _row_in_words(row: Comparison) -> str:
    apart = "" if row.errors_apart is None else f", {row.errors_apart:.1f} s.e."
    return f"{row.metric} ({_signed(row.difference or 0)}{apart})"


def _summary(head: tuple[str, str, float | None, float | None], runs: Sequence[dict[str, Any]]) -> Comparison:
    """One metric over the seeds of one mode."""
    metric = head[0]
    first, *others = ({"protocol": run["protocol"]} | run["parameters"] for run in runs)
    for other in others:
        differing = [key for key in first | other if first.get(key) != other.get(key)]
        if mixed := sorted(set(differing) - {"seed", "device"}):
            raise records.ResultError(
                f"The runs of {metric} in mode {runs[0]['mode']} differ in {', '.join(mixed)}. Keep one "
                "setting in workflow/results, or give each setting a metric name of its own."
            )
    values = [run["metrics"][metric]["value"] for run in runs]
    over_seeds = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Comparison(
        *head,
        ours=statistics.fmean(values),
        error=runs[0]["metrics"][metric].get("spread") if over_seeds is None else over_seeds,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        n=tuple(sorted({run["metrics"][metric]["n"] for run in runs})),
        mode=runs[0]["mode"],
    )


def _without_error(row: Comparison) -> Comparison:
    """The row of one run whose images depend on each other: the spread over them is no standard error."""
    return row if len(row.seeds) > 1 else replace(row, error=None)


def _cells(row: Comparison) -> Sequence[str]:
    ours = "not run" if row.ours is None else f"{row.ours:.2f}"
    return (
        f"{row.metric}, {row.unit}" if row.unit else row.metric,
        "not published" if row.published is None else f"{row.published:g}",
        ours if row.error is None else f"{ours} ± {row.error:.2f}",
        "" if row.difference is None else _signed(row.difference),
        "" if row.errors_apart is None else f"{row.errors_apart:.1f}",
        _within(row),
        _seeds(row.seeds),
        " to ".join(f"{n:,}" for n in row.n),
        row.mode or "",
    )


def _signed(difference: float) -> str:
    return f"{difference:+.2f}".replace("-", "−")


def _within(row: Comparison) -> str:
    """Yes or no, and how much was tolerated."""
    if row.tolerance is None:
        return ""
    return f"of {row.tolerance:g}" if row.within is None else f"{'yes' if row.within else 'no'}, of {row.tolerance:g}"


def _seeds(seeds: Sequence[int]) -> str:
    """In words: a bare 0 would read as none."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else ""


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
