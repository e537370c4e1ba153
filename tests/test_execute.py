"""The executor on small chapters of a small checkout: what is stale, what is kept, what is said."""

from __future__ import annotations

import html
import json
import re
import sys
import unicodedata
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from execute import stated_seconds, words
from fingerprints import fingerprint, library_files
from outputs import merged_streams, objections, with_outputs
from tests.toy_checkout import execute, write_chapter


def test_library_files_are_followed_through_imports(checkout: Path):
    files = library_files("import numpy\nfrom robret_lib.part.top import something", checkout)
    names = {path.relative_to(checkout / "robret_lib").as_posix() for path in files}
    assert names == {"__init__.py", "part/__init__.py", "part/top.py", "middle.py", "part/bottom.py"}


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("robret_lib/part/top.py", True),
        ("robret_lib/part/bottom.py", True),
        ("robret_lib/part/__init__.py", True),
        ("robret_lib/robret.mplstyle", True),
        ("workflow/expected/table.json", True),
        ("robret_lib/other.py", False),
        ("robret_lib/new.py", False),
    ],
)
def test_change_of_a_file_makes_its_chapters_stale(checkout: Path, file: str, stale: bool):
    chapter = write_chapter(checkout, "01_one", "from robret_lib.part import top")
    before = fingerprint(chapter, checkout)
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    with (checkout / file).open("a") as stream:
        stream.write("# more\n")
    assert (fingerprint(chapter, checkout) != before) == stale


def test_sources_count_and_outputs_do_not(checkout: Path):
    chapter = write_chapter(checkout, "01_one", "1 + 1")
    before = fingerprint(chapter, checkout)
    notebook = nbformat.read(chapter, as_version=4)
    notebook.cells[1].outputs = [new_output("stream", text="2")]
    nbformat.write(notebook, chapter)
    assert fingerprint(chapter, checkout) == before
    notebook.cells[0].source += " More prose."
    nbformat.write(notebook, chapter)
    assert fingerprint(chapter, checkout) != before


def test_code_that_does_not_parse_has_a_fingerprint(checkout: Path):
    assert fingerprint(write_chapter(checkout, "01_one", "this is not python"), checkout)


@pytest.mark.parametrize(
    ("box", "seconds"),
    [
        ("**Runtime** 90 s at quick scale; 3 h at full scale.", 90),
        ("**Runtime** quick scale 2 min on two cores", 120),
        ("- **You need** 30 min.\n- **Runtime** full 9 min. Quick and quick scale: 7 s", 7),
        ("no word of it", None),
    ],
)
def test_stated_runtime(checkout: Path, box: str, seconds: float | None):
    assert stated_seconds(write_chapter(checkout, "01_one", box=box)) == seconds


def test_durations_in_words():
    assert [words(seconds) for seconds in (0.4, 59.6, 123)] == ["0 s", "1 min", "2 min 3 s"]


def test_pieces_of_a_stream_are_joined():
    outputs = [("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")]
    merged = merged_streams([new_output("stream", name=name, text=text) for name, text in outputs])
    assert [(output.name, output.text) for output in merged] == [
        ("stdout", "ab"),
        ("stderr", "c"),
        ("stdout", "d"),
    ]


def test_only_outputs_are_taken_from_a_run():
    source = new_notebook(cells=[new_code_cell("1", id="one", metadata={"tags": ["hide-input"]})])
    source.cells[0].metadata["execution"] = {"iopub.execute_input": "12:00"}
    ran = new_notebook(cells=[new_code_cell("1", id="one", execution_count=1)])
    ran.metadata["papermill"] = ran.cells[0].metadata["papermill"] = {"duration": 3}
    ran.cells[0].outputs = [new_output("stream", text="1")]
    kept = with_outputs(source, ran)
    assert "papermill" not in kept.metadata
    assert kept.cells[0].metadata == {"tags": ["hide-input"]}
    assert kept.cells[0].outputs[0].text == "1"


def objections_to(root: Path, **data: object) -> list[str]:
    cells = [new_code_cell(id="one", outputs=[new_output("execute_result", data)])]
    return objections(new_notebook(cells=cells), root)


def test_warnings_are_not_stored(tmp_path: Path):
    cells = [new_code_cell(id=name) for name in ("fine", "warns")]
    cells[0].outputs = [new_output("stream", text="fine")]
    cells[1].outputs = [new_output("stream", name="stderr", text="10%")]
    assert [text.split()[1] for text in objections(new_notebook(cells=cells), tmp_path)] == ["warns"]


