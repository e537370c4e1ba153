"""MAP by Hamming distance beside the way it is published: `python -m tests.benchmarks.hamming_cost [--write]`.

Same codes and labels, one thread, CPU seconds, interleaved repeats; memory in processes of its own.
"""

import multiprocessing
import resource
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from robret_lib import index
from robret_lib.hamming import average_precisions
from tests.benchmarks.measuring import cpu_seconds, machine, write_or_print

REPEATS = 7
QUERIES, CLASSES, SHARE = 50, 21, 0.14
DEPTH = 5000
"""Of the search by faiss, and of most published MAPs."""


class Size(NamedTuple):
    """How many codes there are, and how long they are."""

    items: int
    bits: int

    def __str__(self) -> str:
        return f"{self.items:,} of {self.bits} bits"


SIZES = Size(20_000, 32), Size(200_000, 64)


class World(NamedTuple):
    """Codes of queries and gallery in {-1, +1}, and their labels, multi-hot; all float32."""

    query_codes: Tensor
    gallery_codes: Tensor
    query_labels: Tensor
    gallery_labels: Tensor


def world_of(size: Size, queries: int = QUERIES) -> World:
    """Fair coins; labels about as many as NUS-WIDE's images have. Made in place, so that no memory is left over."""
    generator = torch.Generator().manual_seed(0)

    def coins(count: int, width: int, share: float) -> Tensor:
        return torch.empty(count, width).bernoulli_(share, generator=generator)

    codes = [coins(count, size.bits, 0.5).mul_(2).sub_(1) for count in (queries, size.items)]
    return World(*codes, *(coins(count, CLASSES, SHARE) for count in (queries, size.items)))


def published(world: World, kind: str | None = None) -> Tensor:
    """As DeepHash-pytorch's `CalcTopMap` goes about it: for each query all distances, a sort, and what is found."""
    codes, labels = world.gallery_codes.numpy(), world.gallery_labels.numpy()
    found = []
    for code, label in zip(world.query_codes.numpy(), world.query_labels.numpy(), strict=True):
        relevant = (label @ labels.T > 0).astype(np.float32)
        order = np.argsort((len(code) - code @ codes.T) / 2, kind=kind)
        places = np.flatnonzero(relevant[order]) + 1.0
        found.append(np.mean(np.arange(1, len(places) + 1) / places) if len(places) else 0.0)
    return torch.tensor(np.array(found))


WAYS: dict[str, Callable[[World], Tensor]] = {
    "published": published,
    "published, stable sort": lambda world: published(world, "stable"),
    'ours, ties="expected"': lambda world: average_precisions(*world),
    'ours, ties="stable"': lambda world: average_precisions(*world, ties="stable"),
    f'ours, ties="expected", MAP@{DEPTH}': lambda world: average_precisions(*world, DEPTH),
}
FAISS = f"faiss, the first {DEPTH:,}"
NAMES = *WAYS, FAISS


def works(world: World) -> dict[str, Callable[[], object]]:
    """By name, what is timed; the index of faiss is built before."""
    made = index.build(world.gallery_codes, "binary")
    return {name: lambda way=way: way(world) for name, way in WAYS.items()} | {
        FAISS: lambda: made.search(world.query_codes, DEPTH)
    }


def milliseconds(size: Size) -> dict[str, float]:
    """By name, of a query: the median."""
    seconds, timed = defaultdict(list), works(world_of(size))
    for _ in trange(REPEATS, desc=str(size)):
        for name, work in timed.items():
            seconds[name].append(cpu_seconds(work))
    return {name: 1000 * statistics.median(taken) / QUERIES for name, taken in seconds.items()}


def mebibytes(name: str, size: Size) -> float:
    """By how much a process that has made the world grows at most; faiss keeps the codes once more."""
    torch.set_num_threads(1)
    world = world_of(size)
    for work in works(world_of(Size(DEPTH, size.bits))).values():  # what is loaded on the first call
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    WAYS[name](world) if name in WAYS else index.build(world.gallery_codes, "binary").search(world.query_codes, DEPTH)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def grown(size: Size) -> dict[str, float]:
    """`mebibytes` of each, in fresh processes, since the most that one has had is never taken back.

    To be called first of all: they inherit what this one has had.
    """
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        return {name: processes.apply(mebibytes, (name, size)) for name in NAMES}


def head() -> list[str]:
    floats = SIZES[-1].items * SIZES[-1].bits * 4 / 2**20
    return [
        "# The cost of MAP by Hamming distance",
        "",
        f"{QUERIES} queries in galleries of random codes, any of {CLASSES} labels, {SHARE * CLASSES:.1f} each.",
        f"CPU milliseconds of a query on one thread, medians of {REPEATS} interleaved repeats, and their ratio to the",
        "published way: DeepHash-pytorch's, a product of floats and an argsort for each query. Memory is by how much a",
        f"process grows at most, at the larger size, where codes are {floats:.0f} MiB of floats; ours checks and packs",
        "them. faiss answers a query and judges no ranking; its index is built before.",
    ]


def rows(taken: dict[Size, dict[str, float]], memory: dict[str, float]) -> Iterator[str]:
    for name in NAMES:
        times = [f"{taken[size][name]:.2f} | {taken[size][name] / taken[size]['published']:.2f}" for size in SIZES]
        yield f"| {name} | {' | '.join(times)} | {memory[name]:.0f} |"


def apart(size: Size) -> float:
    """The largest difference between the published average precision, stably sorted, and ours."""
    world = world_of(size)
    return (published(world, "stable") - average_precisions(*world, ties="stable")).abs().max().item()


def table() -> str:
    faiss.omp_set_num_threads(1)
    memory = grown(SIZES[-1])
    taken = {size: milliseconds(size) for size in SIZES}
    lines = [
        *head(),
        "",
        f'Published, with a stable sort, and ours, with ties="stable": at most {max(map(apart, SIZES)):.0e} apart.',
        "",
        f"{machine()}. Made by `python -m tests.benchmarks.hamming_cost --write`.",
        "",
        f"| | {' | '.join(f'{size} (ms) | ratio' for size in SIZES)} | memory (MiB) |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
        *rows(taken, memory),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_or_print(table, __file__, "what MAP by Hamming distance costs")
