"""Imports point downwards only, and never in a circle; the three parts of an attack do not know each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "robret_lib"
LAYERS = (  # from the ground up; a part that does not exist yet has its place already
    {
        "files",
        "folders",
        "fields",
        "source",
        "data",
        "models",
        "distances",
        "metrics",
        "hamming",
        "index",
        "whitening",
        "augmentation",
    },
    {"mining", "hashing", "attacks", "hubness"},
    {"checks", "scores", "certify", "objectives"},
    {"training"},
    {"defenses", "cross_modal"},
    {"recipes"},
)
BESIDE = {"runs", "plotting"}
PARTS = sorted(path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
PARTS.remove("__init__")
SEARCHES = sorted(path.stem for path in (LIBRARY / "attacks" / "search").glob("*.py"))
BESIDE_THEM = {"__init__", "run", "gallery", "answers", "ranking_losses", "oracle", "only_answers", "relaxed"}
WANTED = sorted({path.stem for path in (LIBRARY / "attacks").glob("*.py")} - BESIDE_THEM)


def imports(file: Path) -> set[str]:
    """Everything a file imports anywhere, as dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def imported(part: str) -> set[str]:
    """The other parts of the library that a part imports anywhere."""
    stem = LIBRARY / part
    files = stem.rglob("*.py") if stem.is_dir() else [stem.with_suffix(".py")]
    names = set().union(*map(imports, files))
    parts = {name.split(".")[1] for name in names if name.startswith("robret_lib.")}
    return parts - {part}


def layer(part: str) -> int:
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_downwards(part: str):
    assert part in BESIDE.union(*LAYERS), "give it a place in LAYERS"
    allowed = {"files", "folders"} if part in BESIDE else set().union(*LAYERS[: layer(part) + 1])
    assert imported(part) <= allowed


def test_no_circles():
    graph = {part: imported(part) for part in PARTS}
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


def of_attacks(file: Path) -> set[str]:
    """The modules of `attacks` that a file imports, below `attacks`."""
    return {name.removeprefix("robret_lib.attacks.") for name in imports(file) if name.startswith("robret_lib.attacks")}


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_knows_no_attack(search: str):
    known = of_attacks(LIBRARY / "attacks" / "search" / f"{search}.py")
    assert {name.partition(".")[0] for name in known} <= {"search", "fields", "gallery"}


@pytest.mark.parametrize("wanted", WANTED)
def test_an_attack_knows_neither_search_nor_run(wanted: str):
    """It may be made of another one."""
    known = {name.partition(".")[0] for name in of_attacks(LIBRARY / "attacks" / f"{wanted}.py")}
    assert known <= {"attack", "gallery", "answers", "ranking_losses", "relaxed", *WANTED}


def test_the_run_knows_neither():
    known = of_attacks(LIBRARY / "attacks" / "run.py")
    assert {name.rpartition(".")[0] for name in known} == {"attack", "gallery", "search.ball", "search.passes"}
