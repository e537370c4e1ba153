"""Hash networks as `workflow/judge_hashing.ipynb` has judged them, side by side."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robret_lib.runs.comparison import results, with_error
from robret_lib.runs.records import ResultError

JUDGE = "judge_hashing"

PUBLISHED_EPS = 8 / 255

UNDER_ATTACK = " Under attack "
"""Parts the protocol of the rankings from that of the attacks, in the words of a result file."""

LOOKED_AT = {
    "without target": ("eps", "most_steps", "n_queries", "top_k"),
    "with target": ("eps", "most_steps", "n_queries", "top_k", "prototype_steps"),
    "generated": ("eps", "n_queries", "top_k", "prototype_steps", "generator_steps", "reconstruction"),
    "robust": ("effort", "n_queries", "top_k"),
}
"""Parameters of each family of attacks; none of them decides a weight."""

SHARED = ("eps", "n_queries", "top_k")
"""Those in which the attacks of one table must agree; of the others its rows tell."""


@dataclass(frozen=True)
class JudgedCodes:
    """One hash network.

    Args:
        label: What tables call it.
        bits: Of its codes.
        metrics: Of all its runs, by name.
        details: Of its runs, merged.
        parameters: Of its attacks, those that they look at; empty where there were none.
        protocol: In words, of its attacks where there were some.
        asked: Of each attack, what tells its queries from others.
    """

    label: str
    bits: int
    metrics: dict[str, dict[str, Any]]
    details: dict[str, Any]
    parameters: dict[str, Any]
    protocol: str
    asked: dict[str, str]

    @property
    def searched(self) -> str:
        """The protocol of the rankings, without what it says of attacks."""
        return self.protocol.partition(UNDER_ATTACK)[0]

    def less(self, one: str, other: str) -> str:
        """What one attack leaves less what another leaves, as "-3.2 ± 0.4": the mean over queries with its error.

        Each query is compared with itself.

        Args:
            one, other: Names of attacks, as "CgA" and "CgA, AutoPGD, alpha one".

        Raises:
            ResultError: One of them has not been run, or they attacked other queries.
        """
        mine, its = map(self._of_query, (one, other))
        if self.asked[one] != self.asked[other] or len(mine) != len(its):
            raise ResultError(f"{self.label!r}: {one!r} and {other!r} attacked other queries: judge one anew")
        return with_error((a - b for a, b in zip(mine, its, strict=True)), signed=True)

    def _of_query(self, attack: str) -> list[float]:
        of_query = self.details["of_query"]
        if attack not in of_query:
            run = ", ".join(map(repr, of_query)) or "none"
            raise ResultError(f"{self.label!r} has no attack {attack!r}: expected one of those that were run, {run}")
        return of_query[attack]

    def told(self, metric: str, error: bool = True) -> str:
        """A metric with its standard error, or "not run"."""
        found = self.metrics.get(metric)
        if found is None:
            return "not run"
        spread = found["spread"]
        return f"{found['value']:.1f}" + (f" ± {spread:.1f}" if error and spread is not None else "")


def both_protocols(searched: str, attacked: str) -> str:
    """The protocol of a run, in words, of that of its rankings and that of its attacks; see `JudgedCodes.searched`."""
    return f"{searched}{UNDER_ATTACK}{attacked}"


def judged_codes(
    dataset: str, scale: str = "full", folder: Path | None = None, eps: float = PUBLISHED_EPS, **settings: object
) -> list[JudgedCodes]:
    """The hash networks whose result files there are, sorted by label and bits.

    Runs of one network that differ in their attacks alone are one.

    Args:
        dataset: As it was given to the judge.
        scale: "quick" or "full".
        folder: See `comparison.results`.
        eps: Radius of the attacks that are told; runs that attack at another one are left out.
        settings: Parameters of the judge that a run must have, such as ``seed=0``.

    Raises:
        ResultError: Two runs of one network have different recipes or protocols, attack other queries or at other
            depths, aim at different targets, or say different things of one metric.
    """
    found: dict[tuple[str, int], JudgedCodes] = {}
    for record in results(JUDGE, folder, scale):
        given = record["parameters"]
        if given["dataset"] != dataset or any(given[name] != value for name, value in settings.items()):
            continue
        if abs(_looked_at(given).get("eps", eps) - eps) > 1e-9:
            continue
        key = given["label"], given["bits"]
        found[key] = _joined(found[key], record) if key in found else _first(record)
    return [found[key] for key in sorted(found)]


def of_bits(networks: Iterable[JudgedCodes], bits: int) -> list[JudgedCodes]:
    """Those with codes of so many bits."""
    return [network for network in networks if network.bits == bits]


def codes_side_by_side(
    networks: Sequence[JudgedCodes], metrics: Sequence[str], heads: Sequence[str], with_sources: Collection[str] = ()
) -> str:
    """A Markdown table with a row for each network and a column for each metric, without errors.

    Args:
        networks: In their order.
        metrics: Names of metrics.
        heads: Of the columns, as many.
        with_sources: Methods of which published codes differ, so that it is told whose settings they have
            (`recipes.WITH_SOURCES`).

    Raises:
        ResultError: Networks of different protocols, whose numbers do not compare.
    """
    for network in networks[1:]:
        _check_searched(networks[0], network, f"{networks[0].label!r} and {network.label!r}")
    lines = [f"| method | source | bits | {' | '.join(heads)} |", "| --- | --- | ---: |" + " ---: |" * len(heads)]
    for network in networks:
        cells = (network.told(metric, error=False) for metric in metrics)
        recipe = network.details["recipe"]
        source = recipe["source"] if recipe["method"] in with_sources else ""
        lines.append(f"| {network.label} | {source} | {network.bits} | {' | '.join(cells)} |")
    return "\n".join(lines)


def attacks_side_by_side(network: JudgedCodes, attacks: Sequence[str]) -> str:
    """A Markdown table with a row for each attack: what its own search leaves, what `AutoPGD` leaves, and its bound.

    An attack that was ported has the loss of its authors, so that its `AutoPGD` is theirs.
    """
    columns = "steps", "its own search", "AutoPGD, $\\mu = 1$", "AutoPGD, $\\mu$ rises", "bound"
    lines = [f"| attack | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for name in attacks:
        loss = name.removesuffix(", ported")
        of_search = (name, f"{loss}, AutoPGD, alpha one", f"{loss}, AutoPGD, alpha rising", f"{name}, bound")
        cells = str(network.details["steps"].get(name, "not run")), *map(network.told, of_search)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _first(record: dict[str, Any]) -> JudgedCodes:
    given, details = record["parameters"], record["details"]
    attacked = _looked_at(given)
    asked = dict.fromkeys(details["of_query"], details["asked"])
    return JudgedCodes(given["label"], given["bits"], record["metrics"], details, attacked, record["protocol"], asked)


def _looked_at(given: dict[str, Any]) -> dict[str, Any]:
    """Of the parameters of a run those that its attacks look at."""
    families = () if given["attacked"] == "none" else given["attacked"]
    return {name: given[name] for family in families for name in LOOKED_AT[family]}


def _joined(network: JudgedCodes, record: dict[str, Any]) -> JudgedCodes:
    other = _first(record)
    _check_alike(network, other)
    details = network.details | other.details
    details |= {part: network.details[part] | other.details[part] for part in ("steps", "of_query")}
    return JudgedCodes(
        network.label,
        network.bits,
        network.metrics | other.metrics,
        details,
        network.parameters | other.parameters,
        (other if other.parameters else network).protocol,
        network.asked | other.asked,
    )


def _check_alike(network: JudgedCodes, other: JudgedCodes) -> None:
    """Raise a ResultError unless two runs can be one network's."""
    both = f"two runs of {network.label!r} with {network.bits} bits"
    if network.details["recipe"] != other.details["recipe"]:
        raise ResultError(f"{both} have different recipes: delete one")
    _check_searched(network, other, both)
    for name in network.parameters.keys() & other.parameters.keys() & set(SHARED):
        mine, its = (each.parameters[name] for each in (network, other))
        if mine != its:
            raise ResultError(f"{both} attack with {name} {mine} and {its}: delete one")
    if len({run.details["aimed"] for run in (network, other) if "aimed" in run.details}) > 1:
        raise ResultError(f"{both} aim at different targets: delete one")
    for name in network.metrics.keys() & other.metrics.keys():
        mine, its = (each.metrics[name]["value"] for each in (network, other))
        if abs(mine - its) > 1e-6:
            raise ResultError(f"{both}: {name} is {mine} and {its}")


def _check_searched(one: JudgedCodes, other: JudgedCodes, both: str) -> None:
    """Raise a ResultError unless the rankings of two networks have one protocol."""
    if one.searched != other.searched:
        raise ResultError(f"{both} have different protocols: {one.searched!r} and {other.searched!r}")
