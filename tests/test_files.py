"""Files are written whole or not at all; what fails names its path and leaves nothing behind."""

import json
import multiprocessing
import os
import time
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import nbformat
import pytest
import torch

import execute
from robret_lib import files, index, mining, runs, scores
from robret_lib.data import write_packed
from robret_lib.files import append, one_at_a_time, written_whole
from robret_lib.objectives import TripletObjective
from robret_lib.recipes import kept
from robret_lib.runs import records
from robret_lib.training import Schedule, train
from tests.small_retrieval import searched_in_itself, small_model, some_split

resource = pytest.importorskip("resource", reason="file sizes can be limited on POSIX systems only")

OLD = b"what stood there before"


@contextmanager
def full_disk(free: int = 512):
    """No file can grow beyond so many bytes: the system call fails as it does on a full disk, with another word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_checkpoint(path: Path) -> None:
    train(small_model(), some_split(40, seed=1), TripletObjective(mining.random), Schedule(steps=1, pairs=4), path)


def write_model(path: Path) -> None:
    kept._write(path, small_model(), {})


def write_evaluation(path: Path) -> None:
    scores.robust_recall(small_model(), searched_in_itself(), 0.04, queries=20, effort="quick", checkpoint=path)


def write_index(path: Path) -> None:
    index.build(torch.randn(100, 8)).save(path)


def write_data(path: Path) -> None:
    images = [torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(4)]
    write_packed(path, images, [0, 0, 1, 1], ["a", "b"])


def write_result(path: Path) -> None:
    records.write(path, {"schema": 1, "details": "long " * 1000})


def write_chapter(path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("long " * 1000)])
    execute.write(path, nbformat.writes(notebook))


WRITERS = {
    write_checkpoint: "run.checkpoint",
    write_model: "model.safetensors",
    write_evaluation: "robust.checkpoint",
    write_index: "gallery.index",
    write_data: "photographs.npz",
    write_result: "result.json",
    write_chapter: "chapter.ipynb",
}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_an_error_with_a_path_that_leaves_nothing_behind(write, tmp_path):
    path = tmp_path / WRITERS[write]
    with pytest.raises(OSError, match=r"cannot be written \(File too large\)") as error, full_disk():
        write(path)
    assert str(error.value.filename).startswith(str(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_index, write_data, write_result, write_chapter], ids=lambda w: w.__name__)
def test_a_failure_leaves_the_old_file_as_it_was(write, tmp_path):
    path = tmp_path / WRITERS[write]
    path.write_bytes(OLD)
    with pytest.raises(OSError), full_disk():
        write(path)
    assert path.read_bytes() == OLD and list(tmp_path.iterdir()) == [path]


def test_a_failing_writer_keeps_its_own_error_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="mine"), written_whole(tmp_path / "file"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below" / "result"
    with pytest.raises(OSError, match="cannot be written") as error, written_whole(path):
        pass
    assert error.value.filename == str(path)


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path):
    elsewhere = tmp_path / "other disk"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere / "file")
    for content in (b"first", b"second"):
        with written_whole(tmp_path / "link") as file:
            file.write(content)
        assert (tmp_path / "link").is_symlink() and (elsewhere / "file").read_bytes() == content


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    path, others = tmp_path / "a[1]", [tmp_path / ".a[1].fresh.tmp", tmp_path / ".b.old.tmp"]
    abandoned = tmp_path / ".a[1].old.tmp"
    for file in (abandoned, *others):
        file.write_bytes(b"half")
        age = 0 if "fresh" in file.name else 2 * files.ABANDONED
        os.utime(file, (time.time() - age, time.time() - age))
    with written_whole(path) as file:
        file.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_new_files_have_the_rights_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_replaced_keeps_its_rights(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o600)
    with written_whole(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    for name in ("n" * 255, "ü" * 127):
        with written_whole(tmp_path / name):
            pass
        assert (tmp_path / name).exists()


def test_an_error_that_is_being_handled_is_not_the_reason(tmp_path):
    try:
        (tmp_path / "missing").read_bytes()
    except FileNotFoundError:
        with pytest.raises(TypeError), written_whole(tmp_path / "file") as file:
            file.write("text where bytes belong")


def test_a_log_on_a_full_disk_names_its_path(tmp_path):
    with pytest.raises(OSError, match="run.log"), full_disk(free=4):
        append(tmp_path / "run.log", "more than four bytes")


def count_up(counter: Path, lock: Path, turns: int) -> None:
    for _ in range(turns):
        with one_at_a_time(lock):
            number = json.loads(counter.read_text())
            time.sleep(0.001)
            counter.write_text(json.dumps(number + 1))


def test_processes_take_turns(tmp_path):
    counter, lock = tmp_path / "counter", tmp_path / "lock"
    counter.write_text("0")
    processes = [multiprocessing.Process(target=count_up, args=(counter, lock, 30)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "90"


def hold(lock: Path, entered: Event, leave: Event) -> None:
    with one_at_a_time(lock):
        entered.set()
        leave.wait()


def test_who_waits_is_told_and_may_give_up(tmp_path):
    entered, leave = multiprocessing.Event(), multiprocessing.Event()
    holder = multiprocessing.Process(target=hold, args=(tmp_path / "lock", entered, leave))
    holder.start()
    entered.wait()

    def give_up():
        raise InterruptedError

    with pytest.raises(InterruptedError), one_at_a_time(tmp_path / "lock", give_up):
        pytest.fail("another process is inside")
    with one_at_a_time(tmp_path / "lock", leave.set):
        assert leave.is_set()
    holder.join()


def test_without_locks_nobody_waits(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with one_at_a_time(tmp_path / "lock"), one_at_a_time(tmp_path / "lock"):
        pass


def test_a_run_on_a_full_disk_says_which_file(tmp_path):
    values = {"scale": "full", "seed": 0, "device": "cpu", "out_dir": str(tmp_path)}
    rules = {"scale": runs.choice("full"), "seed": runs.integer(), "device": runs.choice("cpu")}
    run = runs.start("90_tiny", values, out_dir=runs.folder(), **rules)
    with pytest.raises(OSError, match=r"90_tiny.*json"), full_disk(free=300):
        run.finish({"R@1": runs.measured(1.0, n=10)}, "toy", "fixed")
    assert [path.suffix for path in tmp_path.iterdir()] == [".log"]
