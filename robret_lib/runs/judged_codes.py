"""Hash networks as `workflow/judge_hashing.ipynb` has judged them, side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robret_lib.runs.comparison import results
from robret_lib.runs.records import ResultError

JUDGE = "judge_hashing"

OF_ATTACKS = {
    *("attacked", "eps", "most_steps", "effort", "n_queries", "top_k"),
    *("prototype_steps", "generator_steps", "reconstruction"),
}
"""Parameters that decide no weight."""


@dataclass(frozen=True)
class JudgedCodes:
    """One hash network.

    Args:
        label: What tables call it.
        bits: Of its codes.
        metrics: Of all its runs, by name.
        details: Of its runs, merged.
        parameters: Of its attacks; empty where there were none.
        protocol: In words, of its attacks where there were some.
    """

    label: str
    bits: int
    metrics: dict[str, dict[str, Any]]
    details: dict[str, Any]
    parameters: dict[str, Any]
    protocol: str

    def told(self, metric: str, error: bool = True) -> str:
        """A metric with its standard error, or "not run"."""
        found = self.metrics.get(metric)
        if found is None:
            return "not run"
        spread = found["spread"]
        return f"{found['value']:.1f}" + (f" ± {spread:.1f}" if error and spread is not None else "")


def judged_codes(
    dataset: str, scale: str = "full", folder: Path | None = None, **settings: object
) -> list[JudgedCodes]:
    """The hash networks whose result files there are, sorted by label and bits.

    Runs of one network that differ in their attacks alone are one.

    Args:
        dataset: As it was given to the judge.
        scale: "quick" or "full".
        folder: See `comparison.results`.
        settings: Parameters of the judge that a run must have, such as ``seed=0``.

    Raises:
        ResultError: Two runs of one network say different things of one metric.
    """
    found: dict[tuple[str, int], JudgedCodes] = {}
    for record in results(JUDGE, folder, scale):
        given = record["parameters"]
        if given["dataset"] != dataset or any(given[name] != value for name, value in settings.items()):
            continue
        key = given["label"], given["bits"]
        found[key] = _joined(found[key], record) if key in found else _first(record)
    return [found[key] for key in sorted(found)]


def of_bits(networks: Iterable[JudgedCodes], bits: int) -> list[JudgedCodes]:
    """Those with codes of so many bits."""
    return [network for network in networks if network.bits == bits]


def codes_side_by_side(networks: Sequence[JudgedCodes], metrics: Sequence[str], heads: Sequence[str]) -> str:
    """A Markdown table with a row for each network and a column for each metric, without errors.

    Args:
        networks: In their order.
        metrics: Names of metrics.
        heads: Of the columns, as many.
    """
    lines = [f"| method | bits | {' | '.join(heads)} |", "| --- | ---: |" + " ---: |" * len(heads)]
    for network in networks:
        cells = (network.told(metric, error=False) for metric in metrics)
        lines.append(f"| {network.label} | {network.bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def attacks_side_by_side(network: JudgedCodes, attacks: Sequence[str]) -> str:
    """A Markdown table with a row for each attack: as published, by `AutoPGD` with alpha one and rising, its bound."""
    columns = "steps", "published search", "AutoPGD, alpha 1", "AutoPGD, alpha rising", "bound"
    lines = [f"| attack | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name in attacks:
        of_search = (name, f"{name}, AutoPGD, alpha one", f"{name}, AutoPGD, alpha rising", f"{name}, bound")
        cells = str(network.details["steps"].get(name, "not run")), *map(network.told, of_search)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _first(record: dict[str, Any]) -> JudgedCodes:
    given = record["parameters"]
    attacked = {} if given["attacked"] == "none" else {name: given[name] for name in OF_ATTACKS}
    return JudgedCodes(
        given["label"], given["bits"], record["metrics"], record["details"], attacked, record["protocol"]
    )


def _joined(network: JudgedCodes, record: dict[str, Any]) -> JudgedCodes:
    other = _first(record)
    if network.details["recipe"] != other.details["recipe"]:
        raise ResultError(f"two runs of {network.label!r} with {network.bits} bits have different recipes: delete one")
    for name in network.metrics.keys() & other.metrics.keys():
        mine, its = (each.metrics[name]["value"] for each in (network, other))
        if abs(mine - its) > 1e-6:
            raise ResultError(f"two runs of {network.label!r} with {network.bits} bits: {name} is {mine} and {its}")
    details = network.details | other.details
    details |= {part: network.details[part] | other.details[part] for part in ("steps", "of_query")}
    attacked = other if other.parameters else network
    return JudgedCodes(
        network.label, network.bits, network.metrics | other.metrics, details, attacked.parameters, attacked.protocol
    )
