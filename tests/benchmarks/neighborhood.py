"""Which part of the kept neighborhood matters: `python -m tests.benchmarks.neighborhood [--write]`.

Each row is trained with three seeds, at equal cost; a day on one thread, half an hour on a GPU, which is used where
there is one. What is done is kept in the data folder, and goes on after a crash.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

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
RECIPE = recipes.fashion_mnist("quick", defense="neighborhood")
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


def kept(search: object = None, kind: type[KeptNeighborhood] = KeptNeighborhood, **settings: float) -> nn.Module:
    settings = {"temperature": RECIPE.temperature, "clean_weight": RECIPE.clean_weight, "ramp": RECIPE.ramp} | settings
    return kind(DrawnRadius(SEARCH) if search is None else search, RECIPE.steps, **settings)


ROWS: dict[str, Callable[[], nn.Module]] = {
    "kept neighborhood": kept,
    "no ramp": lambda: kept(ramp=0.0),
    "whole radius": lambda: kept(SEARCH),
    "no ramp, whole radius": lambda: kept(SEARCH, ramp=0.0),
    "no clean term": lambda: kept(clean_weight=0.0),
    "half the clean term": lambda: kept(clean_weight=0.5),
    "twice the clean term": lambda: kept(clean_weight=2.0),
    "neither ramp nor drawn radius nor clean term": lambda: kept(SEARCH, ramp=0.0, clean_weight=0.0),
    "no random start": lambda: kept(DrawnRadius(replace(SEARCH, random_start=False))),
    "temperature 0.05": lambda: kept(temperature=0.05),
    "temperature 0.2": lambda: kept(temperature=0.2),
    "AutoPGD inside": lambda: kept(DrawnRadius(AutoPGD(RECIPE.eps, RECIPE.inner_steps, random_start=True))),
    "soft margin for NCA": lambda: kept(kind=SoftMargin, temperature=0.02),
}
CONSTANT_RATE = "constant learning rate"


def table() -> str:
    lines = [
        "# What the kept neighborhood is made of",
        "",
        f"Fashion-MNIST at quick scale, {RECIPE.steps} steps of {RECIPE.pairs} pairs, gallery 2,000. R@1 of all, and",
        f"robust recall (%) of the first {N} images at effort *standard*, by radius times 255; means over",
        f"{len(SEEDS)} seeds and their standard errors. A row changes what its name says; that of the",
        "soft margin has a temperature of its own, 0.02, and a margin of 0.2.",
        "",
        f"{machine()}, on {DEVICE}. Made by `python -m tests.benchmarks.neighborhood --write`.",
        "",
        f"| row | R@1 | {' | '.join(map(str, LEVELS))} |",
        "| :--- |" + " ---: |" * (1 + len(LEVELS)),
    ]
    names = [*ROWS, CONSTANT_RATE]
    with tqdm(total=len(names) * len(SEEDS)) as bar:
        found = {(name, seed): _judged(name, seed, bar) for seed in SEEDS for name in names}
    for name in names:
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
    model = models.build(RECIPE.backbone, RECIPE.embedding_dim).to(DEVICE)
    decay = 0.0 if name == CONSTANT_RATE else RECIPE.decay
    schedule = training.Schedule(RECIPE.steps, RECIPE.pairs, RECIPE.lr, RECIPE.weight_decay, seed, decay)
    training.train(model, dataset.train, ROWS.get(name, kept)(), schedule, checkpoint)
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