@pytest.mark.parametrize("root", ["/srv/robret", "/home/René Müller/robret", "/srv/\U0001f986 & 'quoted' \"twice\"/x"])
@pytest.mark.parametrize(
    "shown",
    [
        str,
        repr,
        ascii,
        json.dumps,
        lambda path: re.sub(r"\\u[0-9a-f]+", lambda escape: "\\u" + escape[0][2:].upper(), json.dumps(path)),
        lambda path: unicodedata.normalize("NFD", path),
        lambda path: f"<a href='{html.escape(Path(path).as_uri())}'>",
        lambda path: f"in {path}.",
        lambda path: f"<a href='{Path(path).as_uri()}/page.html'>",
        lambda path: f"<td>{html.escape(path)}</td>",
        lambda path: f"\x1b[35m{Path(path).parent}/\x1b[95m{Path(path).name}\x1b[0m",
    ],
)
def test_paths_of_this_machine_are_not_stored(root: str, shown):
    assert objections_to(Path(root), **{"text/html": f"a table\n{shown(root)}\n"})
    assert objections_to(Path(root), **{"application/json": {"files": [{shown(root): 1}]}})
    assert objections_to(Path(root), **{"image/svg+xml": f"<svg>{shown(root)}</svg>"})


def test_what_is_no_path_of_this_machine_is_stored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("ROBRET_DATA", "/root")
    text = "1/2, and/or, /rooted, /root-2, /Root., tree/root, https://example.org/root/page"
    assert not objections_to(Path("/srv/robret"), **{"text/plain": text, "image/png": "iVBORw0/root/w=="})
    assert objections_to(Path("/srv/robret"), **{"text/plain": "/root"})


def test_every_folder_of_this_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ROBRET_DATA", str(tmp_path / "data"))
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    for place in (tmp_path / "home", tmp_path / "data", Path(sys.prefix), tmp_path / "link", tmp_path / "linked"):
        assert objections_to(tmp_path / "link", **{"text/plain": f"{place}/file"}), place
    assert not objections_to(tmp_path / "link", **{"text/plain": f"{tmp_path}/file"})


@pytest.mark.slow
def test_failure_is_shown_and_the_others_finish(checkout: Path):
    scratch = "import os\nprint(os.listdir())\nopen('made', 'w').close()"
    write_chapter(checkout, "01_good", "from robret_lib import middle", scratch)
    bad = write_chapter(
        checkout, "02_bad", "print('before')", "wanted = 1\nraise ValueError('no such eps')", "print(3)"
    )
    first = execute(checkout)
    built = checkout / "book" / "_build"
    assert first.returncode == 1
    assert "cell cell-1:\n\nwanted = 1" in first.stdout
    assert "ValueError: no such eps" in first.stdout
    assert str(built / "failed" / "02_bad.ipynb") in first.stdout
    partly = nbformat.read(built / "failed" / "02_bad.ipynb", as_version=4)
    assert "before" in json.dumps(partly.cells)

    good = nbformat.read(built / "executed" / "01_good.ipynb", as_version=4)
    assert good.cells[2].outputs[0].text == "[]\n", "it runs in an empty folder"
    assert [cell.id for cell in good.cells] == ["title", "cell-0", "cell-1"], "no injected cell"
    assert not list(checkout.rglob("made")), "of which nothing is kept"

    write_chapter(checkout, "02_bad", "print('mended')")
    second = execute(checkout)
    assert second.returncode == 0
    assert "1 of 2 chapters are up to date" in second.stdout
    assert "01_good" not in second.stdout
    assert not list((built / "failed").iterdir())
    assert "running" not in execute(checkout).stdout
    assert bad.exists()


@pytest.mark.slow
def test_stored_outputs_repeat_to_the_byte(checkout: Path):
    chapter = write_chapter(
        checkout, "01_one", "import sys, time\nfor i in range(3):\n    print(i); time.sleep(0.1)", "{1}"
    )
    assert execute(checkout, "--store", "01").returncode == 0
    once = chapter.read_bytes()
    assert b"{1}" in once
    assert execute(checkout, "--store").returncode == 0
    assert chapter.read_bytes() == once
    assert "up to date" in execute(checkout).stdout, "a stored chapter has been run"


@pytest.mark.slow
def test_warnings_are_refused_and_nothing_is_stored(checkout: Path):
    chapter = write_chapter(checkout, "01_one", "import warnings\nwarnings.warn('careful')")
    before = chapter.read_bytes()
    done = execute(checkout, "--store")
    assert done.returncode == 1
    assert "cell cell-0 writes to stderr" in done.stdout
    assert chapter.read_bytes() == before


@pytest.mark.slow
def test_dead_kernel_is_reported(checkout: Path):
    write_chapter(checkout, "01_one", "import os\nos._exit(7)")
    done = execute(checkout)
    assert done.returncode == 1
    assert "no cell is to blame" in done.stdout
    assert "DeadKernelError" in done.stdout


@pytest.mark.slow
def test_unknown_chapter_is_named(checkout: Path):
    write_chapter(checkout, "01_one")
    done = execute(checkout, "07")
    assert done.returncode == 1
    assert "no chapter begins with '07'; the chapters are: 01_one" in done.stderr
