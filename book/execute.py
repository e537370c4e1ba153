"""Run chapters at quick scale: `python book/execute.py [--store] [chapter ...]`.

Only stale chapters run (see fingerprints.py); their executed copies are kept in book/_build/executed. With
--store every chapter asked for runs, and its outputs go back into chapters/, written so that a second run on
the same machine gives the same bytes. A chapter that fails does not stop the others. Two of these at once take
turns at each chapter; one that is told to stop (SIGINT, SIGTERM) leaves nothing running.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat

from checkout import refuse_other_library, settle
from fingerprints import fingerprint
from leash import Leash, end_on_signals
from outputs import failure, objections, with_outputs
from robret_lib.files import one_at_a_time, written_whole

PATIENCE = 30.0  # seconds without news until a line says that work goes on


@dataclass(frozen=True)
class Chapter:
    """One notebook of a checkout."""

    path: Path
    root: Path

    @property
    def name(self) -> str:
        return self.path.stem

    def built(self, kind: str, suffix: str = "") -> Path:
        """Where a copy, a log or a folder of this chapter is built."""
        return self.root / "book" / "_build" / kind / f"{self.name}{suffix}"

    def last_run(self) -> dict:
        """Fingerprint and seconds of the last run that succeeded; empty where none is known of."""
        try:
            return dict(json.loads(self.built("executed", ".json").read_bytes()))
        except (OSError, TypeError, ValueError):
            return {}

    def fresh(self) -> bool:
        kept = self.built("executed", ".ipynb").exists()
        return kept and self.last_run().get("fingerprint") == fingerprint(self.path, self.root)

    def expected_seconds(self) -> float:
        return self.last_run().get("seconds") or stated_seconds(self.path) or 120.0


def stated_seconds(path: Path) -> float | None:
    """Quick-scale runtime that the promise box states, such as "60 s at quick scale" or "quick: 2 min"."""
    cells = nbformat.read(path, as_version=4).cells
    sentences = re.split(r"[.;]\s|\n-", cells[0].source if cells else "")
    found = [re.search(r"(\d+)\s*(s|min)", sentence) for sentence in sentences if "quick" in sentence]
    return next((float(f[1]) * (60 if f[2] == "min" else 1) for f in found if f), None)


def write(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text.encode())


def papermill(chapter: Chapter, output: Path, log: Path, leash: Leash) -> int:
    """Run the notebook in an empty folder beside `output`; returns papermill's exit status."""
    scratch = output.with_name("scratch")
    scratch.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "papermill", chapter.path, output, "--cwd", scratch]
    options = ["--kernel", "python3", "--no-progress-bar", "--log-output", "--start-timeout", "3600"]
    with log.open("w") as stream:
        return leash.run([*command, *options], stdout=stream, stderr=stream, env=environment)


def run(chapter: Chapter, store: bool, leash: Leash) -> str:
    """Run one chapter and keep its executed copy; returns what went wrong, "" where nothing did.

    Everything happens in a folder of its own, so that no other run is disturbed, even where locks do not work.
    """
    folder = chapter.built("runs")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        output, log = Path(temporary, "notebook.ipynb"), Path(temporary, "log")
        trouble = attempt(chapter, store, leash, output, log)
        for path, suffix in ((output, ".ipynb"), (log, ".log")):
            kept = chapter.built("failed", suffix)
            kept.parent.mkdir(exist_ok=True)
            kept.unlink(missing_ok=True)
            if trouble and path.exists():
                path.replace(kept)
    return trouble


def attempt(chapter: Chapter, store: bool, leash: Leash, output: Path, log: Path) -> str:
    """The run itself, see `run`."""
    before, mark, begin = chapter.path.read_bytes(), fingerprint(chapter.path, chapter.root), time.monotonic()
    status = papermill(chapter, output, log, leash)
    executed = nbformat.read(output, as_version=4) if output.exists() else nbformat.v4.new_notebook()
    if status:
        return failure(executed, log.read_text())
    if chapter.path.read_bytes() != before:
        return "the chapter was edited while it ran: run it again"
    notebook = with_outputs(nbformat.read(chapter.path, as_version=4), executed)
    if store and (found := objections(notebook, chapter.root)):
        return "its outputs cannot be stored:\n  " + "\n  ".join(found)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    write(chapter.built("executed", ".ipynb"), text)
    record = {"fingerprint": mark, "seconds": round(time.monotonic() - begin, 1)}
    write(chapter.built("executed", ".json"), json.dumps(record))
    if store:
        write(chapter.path, text)
    return ""


