"""What ablations of a defense share: rows trained with three seeds, each kept as soon as it is there, and their table.

A row takes minutes on one thread, a GPU is used where there is one. What is done is kept in the data folder, and goes
on after a crash.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from robret_lib import data, models, recipes, source, training
from robret_lib.defenses.collapse import spread
from robret_lib.files import one_at_a_time, written_whole
from robret_lib.recipes import kept as kept_code
from robret_lib.runs import half_interval
from robret_lib.scores import robust_recall
from tests.benchmarks.measuring import machine

N, SEEDS, LEVELS = 400, (0, 1, 2), (4, 8, 16, 28, 40, 77)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Row(NamedTuple):
    """One way to train.

    Args:
        objective: Makes what is minimized in so many steps.
        steps: Of training; so many that all rows cost the same.
        decay: See `training.Schedule`.
    """

    objective: Callable[[int], nn.Module]
    steps: int
    decay: float = 0.0


class Ablations:
    """The rows of one defense, at quick scale of Fashion-MNIST.

    Args:
        script: The module that has them.
        recipe: Of the network and the schedule.
        rows: By name.
        title: Of the table; below it stands what the script's docstring says after its first line.
    """

    def __init__(self, script: ModuleType, recipe: recipes.Recipe, rows: dict[str, Row], title: str) -> None:
        self.script, self.recipe, self.rows, self.title = script, recipe, rows, title

    def head(self) -> list[str]:
        """The first lines, which no machine changes."""
        return [
            f"# {self.title}",
            "",
            f"Fashion-MNIST at quick scale, {self.recipe.steps} steps of {self.recipe.pairs} pairs, or as many as cost",
            "the same; gallery 2,000. Spread of the embeddings (0 for one point), R@1 of all, and robust recall (%)",
            f"of the first {N} images at effort *standard*, by radius times 255; means over {len(SEEDS)} seeds and",
            "their standard errors, in bold where the difference to the first row is larger than half of its 95 %",
            "interval, paired over seeds.",
            *inspect.getdoc(self.script).splitlines()[2:],
        ]

    def table(self) -> str:
        """The whole file."""
        with tqdm(total=len(self.rows) * len(SEEDS)) as bar:
            found = {(name, seed): self.judged(name, seed, bar) for seed in SEEDS for name in self.rows}
        columns = ("spread", "R@1", *LEVELS)
        lines = [f"| row | steps | {' | '.join(map(str, columns))} |", "| :--- |" + " ---: |" * (1 + len(columns))]
        values = {name: list(zip(*(found[name, seed] for seed in SEEDS), strict=True)) for name in self.rows}
        first, digits = next(iter(values.values())), (2, 1, *(1 for _ in LEVELS))
        for name, row in self.rows.items():
            cells = map(_told, values[name], first, digits)
            lines.append(f"| {name} | {row.steps} | {' | '.join(cells)} |")
        made = f"{machine()}, on {DEVICE}. Made by `python -m {self.script.__spec__.name} --write`."
        return "\n".join([*self.head(), "", *lines, "", made]) + "\n"

    def judged(self, name: str, seed: int, bar: tqdm) -> list[float]:
        """Spread, R@1 and robust recall at each level; from the data folder where they are there."""
        folder = data.data_root() / "checkpoints" / Path(self.script.__file__).stem
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name.replace(' ', '-')}-{seed}-{self._digest}.json"
        bar.set_description(f"{name}, seed {seed}")
        with one_at_a_time(file.with_suffix(".lock")):
            if not file.exists():
                found = json.dumps(self._measured(name, seed, file.with_suffix(".checkpoint")))
                with written_whole(file) as stream:
                    stream.write(found.encode())
        bar.update()
        return json.loads(file.read_text())

    def _measured(self, name: str, seed: int, checkpoint: Path) -> list[float]:
        dataset, row = data.load("fashion-mnist", "quick"), self.rows[name]
        torch.manual_seed(seed)
        model = models.on_device(models.build(self.recipe.backbone, self.recipe.embedding_dim), DEVICE)
        schedule = replace(self.recipe, steps=row.steps, seed=seed, decay=row.decay).schedule
        training.train(model, dataset.train, row.objective(row.steps), schedule, checkpoint)
        model.eval()
        without = robust_recall(model, dataset, 0.0, effort="quick").benign
        left = [robust_recall(model, dataset, level / 255, queries=N).recall_at_1 for level in LEVELS]
        checkpoint.unlink()
        return [spread(models.embed(model, dataset.gallery.images)), without, *left]

    @cached_property
    def _digest(self) -> str:
        """Of all that decides a row, besides its name."""
        scripts = source.digest(Path(file).read_text() for file in (self.script.__file__, __file__))
        code = kept_code.CODE, kept_code.DEFENSE_CODE[self.recipe.defense], source.of_evaluation(), scripts
        return hashlib.sha256(f"{torch.__version__} {DEVICE} {self.recipe} {code}".encode()).hexdigest()[:12]


def _told(values: Sequence[float], of_the_first: Sequence[float], digits: int) -> str:
    """Mean and standard error, in bold where the difference to the first row is decided."""
    told = f"{fmean(values):.{digits}f} ± {stdev(values) / len(values) ** 0.5:.{digits}f}"
    apart = [one - other for one, other in zip(values, of_the_first, strict=True)]
    return f"**{told}**" if abs(fmean(apart)) > half_interval(apart) else told
