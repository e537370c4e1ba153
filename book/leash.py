"""Commands that end with the process that started them, however it ends, and with all that they started themselves.

A command hangs on a pipe that only its owner holds open: `python leash.py COMMAND ...` runs it in a session of its
own and ends it once the pipe closes. Signals alone do not do: one that reaches only the owner leaves the others
running, one that kills papermill leaves its kernel, and a kernel busy in C hears of nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_CHILD_SUBREAPER = 36


class Leash:
    """Holds commands that run."""

    def __init__(self) -> None:
        watched, held = os.pipe()
        self.watched, self.held = os.fdopen(watched, "rb"), os.fdopen(held, "wb")

    def run(self, command: list[str | Path], **options) -> int:
        """Run a command, with options of `subprocess.Popen`; returns its exit status."""
        leashed = [sys.executable, __file__, *command]
        process = subprocess.Popen(leashed, stdin=self.watched, start_new_session=True, **options)
        try:
            return process.wait()
        finally:
            if process.returncode is None:  # this process is ending
                self.let_go()
                process.wait()

    def let_go(self) -> None:
        """End what runs, and at once what is run later."""
        self.held.close()

    @property
    def loose(self) -> bool:
        return self.held.closed


def end_on_signals() -> None:
    """SIGINT and SIGTERM end this process by way of its `finally` clauses, with the exit status that shells know."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the ending
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they are found; only Linux knows how."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> bool:
    """Kill whatever has been started, directly or not; returns whether there was anything."""
    found = []
    for end in (psutil.Process.suspend, psutil.Process.kill):  # what is suspended starts nothing more
        found = psutil.Process().children(recursive=True)
        for process in found:
            with suppress(psutil.Error):
                end(process)
    return bool(found)


def main(command: list[str]) -> int:
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # only the pipe counts; SIG_IGN would be inherited by the command
    adopt_orphans()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns when the pipe closes
        kill_descendants()

    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    while kill_descendants():  # what the command left behind
        os.waitpid(-1, 0)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
