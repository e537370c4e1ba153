"""Render the book: `python book/render.py [--executed]`.

Pages and chapters are first copied into one folder that mirrors the checkout, so links to the repository stay
right whichever chapters are taken: the stored ones, or with --executed those that execute.py has just run.
A change anywhere means a build from scratch: an incremental one keeps old sidebars and forgets its warnings.
Two of these at once in one checkout take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from checkout import refuse_other_library, settle
from leash import Leash, end_on_signals
from robret_lib.files import one_at_a_time

PAGES = ("*.md", "*.bib", "*.yml", "api/*.md", "_static/**/*", "chapter_numbers.py")


def stage(root: Path, chapters: Path, target: Path) -> None:
    """Copy everything that is rendered into `target`, chapters from the folder `chapters`."""
    shutil.rmtree(target, ignore_errors=True)
    files = {path: path.relative_to(root) for pattern in PAGES for path in (root / "book").glob(pattern)}
    for folder in (root / "chapters", chapters):  # a chapter that was not run is shown as stored
        files |= {path: Path("chapters", path.name) for path in folder.glob("*.ipynb")}
    for path, place in files.items():
        if path.is_file():
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / place)


def digest(*folders: Path) -> str:
    """Digest of every page, chapter and library file that the rendered book shows, and of the renderer."""
    state = hashlib.sha256(f"{sys.version} {importlib.metadata.version('sphinx')}".encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
            state.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return state.hexdigest()


def render(source: Path, build: Path) -> bool:
    """Build `build`/html from the staged `source`; False where there was a warning or an error."""
    shutil.rmtree(build / "html", ignore_errors=True)
    shutil.rmtree(build / ".doctrees", ignore_errors=True)
    config, contents = source / "book" / "_config.yml", source / "book" / "_toc.yml"
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        source,
        "--config",
        config,
        "--toc",
        contents,
    ]
    options = ["--path-output", build.parent, "-W", "--keep-going", "--quiet"]
    # Warnings go to stderr; what it says to stdout would name the page a second time.
    return Leash().run([*command, *options], stdout=subprocess.DEVNULL) == 0


def build_book(root: Path, executed: bool) -> bool:
    """Render what has changed, and say where the book is; False where there was a warning or an error."""
    build = root / "book" / "_build"
    chapters = build / "executed" if executed else root / "chapters"
    stage(root, chapters, build / "source")
    state, stamp = digest(build / "source", root / "robret_lib"), build / "rendered"
    page = build / "html" / "index.html"
    if not (page.exists() and stamp.exists() and stamp.read_bytes() == state.encode()):
        stamp.unlink(missing_ok=True)
        print("rendering the book ...", flush=True)
        settle(root)
        refuse_other_library(root)
        if not render(build / "source", build):
            print("The book has warnings or errors (above); they count as failures.")
            return False
        stamp.write_text(state)
    print(f"Open {page.as_uri()}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Render the book.")
    parser.add_argument("--executed", action="store_true", help="take the chapters that execute.py ran last")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the checkout")
    options = parser.parse_args()
    root = options.root.resolve()
    end_on_signals()
    tell_once = cache(lambda: print("waiting: another run in this checkout renders the book", flush=True))
    with one_at_a_time(root / "book" / "_build" / "rendering.lock", tell_once):
        return 0 if build_book(root, options.executed) else 1


if __name__ == "__main__":
    sys.exit(main())
