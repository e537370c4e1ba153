"""A small checkout with small chapters, and the executor and the renderer at work in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

BOOK = Path(__file__).resolve().parent.parent / "book"


RUNNING: list[subprocess.Popen[str]] = []


def make_checkout(root: Path) -> Path:
    """A library of five modules: top imports middle, middle imports bottom relatively; other stands alone."""
    library = root / "robret_lib"
    (library / "part").mkdir(parents=True)
    (library / "__init__.py").write_text("")
    (library / "part" / "__init__.py").write_text("")
    (library / "part" / "top.py").write_text("from robret_lib import middle\n")
    (library / "middle.py").write_text("from .part import bottom\n")
    (library / "part" / "bottom.py").write_text("value = 1\n")
    (library / "other.py").write_text("value = 2\n")
    (library / "robret.mplstyle").write_text("font.size: 9\n")
    return root


def write_chapter(root: Path, name: str, *sources: str, box: str = "Runtime 5 s at quick scale.") -> Path:
    cells = [new_markdown_cell(f"# {name}\n\n{box}", id="title")]
    cells += [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    path = root / "chapters" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


def executor(root: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The executor, see `begun`."""
    return begun("execute.py", root, *arguments, **variables)


def renderer(root: Path, **variables: str) -> subprocess.Popen[str]:
    """The renderer, see `begun`."""
    return begun("render.py", root, **variables)


def begun(script: str, root: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A script of the book, begun in a session of its own, with changes of the environment."""
    command = [sys.executable, str(BOOK / script), "--root", str(root), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=os.environ | variables, start_new_session=True, **pipes)
    RUNNING.append(process)
    return process


def end_all() -> None:
    """End scripts that a failed or interrupted test has left, with what they started."""
    while RUNNING:
        process = RUNNING.pop()
        if process.poll() is None:
            process.terminate()
            process.wait()


def execute(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The executor from beginning to end."""
    process = executor(root, *arguments, **variables)
    output, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
