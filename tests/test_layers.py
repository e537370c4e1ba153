"""Imports inside the library point downwards only, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "robret_lib"
LAYERS = (
    {"data", "models", "metrics", "index"},
    {"mining", "attacks"},
    {"checks", "objectives"},
    {"training"},
    {"recipes"},
)
BESIDE = {"runs", "plotting"}
PARTS = sorted(path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())


def imported(part: str) -> set[str]:
    """The other parts of the library that a part imports anywhere."""
    stem = LIBRARY / part
    files = stem.rglob("*.py") if stem.is_dir() else [stem.with_suffix(".py")]
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("robret_lib.")}
    return parts - {part}


def layer(part: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "__init__"])
def test_imports_point_downwards(part: str):
    allowed: set[str] = set() if part in BESIDE else set().union(*LAYERS[: layer(part) + 1])
    assert imported(part) <= allowed


def test_no_circles():
    graph = {part: imported(part) for part in PARTS if part != "__init__"}
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)
