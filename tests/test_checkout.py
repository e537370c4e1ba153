"""Chapters run with the library and the folders of their checkout, whatever environment and home are like."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest

from tests.toy_checkout import execute, executor, make_checkout, write_chapter

pytestmark = pytest.mark.slow  # starts the executor

WHICH = "import robret_lib\nprint(robret_lib.__file__)"
NOWHERE = "/proc/robret"  # nobody can make this folder, not even root


def shown(root: Path, name: str, cell: int = 1) -> str:
    """What a cell of an executed chapter has printed."""
    notebook = nbformat.read(root / "book" / "_build" / "executed" / f"{name}.ipynb", as_version=4)
    return notebook.cells[cell].outputs[0].text.rstrip("\n")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "other")


def test_chapters_import_the_library_of_their_checkout(checkout: Path, other: Path):
    write_chapter(checkout, "01_one", WHICH)
    done = execute(checkout, PYTHONPATH=str(other))
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(checkout, "01_one") == str(checkout / "robret_lib" / "__init__.py")


def test_another_library_stops_the_run_before_anything_is_recorded(checkout: Path, other: Path, tmp_path: Path):
    write_chapter(checkout, "01_one", WHICH)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(other)!r})")
    done = execute(checkout, PYTHONPATH=str(hooks))
    assert done.returncode == 1
    assert f"the checkout {checkout}" in done.stderr
    assert f"imports robret_lib from {other / 'robret_lib'}" in done.stderr
    assert not (checkout / "book" / "_build" / "executed").exists()


def test_a_library_that_cannot_be_imported_is_shown(checkout: Path):
    write_chapter(checkout, "01_one", WHICH)
    (checkout / "robret_lib" / "__init__.py").write_text("import nothing_of_this_name")
    done = execute(checkout)
    assert done.returncode == 1
    assert "No module named 'nothing_of_this_name'" in done.stderr


def test_relative_paths_in_the_environment_count_from_where_they_were_given(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_chapter(checkout, "01_one", "import os, helper\nprint(os.environ['ROBRET_DATA'])")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "helper.py").write_text("")
    monkeypatch.chdir(tmp_path)
    done = execute(Path("checkout"), PYTHONPATH="more", ROBRET_DATA="my data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(checkout, "01_one") == str(tmp_path / "my data")


@pytest.mark.parametrize("home", [NOWHERE, "/"])
def test_a_home_that_cannot_be_used_changes_nothing(checkout: Path, home: str):
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('1/2')"
    chapter = write_chapter(checkout, "01_one", draw)
    cleared = {"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""}
    done = execute(checkout, "--store", HOME=home, **cleared)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = nbformat.read(chapter, as_version=4).cells[1].outputs
    assert [output.output_type for output in outputs] == ["display_data", "stream"]


def test_personal_start_up_files_change_nothing(checkout: Path, tmp_path: Path):
    startup = tmp_path / "home" / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("print('from IPython')")
    (tmp_path / "mine.py").write_text("print('from Python')")
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 77")
    kernel = tmp_path / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "mine", "language": "python"}))
    write_chapter(checkout, "01_one", "import matplotlib\nprint(matplotlib.rcParams['lines.linewidth'])")
    mine = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONSTARTUP": str(tmp_path / "mine.py")}
    done = execute(checkout, HOME=str(tmp_path / "home"), **mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(checkout, "01_one") == "1.5"


@pytest.mark.parametrize("text", ["", '{"fingerprint": "ab', "[1]", "null", "\udcff"])
def test_a_damaged_note_counts_as_no_last_run(checkout: Path, text: str):
    write_chapter(checkout, "01_one", "print(1)")
    note = checkout / "book" / "_build" / "executed" / "01_one.json"
    note.parent.mkdir(parents=True)
    note.write_text(text, errors="surrogateescape")
    done = execute(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done in" in done.stdout
    assert json.loads(note.read_text())["fingerprint"]
    assert "up to date" in execute(checkout).stdout
    note.with_suffix(".ipynb").unlink()
    assert "done in" in execute(checkout).stdout, "without a copy it counts as never run"


def test_two_runs_take_turns_and_the_second_finds_the_work_done(checkout: Path, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    write_chapter(
        checkout, "01_one", f"print(open({str(fifo)!r}).read())\nopen({str(tmp_path / 'runs')!r}, 'a').write('run ')"
    )
    first = executor(checkout)
    assert "running" in first.stdout.readline()
    second = executor(checkout)
    assert "waiting: another run in this checkout has it" in second.stdout.readline()
    fifo.write_text("go on")
    for process, said in ((first, "done in"), (second, "up to date by now")):
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors
        assert said in output
    assert (tmp_path / "runs").read_text() == "run "


def test_stored_outputs_are_made_anew_by_each_of_two_runs(checkout: Path, tmp_path: Path):
    chapter = write_chapter(checkout, "01_one", f"open({str(tmp_path / 'runs')!r}, 'a').write('run ')")
    both = [executor(checkout, "--store") for _ in range(2)]
    for process in both:
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors
    assert (tmp_path / "runs").read_text() == "run run "
    assert nbformat.read(chapter, as_version=4).cells[1].outputs[0].data["text/plain"] == "4"
