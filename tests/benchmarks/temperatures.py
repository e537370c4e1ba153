"""How much R@1 each temperature of the margin attack leaves: `python -m tests.benchmarks.temperatures [--write]`.

Takes some ten minutes on one thread.
"""

import torch
from tqdm import tqdm

from robret_lib.attacks import AutoPGD
from robret_lib.attacks.embedding import Margin
from tests.benchmarks.measuring import machine, write_or_print
from tests.benchmarks.networks import attacked, network

N = 200
NETWORKS = ("none N", "none E", "none C", "ACT N")
TEMPERATURES = (0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LEVELS = (4, 8, 16, 28, 40, 77)  # eps x 255
PASSES = (8, 32)


def table() -> str:
    lines = [
        "# The temperature of the margin attack",
        "",
        f"R@1 that is left (%), Fashion-MNIST at quick scale, gallery 2,000, the first {N} images attacked by",
        "`AutoPGD`, whose schedule is the default one. The temperature is in units of the standard deviation of the",
        "Euclidean distances between gallery items (`Gallery.spread`); 0 takes hard minima. *Worst of two* counts a",
        "query as right where neither the hard minima nor those at the temperature of the row make it wrong.",
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.temperatures --write`.",
    ]
    with tqdm(total=len(NETWORKS) * len(PASSES) * len(TEMPERATURES) * len(LEVELS)) as bar:
        for where in NETWORKS:
            for passes in PASSES:
                lines += ["", f"## {where}, {passes} passes", "", *_rows(where, passes, bar)]
    return "\n".join(lines) + "\n"


def _rows(where: str, passes: int, bar: tqdm) -> list[str]:
    model, gallery = network(where)
    levels = [f"{level}/255" for level in LEVELS]
    head = ["temperature", *levels, *(f"worst of two, {level}" for level in levels)]
    lines = [f"| {' | '.join(head)} |", "| ---: |" + " ---: |" * (2 * len(LEVELS))]
    hard = {}
    for temperature in TEMPERATURES:
        alone, both = [], []
        for level in LEVELS:
            result = attacked(Margin(temperature), model, gallery, AutoPGD(level / 255, passes), N)
            right = result.measured["recall_at_1"]
            hard.setdefault(level, right)
            alone.append(right.mean().item())
            both.append(torch.minimum(right, hard[level]).mean().item())
            bar.update()
        lines.append(f"| {temperature:g} | " + " | ".join(f"{value:.1f}" for value in alone + both) + " |")
    return lines


if __name__ == "__main__":
    write_or_print(table, __file__, "how much R@1 each temperature of the margin attack leaves")
