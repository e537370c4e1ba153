"""What the benchmarks of this folder share: a clock, the machine's name, and where the table goes."""

import argparse
import ctypes
import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def cpu_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def keep_freed_memory() -> None:
    """Tell glibc not to hand freed memory back, for the unit and the attacks alike.

    Otherwise it does so or not by the chance layout of the heap, and faulting the pages in again adds up to a fifth
    to a step of either.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def machine() -> str:
    """Processor, torch and date of a measurement."""
    info = Path("/proc/cpuinfo")  # as Linux calls it, or what Python knows elsewhere
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, torch {torch.__version__}, {datetime.date.today().isoformat()}"


def write_or_print(table: Callable[[], str], file: str, what: str) -> None:
    """Measure on one thread and print; with ``--write`` also store the table beside the script."""
    parser = argparse.ArgumentParser(description=f"Print {what}.")
    parser.add_argument("--write", action="store_true", help="also store the table beside this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = table()
    print(measured)
    if arguments.write:
        Path(file).with_suffix(".md").write_text(measured, encoding="utf-8")
