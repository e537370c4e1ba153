"""Hash networks as `workflow/judge_hashing.ipynb` has judged them, side by side."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robret_lib.runs.comparison import results, with_error
from robret_lib.runs.records import ResultError, measured

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

YOUNGER = {
    "defense": None,
    "origin": None,
    "eps": 0.0,
    "inner_step": 0.0,
    "inner_steps": 0,
    "hashing_weight": 1.0,
    "adversarial_weight": 1.0,
    "quantization": 0.0,
    "mode": "fixed",
    "augmented": True,
}
"""Fields of a recipe that some result files are older than, and what held for these."""

AUTO_PGD = (", AutoPGD, alpha one", ", AutoPGD, alpha rising")
"""Behind the name of an attack: its loss, by our search."""

ANY_SEARCH = ", any search"
"""Behind the name of an attack: of each query what the strongest search of its loss leaves, of its own and of ours.

With a target, what it reaches. Made where all of them were run, of values with one digit behind the point, as result
files hold them.
"""

WITH_TARGET = (
    *("SDHA, targeted", "P2P", "P2P, ported", "DHTA", "DHTA, ported", "SAAT, targeted", "SAAT, targeted, symmetric"),
    *("PTA", "collision", "collision, mean", "THA"),
)
"""Those that have reached more where more is left."""

PORTED = ", ported"
"""Behind the name of an attack: its search as others have it, of the same loss."""

ROBUST = "robust MAP at "

ANY_ATTACK = "any attack"
"""Of each query what the strongest attack without a target leaves: by any loss and any search, and by the suite of
robust MAP at the same radius, which has more losses and fewer steps. Made where both were run, on the same queries."""


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
        return with_error(self._less(one, self, other, f"{self.label!r}: {one!r} and {other!r}"), signed=True)

    def apart_from(self, other: "JudgedCodes", attack: str) -> str:
        """The mean of `less_by_query` with its error, as "+3.2 ± 0.8"; arguments and errors as there."""
        return with_error(self.less_by_query(other, attack), signed=True)

    def less_by_query(self, other: "JudgedCodes", attack: str) -> list[float]:
        """Of each query, what an attack leaves of it less what the same leaves of another network.

        Args:
            other: The other network.
            attack: Its name, as "CgA" or "CgA, any search"; or "benign", or "robust MAP at 8/255".

        Raises:
            ResultError: It has not been run on one of them, or the two do not compare: by their protocols, or by the
                queries, the radius, the depth, the steps, the effort or the targets of the attack.
        """
        _check_searched(self, other, f"{self.label!r} and {other.label!r}")
        apart = self._less(attack, other, attack, f"{attack!r} of {self.label!r} and of {other.label!r}")
        _check_attacked(self, other, attack)
        return apart

    def _less(self, one: str, network: "JudgedCodes", other: str, both: str) -> list[float]:
        mine, its = self._of_query(one), network._of_query(other)
        if self.asked[one] != network.asked[other] or len(mine) != len(its):
            raise ResultError(f"{both} attacked other queries: judge one anew")
        return [a - b for a, b in zip(mine, its, strict=True)]

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
        settings: Parameters of the judge that a run must have, such as ``seed=0``; one that is older than a parameter
            has None there.

    Raises:
        ResultError: Two runs of one network have different recipes or protocols, attack other queries or at other
            depths, aim at different targets, or say different things of one metric; or no run has such a parameter.
    """
    return judged_in(results(JUDGE, folder, scale), dataset, eps, **settings)


def judged_in(
    records: Sequence[Mapping[str, Any]], dataset: str, eps: float = PUBLISHED_EPS, **settings: object
) -> list[JudgedCodes]:
    """As `judged_codes`, of result files that have been read."""
    found: dict[tuple[str, int], JudgedCodes] = {}
    known = {name for record in records for name in record["parameters"]}
    if unknown := [name for name, value in settings.items() if value is not None and records and name not in known]:
        raise ResultError(f"no run has a parameter {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    for record in records:
        given = record["parameters"]
        if given["dataset"] != dataset or any(given.get(name) != value for name, value in settings.items()):
            continue
        if abs(_looked_at(given).get("eps", eps) - eps) > 1e-9:
            continue
        key = given["label"], given["bits"]
        found[key] = _joined(found[key], record) if key in found else _first(record)
    return [_with_any_attack(_with_any_search(found[key])) for key in sorted(found)]


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
        loss = name.removesuffix(PORTED)
        of_search = (name, *(loss + how for how in AUTO_PGD), f"{name}, bound")
        cells = str(network.details["steps"].get(name, "not run")), *map(network.told, of_search)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def defenses_side_by_side(networks: Sequence[JudgedCodes], metrics: Mapping[str, str]) -> str:
    """A Markdown table with a column for each network: what it is without an attack, and what attacks leave of it.

    Args:
        networks: In their order.
        metrics: Their names, by what the rows are called: "benign", of the queries that are attacked; "MAP@all", of
            all; "CgA", what its own search leaves; "CgA, any search", what all leave; "robust MAP at 8/255".

    Raises:
        ResultError: Numbers of different networks that do not compare, see `JudgedCodes.apart_from`; or rows on
            different queries.
    """
    _check_compared(networks, list(metrics.values()))
    heads = (f"{network.label}, {network.bits} bits" for network in networks)
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(networks)]
    for head, metric in metrics.items():
        lines.append(f"| {head} | {' | '.join(network.told(metric) for network in networks)} |")
    return "\n".join(lines)


