"""Result files: one JSON for each run, with a schema, written whole or not at all, read with a check."""

import json
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from robret_lib.files import written_whole

SCHEMA = 1


class ResultError(ValueError):
    """A result file, or a file of published values, that cannot be used; the message names it."""


@dataclass(frozen=True)
class Measured:
    """A number with what it rests on: the count it was averaged over, and its standard error where known."""

    value: float
    n: int
    spread: float | None


def measured(value: SupportsFloat, n: SupportsIndex, spread: SupportsFloat | None = None) -> Measured:
    """A metric's value, for `runs.Run.finish`.

    Args:
        value: the number, in the unit of the published tables (percent, rank percentile, distance).
        n: how many queries, triplets or images it is an average over.
        spread: its standard error, in the same unit.
    """
    return Measured(float(value), operator.index(n), None if spread is None else float(spread))


def plain(metrics: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """The metrics as JSON values.

    Raises:
        ValueError: naming a metric that is not finite, rests on nothing, or is no `measured` value.
    """
    if not metrics:
        raise ValueError("A run needs at least one metric.")
    for name, metric in metrics.items():
        if not isinstance(metric, Measured):
            raise ValueError(f"The metric {name} is {metric!r}; give runs.measured(value, n=...).")
        if not math.isfinite(metric.value) or not math.isfinite(metric.spread or 0) or metric.n < 1:
            raise ValueError(f"The metric {name} is {metric}; value and spread must be finite, n at least 1.")
    return {name: asdict(metric) for name, metric in metrics.items()}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, see `files.written_whole`.

    Raises:
        ValueError: where the record holds what JSON cannot, such as a tensor or NaN.
    """
    try:
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}. A result is plain JSON: .tolist() for tensors, None for NaN.") from None
    with written_whole(path) as file:
        file.write(f"{text}\n".encode())


def read(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The record in ``path``.

    Raises:
        ResultError: naming the file where it is cut off, of another schema, or lacks one of ``keys``.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is damaged ({error}). Restore it, or delete it and run again.") from None
    missing = [key for key in ("schema", *keys) if not isinstance(record, dict) or key not in record]
    if missing:
        raise ResultError(f"{path} has no {', '.join(missing)}. Restore it, or delete it and run again.")
    if record["schema"] != SCHEMA:
        raise ResultError(f"{path} has schema {record['schema']}; this version reads schema {SCHEMA}.")
    return record
