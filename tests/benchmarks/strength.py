"""What robust recall leaves to an attacker with more patience: `python -m tests.benchmarks.strength [--write]`.

Takes hours on one thread and minutes on a GPU, which is used where there is one.
"""

import torch
from tqdm import tqdm

from robret_lib import data
from robret_lib.attacks import AutoPGD
from robret_lib.models import embed
from robret_lib.scores import robust_recall
from robret_lib.scores.queries import Queries
from robret_lib.scores.suite import LOSSES
from tests.benchmarks.measuring import machine, write_or_print
from tests.benchmarks.networks import network

N = 400
NETWORKS = ("none N", "ACT N")
LEVELS = (8, 77)  # eps x 255
STEPS, RESTARTS = 300, 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def table() -> str:
    lines = [
        "# The strength of robust recall",
        "",
        f"Fashion-MNIST at quick scale, gallery 2,000, the first {N} images as queries. R@1 before any attack, and",
        "what `scores.robust_recall` leaves of it at two efforts, with the passes that it takes for a query, in the",
        f"mean. Of the queries that stand after *high*: how many fall to {STEPS} steps of `AutoPGD` from {RESTARTS}",
        "starts, by each of the losses alone and by any, and what R@1 that would leave. In percent of all queries.",
        "",
        f"{machine()}, on {DEVICE}. Made by `python -m tests.benchmarks.strength --write`.",
        "",
        f"| network | eps | before | standard | passes | high | passes | fall to any | left | {' | '.join(LOSSES)} |",
        "| :--- | ---: |" + " ---: |" * (7 + len(LOSSES)),
    ]
    with tqdm(total=len(NETWORKS) * len(LEVELS) * len(LOSSES)) as bar:
        lines += [_row(name, level, bar) for name in NETWORKS for level in LEVELS]
    return "\n".join(lines) + "\n"


def _row(name: str, level: int, bar: tqdm) -> str:
    dataset, model = data.load("fashion-mnist", "quick"), network(name)[0].to(DEVICE)
    standard, high = (robust_recall(model, dataset, level / 255, queries=N, effort=e) for e in ("standard", "high"))
    asked, rows = Queries(model, dataset, N), high.standing.nonzero()[:, 0]
    search, fallen = AutoPGD(level / 255, STEPS, restarts=RESTARTS), {}
    for loss, attack in LOSSES.items():
        fallen[loss] = torch.zeros(len(rows), dtype=torch.bool)
        if len(rows):
            generator = torch.Generator().manual_seed(1)
            found = asked.attacked(attack, search, generator, rows).images
            fallen[loss] = ~asked.right(embed(model, found), rows)
        bar.update()
    together = torch.stack(list(fallen.values())).any(0)
    left = high.recall_at_1 - _percent(together)
    cells = [f"{level}/255", f"{high.benign:.2f}"]
    for result in (standard, high):
        cells += [f"{result.recall_at_1:.2f}", f"{result.passes:.1f}"]
    cells += [f"{_percent(together):.2f}", f"{left:.2f}", *(f"{_percent(hits):.2f}" for hits in fallen.values())]
    return f"| {name} | {' | '.join(cells)} |"


def _percent(hits: torch.Tensor) -> float:
    return 100 * hits.sum().item() / N


if __name__ == "__main__":
    write_or_print(table, __file__, "what robust recall leaves to an attacker with more patience")