def _first(record: dict[str, Any]) -> JudgedCodes:
    given, details = record["parameters"], dict(record["details"])
    details["recipe"] = _completed(details["recipe"])
    attacked = _looked_at(given)
    asked = dict.fromkeys(details["of_query"], details["asked"])
    return JudgedCodes(given["label"], given["bits"], record["metrics"], details, attacked, record["protocol"], asked)


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe, and its origin, with the fields that are younger than its file."""
    origin = recipe.get("origin")
    return YOUNGER | recipe | {"origin": _completed(origin) if origin else None}


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


def _with_any_search(network: JudgedCodes) -> JudgedCodes:
    """The network with what the strongest search leaves, see `ANY_SEARCH`."""
    of_query, strongest = network.details["of_query"], {}
    for loss in network.details["steps"]:
        searches = [loss, *(loss + how for how in AUTO_PGD)]
        if of_query.keys() >= set(searches):
            most = max if loss in WITH_TARGET else min
            searches += [loss + PORTED] * (loss + PORTED in of_query)
            strongest[loss] = [most(values) for values in zip(*map(of_query.get, searches), strict=True)]
    told = {loss + ANY_SEARCH: values for loss, values in strongest.items()}
    return _with_told(network, told, {loss + ANY_SEARCH: network.asked[loss] for loss in strongest})


def _with_any_attack(network: JudgedCodes) -> JudgedCodes:
    """The network with what the strongest attack leaves, see `ANY_ATTACK`."""
    of_query, suite = network.details["of_query"], f"{ROBUST}{255 * network.parameters.get('eps', 0):g}/255"
    names = [suite, *(loss + ANY_SEARCH for loss in _without_target(network))]
    if suite not in of_query or len(names) == 1 or len({network.asked[name] for name in names}) > 1:
        return network
    least = [min(values) for values in zip(*map(of_query.get, names), strict=True)]
    return _with_told(network, {ANY_ATTACK: least}, {ANY_ATTACK: network.asked[suite]})


def _with_told(network: JudgedCodes, told: dict[str, list[float]], asked: dict[str, str]) -> JudgedCodes:
    """The network with what more is left of each query, by name, and what tells its queries from others."""
    return replace(
        network,
        metrics=network.metrics | {name: _mean(values) for name, values in told.items()},
        details=network.details | {"of_query": network.details["of_query"] | told},
        asked=network.asked | asked,
    )


def _without_target(network: JudgedCodes) -> list[str]:
    """The losses without a target by which it was attacked by all searches."""
    searched = [loss for loss in network.details["steps"] if loss + ANY_SEARCH in network.details["of_query"]]
    return [loss for loss in searched if loss not in WITH_TARGET]


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """A metric of values, one for each query, as in a result file."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return asdict(measured(statistics.fmean(values), len(values), error))


def _check_compared(networks: Sequence[JudgedCodes], names: Sequence[str]) -> None:
    """Raise a ResultError unless the numbers of one table compare."""
    for network in networks[1:]:
        _check_searched(networks[0], network, f"{networks[0].label!r} and {network.label!r}")
    cells = [(network, name) for name in names for network in networks if name in network.asked]
    for network, name in cells:
        first, its = cells[0]
        if network.asked[name] != first.asked[its]:
            both = f"{its!r} of {first.label!r} and {name!r} of {network.label!r}"
            raise ResultError(f"{both} attacked other queries: judge one anew")
        _check_attacked(next(one for one, same in cells if same == name), network, name)


def _check_attacked(one: JudgedCodes, other: JudgedCodes, attack: str) -> None:
    """Raise a ResultError unless one attack was run alike on two networks."""
    mine, its = (_how(network, attack) for network in (one, other))
    for name in mine:
        if name in its and mine[name] != its[name]:
            both = f"{attack!r} of {one.label!r} and of {other.label!r}"
            raise ResultError(f"{both} had {name} {mine[name]} and {its[name]}: judge one anew")


def _how(network: JudgedCodes, attack: str) -> dict[str, Any]:
    """What decides how an attack was run, besides the queries; the most steps are told by those that it took."""
    if attack == ANY_ATTACK:
        parts = {"the suite": ROBUST} | {loss: loss for loss in _without_target(network)}
        return {
            f"{name} of {told}": value for told, part in parts.items() for name, value in _how(network, part).items()
        }
    loss = attack
    for search in (ANY_SEARCH, *AUTO_PGD):
        loss = loss.removesuffix(search)
    family = "robust" if attack.startswith(ROBUST) else "with target" if loss in WITH_TARGET else "without target"
    family = "generated" if attack.startswith("ProS-GAN") else family
    names = set(LOOKED_AT[family]) - {"n_queries", "most_steps"}
    found = {name: network.parameters[name] for name in names & network.parameters.keys()}
    if loss in network.details["steps"]:
        found["steps"] = network.details["steps"][loss]
    if family in ("with target", "generated") and "aimed" in network.details:
        found["aimed at"] = network.details["aimed"]
    return found


def _check_searched(one: JudgedCodes, other: JudgedCodes, both: str) -> None:
    """Raise a ResultError unless the rankings of two networks have one protocol."""
    if one.searched != other.searched:
        raise ResultError(f"{both} have different protocols: {one.searched!r} and {other.searched!r}")