def words(seconds: float) -> str:
    """A duration for people: "48 s", "2 min 3 s", "3 min"."""
    minutes, rest = divmod(round(seconds), 60)
    parts = [f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * bool(rest or not minutes)
    return " ".join(parts)


class Progress:
    """The lines that tell a person what runs and how long it still takes."""

    def __init__(self, chapters: list[Chapter], workers: int) -> None:
        self.places = {chapter: f"[{i}/{len(chapters)}]" for i, chapter in enumerate(chapters, 1)}
        self.unfinished = {chapter: chapter.expected_seconds() for chapter in chapters}
        self.begun: dict[Chapter, float] = {}
        self.width = max(len(chapter.name) for chapter in chapters)
        self.workers = workers

    def say(self, chapter: Chapter, text: str) -> None:
        print(f"{self.places[chapter]} {chapter.name:{self.width}}  {text}", flush=True)

    def started(self, chapter: Chapter) -> None:
        self.begun[chapter] = time.monotonic()
        self.say(chapter, f"running, about {words(self.unfinished[chapter])}")

    def ended(self, chapter: Chapter, trouble: str) -> None:
        del self.unfinished[chapter]
        if trouble or chapter in self.begun:
            now = time.monotonic()
            seconds = now - self.begun.get(chapter, now)
            self.say(chapter, f"{'FAILED' if trouble else 'done'} in {words(seconds)}{self.left()}")
        else:
            self.say(chapter, f"up to date by now{self.left()}")

    def going_on(self) -> None:
        print(f"      still running{self.left()}", flush=True)

    def left(self) -> str:
        now = time.monotonic()
        spent = {chapter: now - self.begun.get(chapter, now) for chapter in self.unfinished}
        # A chapter that takes longer than expected is taken to need a quarter of its time so far.
        rest = [max(seconds - spent[c], spent[c] / 4) for c, seconds in self.unfinished.items()]
        return f", about {words(max(max(rest), sum(rest) / self.workers))} left" if rest else ""


def run_all(chapters: list[Chapter], workers: int, store: bool) -> dict[Chapter, str]:
    """Run chapters side by side; returns what went wrong with those that failed."""
    progress, failures, leash = Progress(chapters, workers), {}, Leash()

    def job(chapter: Chapter) -> tuple[Chapter, str]:
        say_once = cache(progress.say)

        def busy() -> None:
            if leash.loose:
                raise InterruptedError
            say_once(chapter, "waiting: another run in this checkout has it")

        try:
            with one_at_a_time(chapter.built("runs", ".lock"), busy):
                if not store and chapter.fresh():  # since another run has been waited for
                    return chapter, ""
                progress.started(chapter)
                return chapter, run(chapter, store, leash)
        except Exception as error:  # a notebook that cannot be read, say: the others still run
            return chapter, f"{type(error).__name__}: {error}"

    pool = ThreadPoolExecutor(workers)
    try:
        open_jobs = {pool.submit(job, chapter) for chapter in chapters}
        while open_jobs:
            done, open_jobs = wait(open_jobs, timeout=PATIENCE, return_when=FIRST_COMPLETED)
            for chapter, trouble in (finished.result() for finished in done):
                progress.ended(chapter, trouble)
                failures |= {chapter: trouble} if trouble else {}
            if not done:
                progress.going_on()
    finally:
        leash.let_go()
        pool.shutdown(cancel_futures=True)  # after a signal no other chapter begins
    return failures


def chosen(root: Path, names: list[str]) -> list[Chapter]:
    """The chapters whose file names begin with one of `names`; all of them where no name is given."""
    paths = sorted((root / "chapters").glob("*.ipynb"))
    known = ", ".join(path.stem for path in paths) or "none"
    for name in names:
        if not any(path.stem.startswith(name) for path in paths):
            sys.exit(f"no chapter begins with {name!r}; the chapters are: {known}")
    return [Chapter(path, root) for path in paths if not names or path.stem.startswith(tuple(names))]


def report(failures: dict[Chapter, str]) -> None:
    for chapter, trouble in failures.items():
        print(f"\n{'=' * 20} {chapter.name}\n{trouble}\n")
        print(f"notebook kept: {chapter.built('failed', '.ipynb')}\nlog: {chapter.built('failed', '.log')}")
    names = ", ".join(chapter.name for chapter in failures)
    print(f"\nFailed: {names}. `make html` still renders the outputs that are stored in chapters/.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run chapters at quick scale.")
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 02; without any, all")
    parser.add_argument("--store", action="store_true", help="run even if fresh; put outputs into chapters/")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="chapters at once")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help="the checkout")
    options = parser.parse_args()
    root = options.root.resolve()
    end_on_signals()
    chapters = chosen(root, options.names)
    stale = [chapter for chapter in chapters if options.store or not chapter.fresh()]
    if len(stale) < len(chapters):
        print(f"{len(chapters) - len(stale)} of {len(chapters)} chapters are up to date", flush=True)
    failures = {}
    if stale:
        settle(root)
        refuse_other_library(root)
        try:
            failures = run_all(stale, options.workers, options.store)
        except SystemExit:
            print("\nstopped; the chapters that finished need not run again")
            raise
    if failures:
        report(failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
