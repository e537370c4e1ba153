"""How this project writes a file: whole or not at all, and with its name in the error where that fails."""

import glob
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows has no such module
    fcntl = None

ABANDONED = 24 * 3600.0
"""Seconds without a change after which a half-written file belongs to a process that was killed."""


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` once it is complete.

    A reader, or a crash at any moment, meets the old file or the new one. A failure leaves the old one as it was and
    nothing beside it. Do nothing inside but write: what fails there is taken for a failure to write.

    Args:
        path: its folder is made if need be; where it is a link, the file that it points to is replaced.

    Raises:
        OSError: naming ``path``, where the disk is full, the folder read-only, and so on.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{_short(path)}.{uuid.uuid4().hex[:12]}.tmp")
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(path.stat().st_mode)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add text at the end of a file.

    Raises:
        OSError: naming ``path``.
    """
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def one_at_a_time(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Processes that come here with the same path wait for each other.

    Where the file system knows no locks, as on some clusters, nobody waits: what is done inside must bear that.

    Args:
        path: an empty file, made if need be, that stays.
        busy: called over and over while another process is inside; what it raises ends the waiting.

    Raises:
        OSError: naming ``path``, where it cannot be made.
    """
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    with lock:
        while _taken(lock):
            busy()
            time.sleep(0.05)
        yield


def _taken(lock: TextIO) -> bool:
    """Whether another process has the lock; if not, this one has it now, where there are locks at all."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Lets the operating system's error name the path, also where a library made another error of it."""
    earlier = sys.exc_info()[1]  # where this runs in an except clause, what is handled there is not ours
    try:
        yield
    except Exception as error:
        if (cause := _system_error(error, earlier)) is None:
            raise
        raise OSError(cause.errno, f"cannot be written ({cause.strerror or cause})", str(path)) from error


def _system_error(error: BaseException | None, earlier: BaseException | None) -> OSError | None:
    """torch.save, closing its archive on a full disk, hides the reason behind a RuntimeError."""
    while error is not earlier and error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _short(path: Path) -> str:
    """Of a file's name what leaves room for more: names may have 255 bytes."""
    return path.name.encode()[:200].decode(errors="ignore")


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(_short(path))}.*.tmp"):
        with suppress(OSError):  # another process may remove it at the same time
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
