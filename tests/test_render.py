"""The renderer in a small checkout: which library it documents, and what it does beside another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robret_lib.files import one_at_a_time
from tests.toy_checkout import make_checkout, renderer

pytestmark = pytest.mark.slow  # starts the renderer

PAGE = "# The library\n\n```{eval-rst}\n.. automodule:: robret_lib.other\n```\n"
CONFIG = """
title: small
execute: {execute_notebooks: "off"}
sphinx:
  config:
    extensions:
      [myst_nb, jupyter_book, sphinx_external_toc, sphinx_book_theme, sphinx_comments, sphinx.ext.autodoc]
"""


@pytest.fixture
def book(checkout: Path) -> Path:
    """A book of one page, in a checkout."""
    (checkout / "book").mkdir()
    (checkout / "book" / "_config.yml").write_text(CONFIG)
    (checkout / "book" / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (checkout / "book" / "intro.md").write_text(PAGE)
    (checkout / "robret_lib" / "other.py").write_text('"""From this checkout."""\n')
    return checkout


def test_the_library_of_the_checkout_is_documented_once_by_two_renderers(book: Path, tmp_path: Path):
    other = make_checkout(tmp_path / "other")
    with one_at_a_time(book / "book" / "_build" / "rendering.lock"):
        both = [renderer(book, PYTHONPATH=str(other)) for _ in range(2)]
        for process in both:
            assert "waiting: another run in this checkout renders the book" in process.stdout.readline()
    said = []
    for process in both:
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors
        assert "Open file://" in output
        said.append(output)
    assert sum("rendering the book" in output for output in said) == 1
    assert "From this checkout." in (book / "book" / "_build" / "html" / "book" / "intro.html").read_text()


@pytest.mark.parametrize(("number", "status"), [(15, 143), (2, 130)])
def test_a_signal_ends_the_renderer_and_sphinx(book: Path, tmp_path: Path, number: int, status: int):
    os.mkfifo(tmp_path / "fifo")
    endless = f"held = open({str(tmp_path / 'fifo')!r}, 'w')\nwhile True:\n    pass\n"
    (book / "robret_lib" / "other.py").write_text(endless)
    process = renderer(book)
    with (tmp_path / "fifo").open() as sphinx:  # opens once sphinx has come that far, and ends with it
        process.send_signal(number)
        assert process.wait() == status, process.communicate()
        sphinx.read()
