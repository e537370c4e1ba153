"""The order attack with answers only, by five searches: `python -m tests.benchmarks.order_table FOLDER [--scale full]`.

Every block of queries of every cell is a file in FOLDER, written when it is done, so that a second call goes on where
the first was stopped. Blocks come before cells: all cells grow together. With `--print`, only prints what is there.

The settings of Zhou et al. (ICCV 2021), tables 3 and 5 of their slides: k = 5, 1,000 queries for each image, early stop
above 0.99. An hour of one thread makes about 600 queries of one cell at quick scale, and 100 at full scale.
"""

import argparse
import functools
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from robret_lib import attacks, data, models, recipes
from robret_lib.attacks import NES, PGD, PSO, SPSA, Beta, Gallery, OnlyAnswers, OrderAttack, RandomSearch
from robret_lib.files import written_whole

K = 5
SEARCHES = {
    "Rand": RandomSearch,
    "Beta": Beta,
    "Beta, published": functools.partial(Beta, standardized=False),
    "PSO": PSO,
    "NES": NES,
    "SPSA": SPSA,
}
LEVELS = (4, 16)
VISIBLE = {"inf": None, "k": K}
WHITE_BOX_LEVELS = (2, 4, 8, 16)
BLOCK = 50


class Cell(NamedTuple):
    """One number of the table; ``level`` is eps x 255."""

    search: str
    level: int
    visible: str


CELLS = [Cell(*cell) for cell in product(SEARCHES, LEVELS, VISIBLE)]
CELLS += [Cell("PGD", level, "white box") for level in WHITE_BOX_LEVELS]


def search_of(cell: Cell) -> attacks.Search:
    eps = cell.level / 255
    if cell.search == "PGD":
        return PGD(eps, 1 / 255, 24)
    return OnlyAnswers(SEARCHES[cell.search](eps, stop_below=-0.99), VISIBLE[cell.visible])


def attacked(model: models.EmbeddingModel, gallery: Gallery, cell: Cell, own: torch.Tensor) -> attacks.Result:
    """The items ``own`` as queries; the same permutations in every cell."""
    generator = torch.Generator().manual_seed(int(own[0]))
    wanted = OrderAttack(K, mode="reference")
    return attacks.run(wanted, model, gallery.images[own], gallery, search_of(cell), own, generator=generator)


def file_of(folder: Path, cell: Cell, start: int) -> Path:
    return folder / f"{cell.search} {cell.level} {cell.visible} {start}.json".replace(",", "").replace(" ", "_")


def measure(folder: Path, scale: str, searched: str, distance: str, visible: list[str], n: int) -> None:
    dataset, items = (data.load("fashion-mnist", each) for each in (scale, searched))
    model = recipes.trained(recipes.fashion_mnist(scale, distance=distance), dataset, torch.device("cpu")).model
    gallery = Gallery.of(model, items.gallery.images, items.gallery.labels)
    for start, cell in product(range(0, n, BLOCK), [cell for cell in CELLS if cell.visible in visible]):
        file = file_of(folder, cell, start)
        if not file.exists():
            result = attacked(model, gallery, cell, torch.arange(start, min(n, start + BLOCK)))
            found = {name: values.tolist() for name, values in result.measured.items()} | {"queries": result.passes}
            with written_whole(file) as stream:
                stream.write(json.dumps(found).encode())


def found_in(folder: Path, cell: Cell, name: str) -> torch.Tensor:
    """What was measured so far, for the first queries."""
    blocks: list[float] = []
    while (file := file_of(folder, cell, len(blocks))).exists():
        blocks += json.loads(file.read_text())[name]
    return torch.tensor(blocks, dtype=torch.float64)


def lines(folder: Path) -> Iterator[str]:
    """Mean tau of every cell, and the paired differences between neighbors in the order of the means."""
    for level, visible in dict.fromkeys(cell[1:] for cell in CELLS):
        taus = {cell.search: found_in(folder, cell, "tau") for cell in CELLS if cell[1:] == (level, visible)}
        count = min(map(len, taus.values()))
        if count < 2:
            continue
        ordered = sorted(taus, key=lambda name: -taus[name][:count].mean())
        yield f"eps {level}/255, {visible}, n = {count}"
        for name, after in zip(ordered, [*ordered[1:], None], strict=True):
            tau = taus[name][:count]
            text = f"  {name:15} {tau.mean():.3f} +- {tau.std() / count**0.5:.3f}"
            if after is not None:
                ahead = tau - taus[after][:count]
                text += f"   ahead of {after} by {ahead.mean():.3f} +- {ahead.std() / count**0.5:.3f}"
            ranks = found_in(folder, Cell(name, level, visible), "mean_rank")[:count]
            yield f"{text}   mean rank {ranks.mean():.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", default="quick", choices=("quick", "full"), help="of the model")
    parser.add_argument("--searched", default="quick", choices=("quick", "full"), help="2,000 items or 10,000")
    parser.add_argument("--distance", default="N")
    parser.add_argument("--visible", nargs="+", default=[*VISIBLE, "white box"])
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--print", action="store_true")
    given = parser.parse_args()
    if not given.print:
        measure(given.folder, given.scale, given.searched, given.distance, given.visible, given.n)
    print("\n".join(lines(given.folder)))
