"""Which part of the kept neighborhood matters: `python -m tests.benchmarks.neighborhood [--write]`.

Each row is trained with three seeds, at equal cost; a day on one thread, half an hour on a GPU, which is used where
there is one. What is done is kept in the data folder, and goes on after a crash.
"""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from tqdm import tqdm

from robret_lib import data, models, recipes, training
from robret_lib.attacks import PGD, AutoPGD
from robret_lib.defenses import DrawnRadius, KeptNeighborhood
from robret_lib.files import written_whole
from robret_lib.recipes import kept as kept_code
from robret_lib.scores import robust_recall
from tests.benchmarks.measuring import machine, write_or_print

N, SEEDS, LEVELS = 400, (0, 1, 2), (4, 8, 16, 28, 40, 77)
RECIPE = recipes.fashion_mnist("quick", defense="neighborhood", steps=750)
SEARCH = PGD(RECIPE.eps, RECIPE.inner_step, RECIPE.inner_steps, random_start=True)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SoftMargin(KeptNeighborhood):
    """The soft margin of two distances in place of neighborhood components: nearest own less nearest other.

    Cut off where a triplet loss is, by a softplus, so that the attack has a slope where all is well.
    """

    MARGIN = 0.2

    def losses(self, queries: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        distances = torch.cdist(queries, references, compute_mode="donot_use_mm_for_euclid_dist")
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        same = (labels[:, None] == labels) & ~itself
        other = labels[:, None] != labels
        nearest_own, nearest_other = (
            -self.temperature * (-distances / self.temperature).masked_fill(~chosen, -torch.inf).logsumexp(1)
            for chosen in (same, other)
        )
        return softplus(nearest_own - nearest_other + self.MARGIN, beta=20)


class Row(NamedTuple):
    """What a row changes.

    Args:
        settings: Of the defense.
        search: Its inner attack.
        kind: Its class.
        steps: Of training, so many that the cost is that of the first row.
        decay: See `training.Schedule`.
    """

    settings: dict[str, float] = {}  # noqa: RUF012
    search: PGD | DrawnRadius = DrawnRadius(SEARCH)
    kind: type[KeptNeighborhood] = KeptNeighborhood
    steps: int = RECIPE.steps
    decay: float = RECIPE.decay

    def objective(self) -> nn.Module:
        given = {"temperature": RECIPE.temperature, "clean_weight": RECIPE.clean_weight, "ramp": RECIPE.ramp}
        return self.kind(self.search, self.steps, **given | self.settings)


def drawn(share: float, inner_steps: int) -> DrawnRadius:
    """So many steps of a share of the radius."""
    return DrawnRadius(replace(SEARCH, step=share * RECIPE.eps, steps=inner_steps))


ROWS = {
    "kept neighborhood": Row(),
    "no ramp": Row({"ramp": 0.0}),
    "whole radius": Row(search=SEARCH),
    "no ramp, whole radius": Row({"ramp": 0.0}, SEARCH),
    "no clean term": Row({"clean_weight": 0.0}),
    "twice the clean term": Row({"clean_weight": 2 * RECIPE.clean_weight}),
    "neither ramp nor drawn radius nor clean term": Row({"ramp": 0.0, "clean_weight": 0.0}, SEARCH),
    "no random start": Row(search=DrawnRadius(replace(SEARCH, random_start=False))),
    "one inner step": Row(search=drawn(1.0, 1), steps=1170),
    "seven inner steps of a quarter of the radius": Row(search=drawn(0.25, 7), steps=430),
    "temperature 0.05": Row({"temperature": 0.05}),
    "temperature 0.2": Row({"temperature": 0.2}),
    "AutoPGD inside": Row(  # it makes a forward pass more in each search
        search=DrawnRadius(AutoPGD(RECIPE.eps, RECIPE.inner_steps, random_start=True)), steps=705
    ),
    "soft margin for NCA": Row({"temperature": 0.02}, kind=SoftMargin),
    "falling learning rate": Row(decay=0.5),
}


def table() -> str:
    lines = [
        "# What the kept neighborhood is made of",
        "",
        f"Fashion-MNIST at quick scale, {RECIPE.steps} steps of {RECIPE.pairs} pairs, or as many as cost the same",
        "where the inner attack has another number of them; gallery 2,000. R@1 of all, and",
        f"robust recall (%) of the first {N} images at effort *standard*, by radius times 255; means over",
        f"{len(SEEDS)} seeds and their standard errors. A row changes what its name says; that of the",
        "soft margin has a temperature of its own, 0.02, and a margin of 0.2.",
        "",
        f"{machine()}, on {DEVICE}. Made by `python -m tests.benchmarks.neighborhood --write`.",
        "",
        f"| row | R@1 | {' | '.join(map(str, LEVELS))} |",
        "| :--- |" + " ---: |" * (1 + len(LEVELS)),
    ]
    with tqdm(total=len(ROWS) * len(SEEDS)) as bar:
        found = {(name, seed): _judged(name, seed, bar) for seed in SEEDS for name in ROWS}
    for name in ROWS:
        cells = [_told([found[name, seed][column] for seed in SEEDS]) for column in range(1 + len(LEVELS))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _judged(name: str, seed: int, bar: tqdm) -> list[float]:
    """R@1 and robust recall at each level; from the data folder where it is there."""
    folder = data.data_root() / "checkpoints" / "neighborhood"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name.replace(' ', '-')}-{seed}-{_digest()}.json"
    bar.set_description(f"{name}, seed {seed}")
    if not file.exists():
        with written_whole(file) as stream:
            stream.write(json.dumps(_measured(name, seed, file.with_suffix(".checkpoint"))).encode())
    bar.update()
    return json.loads(file.read_text())


def _measured(name: str, seed: int, checkpoint: Path) -> list[float]:
    dataset = data.load("fashion-mnist", "quick")
    torch.manual_seed(seed)
    model = models.on_device(models.build(RECIPE.backbone, RECIPE.embedding_dim), DEVICE)
    row = ROWS[name]
    schedule = replace(RECIPE, steps=row.steps, seed=seed, decay=row.decay).schedule
    training.train(model, dataset.train, row.objective(), schedule, checkpoint)
    model.eval()
    results = [robust_recall(model, dataset, level / 255, queries=N) for level in LEVELS]
    checkpoint.unlink()
    return [_recall_at_1(model, dataset), *(result.recall_at_1 for result in results)]


@cache
def _digest() -> str:
    """Of all that decides a row, besides its name."""
    code = Path(__file__).read_text() + kept_code.CODE + kept_code.DEFENSE_CODE["neighborhood"]
    return hashlib.sha256(f"{torch.__version__} {RECIPE} {code}".encode()).hexdigest()[:12]


def _recall_at_1(model: nn.Module, dataset: data.RetrievalData) -> float:
    return robust_recall(model, dataset, 0.0, effort="quick").benign


def _told(values: list[float]) -> str:
    return f"{fmean(values):.1f} ± {stdev(values) / len(values) ** 0.5:.1f}"


if __name__ == "__main__":
    write_or_print(table, __file__, "which part of the kept neighborhood matters")
