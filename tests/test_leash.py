"""Whatever ends the executor, nothing that it has started goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import leash
from tests.toy_checkout import execute, executor, write_chapter

pytestmark = pytest.mark.slow  # starts executors and kernels

BUSY = {
    "in Python": "while True:\n    pass",
    "in C": "sum(range(10**18))",
    "deaf": "import signal\nfor each in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(each, signal.SIG_IGN)\n"
    "while True:\n    pass",
}


def note(path: Path, number: str = "os.getpid()") -> str:
    """Code that writes a process id to a file, whole or not at all."""
    return (
        f"import os\nwith open('{path}.part', 'w') as file:\n    print({number}, file=file)\n"
        f"os.rename('{path}.part', '{path}')\n"
    )


def noted(path: Path, process: subprocess.Popen[str]) -> psutil.Process:
    """The process that wrote its id, once it has."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return psutil.Process(int(path.read_text()))


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def to_itself(number: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: process.send_signal(number)


def to_its_group(number: int) -> Callable[[subprocess.Popen[str]], None]:
    return lambda process: os.killpg(process.pid, number)


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize(
    ("send", "status"),
    [
        pytest.param(to_itself(signal.SIGTERM), 143, id="terminated"),
        pytest.param(to_itself(signal.SIGINT), 130, id="interrupted"),
        pytest.param(to_its_group(signal.SIGINT), 130, id="Ctrl-C"),
    ],
)
def test_a_signal_ends_the_executor_and_its_kernels(checkout: Path, tmp_path: Path, busy: str, send, status: int):
    write_chapter(checkout, "01_quick", "print(1)")
    write_chapter(checkout, "02_endless", note(tmp_path / "kernel") + BUSY[busy])
    process = executor(checkout, "--workers", "1")
    kernel = noted(tmp_path / "kernel", process)
    send(process)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (status, "")
    assert output.endswith("stopped; the chapters that finished need not run again\n")
    assert is_gone(kernel)
    assert not list((checkout / "book" / "_build" / "runs" / "02_endless").iterdir()), "no scratch is left"
    write_chapter(checkout, "02_endless", "print('mended')")
    after = execute(checkout)
    assert after.returncode == 0, after.stdout + after.stderr
    assert "1 of 2 chapters are up to date" in after.stdout


def test_what_a_kernel_has_started_ends_too(checkout: Path, tmp_path: Path):
    start = "import subprocess\nchild = subprocess.Popen(['sleep', 'infinity'], start_new_session=True)\n"
    write_chapter(checkout, "01_parent", start + note(tmp_path / "child", "child.pid") + BUSY["in C"])
    process = executor(checkout)
    child = noted(tmp_path / "child", process)
    process.terminate()
    assert process.wait() == 143
    assert is_gone(child)


def test_a_killed_executor_leaves_nothing_running(checkout: Path, tmp_path: Path):
    write_chapter(checkout, "01_endless", note(tmp_path / "kernel") + BUSY["in C"])
    process = executor(checkout)
    kernel = noted(tmp_path / "kernel", process)
    process.kill()
    while not is_gone(kernel):
        time.sleep(0.05)


def test_a_killed_papermill_leaves_no_kernel(checkout: Path, tmp_path: Path):
    write_chapter(checkout, "01_endless", note(tmp_path / "kernel") + BUSY["in C"])
    process = executor(checkout)
    kernel = noted(tmp_path / "kernel", process)
    kernel.parent().kill()
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "Failed: 01_endless" in output
    assert is_gone(kernel)


def test_who_waits_for_another_run_can_be_stopped(checkout: Path, tmp_path: Path):
    write_chapter(checkout, "01_endless", note(tmp_path / "kernel") + BUSY["in Python"])
    first = executor(checkout)
    kernel = noted(tmp_path / "kernel", first)
    second = executor(checkout)
    assert "waiting: another run in this checkout has it" in second.stdout.readline()
    second.terminate()
    assert second.wait() == 143
    assert kernel.is_running(), "the other run goes on"
    first.terminate()
    assert first.wait() == 143


def test_the_status_of_the_command_is_handed_on():
    with_status = [sys.executable, "-c", "import sys; sys.exit(7)"]
    assert leash.Leash().run(with_status) == 7
    held = leash.Leash()
    held.let_go()
    assert held.run([sys.executable, "-c", "import time; time.sleep(1e6)"]) != 0
