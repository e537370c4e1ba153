"""The paper's number beside ours: published values, result files of full-scale runs, the table of both."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robret_lib.runs import records

WORKFLOW = Path(__file__).parents[2] / "workflow"
COLUMNS = ("metric", "published", "ours", "difference", "tolerance", "within", "seeds", "n", "mode")


@dataclass(frozen=True)
class Comparison:
    """One metric: the published value and, where it has been run, ours in one mode.

    Attributes:
        metric: the name in the published table.
        unit: of all its numbers; may be empty.
        published: the value, or ``None`` where none was published.
        tolerance: the largest difference that counts as reproduced, or ``None`` where none was set.
        ours: the mean over seeds, or ``None`` where it has not been run.
        deviation: the standard deviation over seeds (divisor: seeds - 1), or ``None`` for fewer than two.
        seeds: the seeds it was run with.
        n: what each seed's value is an average over.
        mode: "fixed" or "reference", or ``None`` where it has not been run.
    """

    metric: str
    unit: str
    published: float | None
    tolerance: float | None
    ours: float | None = None
    deviation: float | None = None
    seeds: tuple[int, ...] = ()
    n: tuple[int, ...] = ()
    mode: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the published value."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def within(self) -> bool | None:
        """Whether the difference is inside the tolerance; ``None`` where either is missing."""
        if self.difference is None or self.tolerance is None:
            return None
        return abs(self.difference) <= self.tolerance + 1e-9  # 87.6 - 85.6 is not exactly 2.0


def results(chapter: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The result files of a chapter's full-scale runs, as `runs.Run.finish` wrote them, sorted by file name.

    Args:
        chapter: the chapter's name, such as "04_candidate_and_query_attacks".
        folder: where they lie; by default ``workflow/results`` of the source tree.

    Raises:
        ResultError: naming a file that is cut off or no result file.
    """
    folder = WORKFLOW / "results" if folder is None else folder
    keys = ("chapter", "parameters", "metrics", "protocol", "mode", "seed")
    return [records.read(path, keys) for path in sorted(folder.glob(f"{chapter}-full-s*.json"))]


def expected(name: str, folder: Path | None = None) -> dict[str, Any]:
    """The published values of one table.

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
        modes = sorted({run["mode"] for run in measured})
        by_mode = [_summary(head, [run for run in measured if run["mode"] == mode]) for mode in modes]
        rows.extend(by_mode or [Comparison(*head)])
    return rows


def comparison_table(name: str, chapter: str, workflow: Path | None = None) -> str:
    """The rows of `comparison` as a Markdown table; same arguments and errors."""
    lines = [_line(COLUMNS), "| --- |" + " ---: |" * 4 + " --- |" * 4]
    lines.extend(_line(_cells(row)) for row in comparison(name, chapter, workflow))
    return "\n".join(lines)


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
    return Comparison(
        *head,
        ours=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        n=tuple(sorted({run["metrics"][metric]["n"] for run in runs})),
        mode=runs[0]["mode"],
    )


def _cells(row: Comparison) -> Sequence[str]:
    ours = "not run" if row.ours is None else f"{row.ours:.2f}"
    return (
        f"{row.metric}, {row.unit}" if row.unit else row.metric,
        "not published" if row.published is None else f"{row.published:g}",
        ours if row.deviation is None else f"{ours} ± {row.deviation:.2f}",
        "" if row.difference is None else f"{row.difference:+.2f}",
        "" if row.tolerance is None else f"{row.tolerance:g}",
        "" if row.within is None else ("yes" if row.within else "no"),
        ", ".join(map(str, row.seeds)),
        " to ".join(f"{n:,}" for n in row.n),
        row.mode or "",
    )


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
