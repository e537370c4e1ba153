"""Hash networks as `workflow/judge_hashing.ipynb` has judged them, of several seeds."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from robret_lib.runs.comparison import results
from robret_lib.runs.judged_codes import JUDGE, PUBLISHED_EPS, JudgedCodes, judged_in, of_bits
from robret_lib.runs.records import ResultError


@dataclass(frozen=True)
class Trainings:
    """One recipe of a hash network, trained with several seeds.

    Args:
        label: What tables call it.
        networks: By seed.
    """

    label: str
    networks: dict[int, JudgedCodes]

    def values(self, metric: str) -> list[float]:
        """Of each seed whose network has the metric, in the order of the seeds."""
        metrics = (self.networks[seed].metrics for seed in sorted(self.networks))
        return [found[metric]["value"] for found in metrics if metric in found]

    def by_query(self, attack: str) -> list[list[float]]:
        """What an attack leaves of each query, of each seed for which it was run, in the order of the seeds."""
        of_query = (self.networks[seed].details["of_query"] for seed in sorted(self.networks))
        return [found[attack] for found in of_query if attack in found]

    def less(self, other: "Trainings", attack: str) -> list[float]:
        """What an attack leaves of it, less what the same leaves of another, of each seed for which both were run.

        Raises:
            ResultError: Two networks of one seed do not compare, see `JudgedCodes.less_by_query`.
        """
        pairs = [(self.networks[seed], other.networks[seed]) for seed in sorted(self.networks.keys() & other.networks)]
        run = [(one, its) for one, its in pairs if attack in one.asked and attack in its.asked]
        return [fmean(one.less_by_query(its, attack)) for one, its in run]


def trainings(
    dataset: str, scale: str, bits: int, folder: Path | None = None, eps: float = PUBLISHED_EPS
) -> dict[str, Trainings]:
    """All recipes with codes of so many bits whose result files there are, by label, in the order of the labels.

    Args:
        dataset, scale, folder, eps: See `judged_codes`; errors as well.
        bits: Of a code.

    Raises:
        ResultError: Two networks of one label differ in more than their seeds.
    """
    records = results(JUDGE, folder, scale)
    seeds = {record["seed"] for record in records if record["parameters"]["dataset"] == dataset}
    found: dict[str, dict[int, JudgedCodes]] = defaultdict(dict)
    for seed in sorted(seeds):
        for network in of_bits(judged_in(records, dataset, eps, seed=seed), bits):
            _check_recipe(network, found[network.label])
            found[network.label][seed] = network
    return {label: Trainings(label, found[label]) for label in sorted(found)}


def _check_recipe(network: JudgedCodes, of_label: Mapping[int, JudgedCodes]) -> None:
    for seed, other in of_label.items():
        mine, its = (_seedless(each.details["recipe"]) for each in (network, other))
        if differing := sorted(name for name in mine | its if mine.get(name) != its.get(name)):
            words = f"the recipe of seed {seed} and another differ in {', '.join(differing)}"
            raise ResultError(f"{network.label!r} with {network.bits} bits: {words}")


def _seedless(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe, and its origin, without their seeds."""
    origin = recipe.get("origin")
    return dict(recipe) | {"seed": None, "origin": _seedless(origin) if origin else None}
