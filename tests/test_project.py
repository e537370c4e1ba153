"""The project's files agree with each other: one list of dependencies, one version, commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import robret_lib
from robret_lib import runs

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
CONFIG = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())
CONTENTS = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
EXTRAS = PROJECT["optional-dependencies"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def files_in(contents: object) -> list[str]:
    """Every file named anywhere in the table of contents."""
    if isinstance(contents, list):
        return [file for entry in contents for file in files_in(entry)]
    if isinstance(contents, dict):
        own = [contents[key] for key in ("root", "file") if key in contents]
        return own + [file for value in contents.values() for file in files_in(value)]
    return []


def test_conda_users_get_the_same_list():
    python, pip, node, rest = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert Requirement(python).name == "python"
    assert str(Requirement(python).specifier) == PROJECT["requires-python"]
    assert (pip, node) == ("pip", "nodejs")
    assert rest == {"pip": [f"-e .[{','.join(EXTRAS)}]"]}


@pytest.mark.parametrize("line", PROJECT["dependencies"] + sum(EXTRAS.values(), []))
def test_constraints_cover_every_dependency(line: str):
    requirement = Requirement(line)
    assert requirement.specifier.contains(constraints()[canonicalize_name(requirement.name)])


def test_constraints_are_exact_and_sorted():
    names = list(constraints())
    assert names == sorted(set(names))
    assert all(name == canonicalize_name(name) for name in names)


def test_dependencies_are_ranges():
    lines = PROJECT["dependencies"] + sum(EXTRAS.values(), [])
    assert not [line for line in lines if "==" in line], "exact versions stand in constraints.txt"


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


def targets() -> set[str]:
    return set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())


def test_help_lists_every_target():
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\w+)", shown, re.MULTILINE)) == targets()


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_commands_in_the_text_exist(page: str):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z]+)", text, re.MULTILINE))
    assert named
    assert named <= targets()


def test_readme_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert 0 < text.index("make book") < text.index("make test")


def test_the_library_is_that_of_this_checkout():
    command = [sys.executable, "-c", "import robret_lib; print(robret_lib.__file__)"]
    asked = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.rstrip("\n")
    assert Path(asked) == Path(robret_lib.__file__) == ROOT / "robret_lib" / "__init__.py"


def test_readme_names_the_quick_check_and_the_whole_one():
    text = (ROOT / "README.md").read_text()
    assert "`make check`" in text and "`make test`" in text


def test_one_version():
    assert PROJECT["version"] == CITATION["version"] == robret_lib.__version__


def test_one_address():
    addresses = {PROJECT["urls"]["Repository"], CITATION["repository-code"], CONFIG["repository"]["url"]}
    assert len(addresses) == 1


def test_one_license():
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_chapters_and_contents_agree():
    listed = {file for file in files_in(CONTENTS) if file.startswith("chapters/")}
    assert listed == {f"chapters/{path.stem}" for path in (ROOT / "chapters").glob("*.ipynb")}


def test_pages_and_contents_agree():
    listed = {file for file in files_in(CONTENTS) if file.startswith("book/")}
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "book" / "api").glob("*.md")]
    assert listed == {path.relative_to(ROOT).with_suffix("").as_posix() for path in pages}


def test_every_module_is_in_the_api_reference():
    text = "".join(path.read_text() for path in (ROOT / "book" / "api").glob("*.md"))
    documented = re.findall(r"automodule:: (\S+)", text)
    library = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "robret_lib").rglob("*.py")]
    modules = {".".join(path.parts) for path in library if path.name != "__init__"}
    packages = {".".join(path.parts[:-1]) for path in library if path.name == "__init__"}
    assert len(documented) == len(set(documented)), "a module documented twice"
    assert modules <= set(documented) <= modules | packages


@pytest.mark.parametrize("path", sorted((ROOT / "workflow" / "expected").glob("*.json")), ids=lambda path: path.stem)
def test_published_numbers_name_the_commit_or_the_table_or_the_abstract_they_stand_in(path: Path):
    published = runs.expected(path.stem)
    assert re.search(r"\bcommit [0-9a-f]{7}\b|\bTable \d|\babstract of arXiv \d{4}\.\d{5}\b", published["source"])
    assert not [row for row in published["rows"] if "source" in row], "one source for the whole file"


def test_types_are_shipped():
    assert (ROOT / "robret_lib" / "py.typed").exists()


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in code[1].splitlines() if line]
    assert len(lines) <= 10
    found = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    before, after = (float(number) for number in re.findall(r"([\d.]+) %", found.stdout))
    assert after < before - 15
