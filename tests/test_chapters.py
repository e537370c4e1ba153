"""The lint of chapters: each rule is one small test, run on every chapter; messages name the cell."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from execute import stated_seconds
from outputs import objections

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
KILOBYTE = 1024
PAGE_WIDTH = 88  # columns of code; the page shows no more


@pytest.fixture(scope="module", params=CHAPTERS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def chapter(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def outside_solutions(chapter: NotebookNode) -> Iterator[NotebookNode]:
    """Cells in order, without those between a solution's start and its end."""
    inside = False
    for cell in chapter.cells:
        inside = inside or "{solution-start}" in cell.source
        if not inside:
            yield cell
        inside = inside and "{solution-end}" not in cell.source


def code_cells(chapter: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in chapter.cells if cell.cell_type == "code"]


def argument(chapter: NotebookNode) -> list[NotebookNode]:
    """Code cells that a reader reads: neither folded input nor the solution of an exercise."""
    return [c for c in outside_solutions(chapter) if c.cell_type == "code" and "hide-input" not in tags(c)]


def lines(cell: NotebookNode) -> list[str]:
    """Lines of code: neither blank nor only a comment."""
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


def assigned(cell: NotebookNode) -> set[str]:
    """Names that the cell leaves behind in the notebook, imports aside."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(cell.source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += ast.iter_child_nodes(node)
    return names - {"_"}


def figure(cell: NotebookNode) -> dict[str, str]:
    """What the metadata of a cell with a picture says of it."""
    said = cell.metadata.get("mystnb", {})
    return {"alt": said.get("image", {}).get("alt", ""), "caption": "", "name": ""} | said.get("figure", {})


def words(markdown: str) -> int:
    """Words of prose: tables, displayed formulas and the lines of directives do not count."""
    prose = re.sub(r"\$\$.*?\$\$", "", markdown, flags=re.DOTALL)
    prose = re.sub(r"^\s*(\||:::|```|:[a-z-]+:|---).*$", "", prose, flags=re.MULTILINE)
    return len([word for word in prose.split() if re.search(r"\w", word)])


def images(chapter: NotebookNode) -> list[tuple[NotebookNode, bytes]]:
    found = []
    for cell in code_cells(chapter):
        for output in cell.outputs:
            shown = output.get("data", {})
            found += [(cell, base64.b64decode(shown[kind])) for kind in ("image/png", "image/jpeg") if kind in shown]
    return found


# The anatomy: each part is found by what marks it, and the parts stand in this order.
ANATOMY = {
    "title": lambda cell: cell.source.startswith("# "),
    "parameters": lambda cell: "parameters" in tags(cell),
    "setup, with runs.start": lambda cell: cell.cell_type == "code" and "runs.start(" in cell.source,
    "definition or theorem": lambda cell: bool(re.search(r"\{prf:(definition|theorem|proposition|lemma)", cell.source)),
    "checks": lambda cell: cell.cell_type == "code" and cell.id == "checks",
    "results, with run.finish": lambda cell: cell.cell_type == "code" and "run.finish(" in cell.source,
    "pitfalls": lambda cell: bool(re.search(r"^## Pitfalls", cell.source, re.MULTILINE)),
    "full-scale table": lambda cell: bool(re.search(r"^## Full[- ]scale", cell.source, re.MULTILINE)),
    "exercises": lambda cell: bool(re.search(r"^## Exercises", cell.source, re.MULTILINE)),
    "summary": lambda cell: bool(re.search(r"^## Summary", cell.source, re.MULTILINE)),
    "further reading": lambda cell: bool(re.search(r"^##+ Further reading", cell.source, re.MULTILINE)),
}


def test_anatomy(chapter):
    places = {part: [i for i, c in enumerate(chapter.cells) if mark(c)] for part, mark in ANATOMY.items()}
    assert not [part for part, found in places.items() if not found], "parts that are missing"
    first = [found[0] for found in places.values()]
    assert first == sorted(first), f"parts out of order: {dict(zip(places, first, strict=True))}"


def test_title_begins_with_the_number(chapter, path):
    assert re.match(rf"# {int(path.stem[:2])}\. [A-Z]", chapter.cells[0].source)


def test_promise_box(chapter):
    box = chapter.cells[0].source
    assert "{admonition}" in box
    assert "{cite" in box, "names no paper"
    missing = [word for word in ("You learn", "You need", "Runtime", "quick", "full") if word not in box]
    assert not missing, f"the promise box does not say: {missing}"


def test_promise_box_states_the_runtime(path):
    assert stated_seconds(path), 'say it with numerals, such as "Runtime 60 s at quick scale"'


def test_parameters(chapter):
    cells = [cell for cell in chapter.cells if "parameters" in tags(cell)]
    assert len(cells) == 1
    tree = ast.parse(cells[0].source)
    bare = [line for line in lines(cells[0]) if not re.match(r"\w+: [^=]+ = .+  # .+", line)]
    assert not bare, "without annotation or without comment"
    for node in tree.body:
        assert isinstance(node, ast.AnnAssign), ast.unparse(node)
        ast.literal_eval(node.value)


def test_checks_assert_properties(chapter):
    (cell,) = (cell for cell in chapter.cells if cell.id == "checks")
    asserts = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
    assert len(asserts) >= 3


def test_exercises_have_folded_solutions(chapter):
    text = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "markdown")
    exercises = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", text)
    solutions = dict(re.findall(r"\{solution(?:-start)?\} (\S+)\n((?::[^\n]*\n)*)", text))
    assert len(exercises) >= 3
    assert set(exercises) == set(solutions)
    assert not [label for label, options in solutions.items() if ":class: dropdown" not in options]


def test_summary_has_five_lines(chapter):
    text = "\n".join(cell.source for cell in chapter.cells)
    summary = re.split(r"^##+ Summary$", text, flags=re.MULTILINE)[-1].split("\n## ")[0].split("\n### ")[0]
    assert len(re.findall(r"^[-*] |^\d\. ", summary, re.MULTILINE)) == 5


def test_length_of_the_prose(chapter):
    cells = list(outside_solutions(chapter))
    written = sum(words(cell.source) for cell in cells if cell.cell_type == "markdown")
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = sum(words("".join(output.get("data", {}).get("text/markdown", ""))) for output in outputs)
    assert 1800 <= written + printed <= 2800


def test_length_of_the_code(chapter):
    long = sum(len(lines(cell)) for cell in argument(chapter))
    assert long <= 150
    assert len(argument(chapter)) <= 25


def test_functions_are_short(chapter):
    for cell in code_cells(chapter):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, f"{node.name} in {cell.id}"


def test_code_fits_the_page(chapter):
    wide = {cell.id: max(map(len, cell.source.splitlines())) for cell in code_cells(chapter)}
    assert not {name: columns for name, columns in wide.items() if columns > PAGE_WIDTH}


def test_nothing_is_looked_up_by_its_name(chapter):
    found = [cell.id for cell in code_cells(chapter) if re.search(r"\bgetattr\(", cell.source)]
    assert not found, "name the functions in a dictionary"


def test_no_arguments_are_unpacked_where_one_reads(chapter):
    for cell in argument(chapter):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call):
                packed = [part for part in node.args if isinstance(part, ast.Starred)]
                packed += [keyword for keyword in node.keywords if keyword.arg is None]
                assert not packed, f"{cell.id}: {ast.unparse(node)}"


def test_making_of_text_is_hidden(chapter):
    found = [c.id for c in code_cells(chapter) if "Markdown(" in c.source and "hide-input" not in tags(c)]
    assert not found


def test_solutions_leave_the_names_of_the_chapter_alone(chapter):
    told = [cell for cell in outside_solutions(chapter) if cell.cell_type == "code"]
    kept = set().union(*map(assigned, told))
    solutions = [cell for cell in code_cells(chapter) if cell not in told]
    assert not {cell.id: sorted(taken) for cell in solutions if (taken := assigned(cell) & kept)}


def test_no_line_ends_in_a_semicolon(chapter):
    found = [cell.id for cell in code_cells(chapter) for line in lines(cell) if line.rstrip().endswith(";")]
    assert not found, "nbval prints the value all the same; write _ = ..."


def test_no_shell_and_no_magic(chapter):
    found = [cell.id for cell in code_cells(chapter) for line in lines(cell) if line.lstrip()[0] in "%!"]
    assert not found, "a chapter installs nothing and calls no shell"


def test_no_absolute_path(chapter):
    for cell in code_cells(chapter):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.match(r"~/|/\w+/|[A-Za-z]:[\\/]", node.value), f"{node.value!r} in {cell.id}"


def test_no_device_by_name(chapter):
    allowed = {"parameters", "setup"}
    assert not [cell.id for cell in code_cells(chapter) if "cuda" in cell.source and cell.id not in allowed]


def test_figures_are_few_and_small(chapter, path):
    found = images(chapter)
    assert len(found) <= 8
    limits = {cell.id: 90 if "plotting.photograph(" in cell.source else 60 for cell, _ in found}
    large = {cell.id: len(data) for cell, data in found if len(data) > limits[cell.id] * KILOBYTE}
    assert not large, "bytes of figures; plotting.photograph stores photographs smaller"
    assert path.stat().st_size <= 500 * KILOBYTE


def test_figures_are_described(chapter):
    for cell, _ in images(chapter):
        said = figure(cell)
        assert len(said["alt"]) >= 20, f"{cell.id} needs metadata mystnb: image: alt, in words"
        assert len(said["caption"]) >= 20, f"{cell.id} needs metadata mystnb: figure: caption"


def test_figures_are_cited(chapter):
    sources = "".join(cell.source for cell in chapter.cells)
    text = sources.replace("{{", "{").replace("}}", "}")  # as f-strings write it
    names = [figure(cell)["name"] for cell, _ in images(chapter)]
    assert not [name for name in names if not name or f"{{numref}}`{name}`" not in text]


def test_names_of_figures_differ():
    chapters = [nbformat.read(path, as_version=4) for path in CHAPTERS]
    names = [figure(cell)["name"] for chapter in chapters for cell, _ in images(chapter)]
    assert sorted(names) == sorted(set(names))


def test_a_cell_with_a_figure_shows_nothing_else(chapter):
    """Its caption and its name would be given to each of them."""
    drawn = {cell.id: len(cell.outputs) for cell in code_cells(chapter) if figure(cell)["name"]}
    assert not {name: outputs for name, outputs in drawn.items() if outputs != 1}


def test_pictures_in_the_text_are_described(chapter):
    for cell in chapter.cells:
        assert "![](" not in cell.source, cell.id
        for directive in re.findall(r"\{(?:figure|image)\}[^\n]*\n((?::[^\n]*\n)*)", cell.source):
            assert ":alt:" in directive, cell.id


def test_cell_ids_are_given_by_hand(chapter):
    assert (chapter.nbformat, chapter.nbformat_minor) == (4, 5)
    random = [cell.id for cell in chapter.cells if not re.fullmatch(r"[a-z][a-z0-9-]{2,}", cell.id)]
    random += [cell.id for cell in chapter.cells if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]*)?", cell.id)]
    assert not random, "give them names such as fig-margin"


def test_nothing_of_a_run_but_its_outputs(chapter):
    assert "papermill" not in json.dumps(chapter.metadata)
    assert not [cell.id for cell in chapter.cells if {"execution", "papermill"} & set(cell.metadata)]
    assert not [cell.id for cell in chapter.cells if "injected-parameters" in tags(cell)]


def test_every_cell_was_run_in_order(chapter):
    counts = [cell.execution_count for cell in code_cells(chapter)]
    assert counts == list(range(1, len(counts) + 1)), "make chapters runs the chapters and stores their outputs"


def test_outputs_can_be_stored(chapter):
    assert not objections(chapter, ROOT)


def test_outputs_repeat(chapter):
    """No addresses of objects: they differ from run to run."""
    for cell in code_cells(chapter):
        assert not re.search(r"\bat 0x[0-9a-f]{6,}", json.dumps(cell.outputs)), cell.id


def test_no_errors_are_stored(chapter):
    assert not [c.id for c in code_cells(chapter) for output in c.outputs if output.output_type == "error"]


def test_front_page_says_how_often_its_attack_works():
    """The same numbers as the output of the cell that the figure belongs to."""
    chapter = nbformat.read(CHAPTERS[0], as_version=4)
    (cell,) = (cell for cell in chapter.cells if cell.id == "opening-text")
    told = cell.outputs[0].data["text/markdown"]
    attacked = re.search(r"We attack (\d+) photographs", told)[1]
    (chosen, error), (wrong, _) = re.findall(r"\*\*(\d+) % \(± (\d+)\)\*\*", told)
    front, readme = (" ".join((ROOT / page).read_text().split()) for page in ("book/intro.md", "README.md"))
    assert f"Of {attacked} photographs" in front
    assert f"{chosen} % find the attacker's choice first (standard error {error})" in front
    assert f"all wrong for {wrong} %" in front
    assert f"for {chosen} % of {attacked} photographs" in readme
