"""The script that gets Fashion-MNIST: which source it takes, what it refuses, what it says."""

import gzip
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from robret_lib import data

SCRIPT = Path(__file__).parents[1] / "data_scripts" / "fashion_mnist.py"
FILES = {name: f"the pixels of {name}".encode() * 50 for name in data.FASHION_MNIST_SHA256}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with four tiny files in place of the real ones, no Debian package, and no download."""
    spec = importlib.util.spec_from_file_location("fashion_mnist_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, content in FILES.items():
        monkeypatch.setitem(data.FASHION_MNIST_SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "package")
    for name in ("torchvision's download", "installing the Debian package"):
        monkeypatch.setitem(module.SOURCES, name, refusing(module))
    return module


def refusing(module: ModuleType):
    def source(folder: Path, temporary: Path) -> None:
        raise module.SourceError("not in this test")

    return source


def compress_into(folder: Path, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(replaced.get(name.replace("-", "_"), gzip.compress(content)))


def raw(root: Path) -> Path:
    return data.fashion_mnist_folder(root)


def is_whole(root: Path) -> bool:
    return all((raw(root) / name).read_bytes() == content for name, content in FILES.items())


def leftovers(root: Path) -> list[str]:
    below = [path.name for path in raw(root).iterdir() if path.name.removesuffix(".gz") not in FILES]
    return below + [path.name for path in raw(root).parent.iterdir() if path.name != "raw"]


@pytest.fixture
def other_disk(tmp_path: Path):
    """A folder that files cannot be renamed into."""
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("link", ["FashionMNIST/raw", "FashionMNIST", "."])
def test_a_data_folder_may_be_a_link_to_another_disk(script, tmp_path, other_disk, link):
    root = tmp_path / "data"
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(other_disk)
    compress_into(script.DEBIAN_FOLDER)
    assert script.main(["--root", str(root)]) == 0
    assert is_whole(root) and leftovers(root) == []
    assert (root / link).is_symlink()


def test_takes_the_debian_package(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    compress_into(script.DEBIAN_FOLDER)
    assert script.main(["--root", str(tmp_path)]) == 0
    assert is_whole(tmp_path) and leftovers(tmp_path) == []
    assert "source: the Debian package" in capsys.readouterr().out


def test_takes_what_is_already_there_and_touches_nothing(script: ModuleType, tmp_path: Path, capsys) -> None:
    compress_into(script.DEBIAN_FOLDER)
    script.main(["--root", str(tmp_path)])
    before = {name: (raw(tmp_path) / name).stat().st_mtime_ns for name in FILES}
    assert script.main(["--root", str(tmp_path)]) == 0
    assert before == {name: (raw(tmp_path) / name).stat().st_mtime_ns for name in FILES}
    assert "source: already there" in capsys.readouterr().out


def test_takes_compressed_files_that_were_copied_there(script: ModuleType, tmp_path: Path, capsys) -> None:
    compress_into(raw(tmp_path))
    assert script.main(["--root", str(tmp_path)]) == 0
    assert is_whole(tmp_path)
    assert "source: compressed files" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"X" + content[1:]])
def test_a_damaged_file_is_named_and_fetched_again(script: ModuleType, tmp_path: Path, capsys, damage) -> None:
    compress_into(script.DEBIAN_FOLDER)
    script.main(["--root", str(tmp_path)])
    victim = raw(tmp_path) / "train-images-idx3-ubyte"
    victim.write_bytes(damage(victim.read_bytes()))
    capsys.readouterr()
    assert script.main(["--root", str(tmp_path)]) == 0
    assert is_whole(tmp_path)
    named = [line for line in capsys.readouterr().out.splitlines() if "truncated or altered" in line]
    assert len(named) == 1 and named[0].startswith("train-images-idx3-ubyte")


@pytest.mark.parametrize(
    "bad",
    [gzip.compress(b"other pixels"), gzip.compress(FILES["t10k-labels-idx1-ubyte"])[:-20], b"no gzip"],
    ids=["other pixels", "cut short", "no gzip"],  # gzip writes the time: as an id it would differ between workers
)
def test_a_source_with_a_damaged_file_is_never_used(script: ModuleType, tmp_path: Path, capsys, bad: bytes) -> None:
    compress_into(script.DEBIAN_FOLDER, t10k_labels_idx1_ubyte=bad)
    assert script.main(["--root", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert list(raw(tmp_path).iterdir()) == [] and leftovers(tmp_path) == []
    assert any("t10k-labels" in line and "truncated or altered" in line for line in output.out.splitlines())


def test_a_file_already_there_survives_when_no_source_works(script: ModuleType, tmp_path: Path) -> None:
    raw(tmp_path).mkdir(parents=True)
    kept = raw(tmp_path) / "train-labels-idx1-ubyte"
    kept.write_bytes(FILES[kept.name])
    assert script.main(["--root", str(tmp_path)]) == 1
    assert kept.read_bytes() == FILES[kept.name]


def test_torchvision_is_asked_before_apt(script: ModuleType, tmp_path: Path, capsys, monkeypatch) -> None:
    def give(folder: Path, temporary: Path) -> None:
        for name, content in FILES.items():
            (temporary / name).write_bytes(content)

    monkeypatch.setitem(script.SOURCES, "torchvision's download", give)
    monkeypatch.setitem(script.SOURCES, "installing the Debian package", None)  # calling it would raise TypeError
    assert script.main(["--root", str(tmp_path)]) == 0
    assert "source: torchvision's download" in capsys.readouterr().out


@pytest.mark.parametrize("failure", [RuntimeError("no\nhost"), ConnectionResetError("cut"), TimeoutError("silent")])
def test_a_failed_download_is_one_line(script: ModuleType, tmp_path: Path, monkeypatch, failure: Exception) -> None:
    def download(root: Path, download: bool) -> None:
        raise failure

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    with pytest.raises(script.SourceError, match="no download") as caught:
        script.from_torchvision(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


class FakeApt:
    """Stands in for subprocess.run: fails the given number of times, then installs."""

    def __init__(self, folder: Path, failures: int) -> None:
        self.folder, self.failures, self.calls = folder, failures, []

    def __call__(self, command: list[str], **options: object) -> SimpleNamespace:
        self.calls.append(command)
        if "install" in command and self.failures > 0:
            self.failures -= 1
            return SimpleNamespace(returncode=100, stdout="", stderr="E: first\nE: Unable to locate package\n")
        if "install" in command:
            compress_into(self.folder)
        return SimpleNamespace(returncode=0, stdout="", stderr="")


@pytest.mark.parametrize(("failures", "calls"), [(0, 1), (1, 3)])
def test_apt_installs_and_updates_its_lists_if_need_be(
    script: ModuleType, tmp_path: Path, monkeypatch, failures: int, calls: int
) -> None:
    apt = FakeApt(script.DEBIAN_FOLDER, failures)
    monkeypatch.setattr(script.subprocess, "run", apt)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(script.os, "geteuid", lambda: 0)
    target = tmp_path / "target"
    target.mkdir()
    script.fetch(script.from_apt, raw(tmp_path), target)
    assert len(apt.calls) == calls and "dataset-fashion-mnist" in apt.calls[-1]


@pytest.mark.parametrize(
    ("which", "user", "reason"),
    [(None, 0, "no apt-get"), ("/bin/apt-get", 1000, "only root"), ("/bin/apt-get", 0, "Unable to locate")],
)
def test_apt_says_why_it_cannot(script: ModuleType, tmp_path: Path, monkeypatch, which, user, reason) -> None:
    monkeypatch.setattr(script.subprocess, "run", FakeApt(script.DEBIAN_FOLDER, failures=2))
    monkeypatch.setattr(script.shutil, "which", lambda name: which)
    monkeypatch.setattr(script.os, "geteuid", lambda: user)
    with pytest.raises(script.SourceError, match=reason):
        script.from_apt(tmp_path, tmp_path)


def test_a_place_that_cannot_be_written_is_an_error_in_words(script: ModuleType, tmp_path: Path, capsys) -> None:
    (tmp_path / "FashionMNIST").write_text("a file where a folder should be")
    assert script.main(["--root", str(tmp_path)]) == 1
    assert "cannot write to" in capsys.readouterr().err


@pytest.mark.slow
def test_no_network_and_no_file_gives_both_ways_and_exit_code_1(tmp_path: Path) -> None:
    start = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import pathlib, fashion_mnist\n"
        f"fashion_mnist.DEBIAN_FOLDER = pathlib.Path({str(tmp_path / 'package')!r})\n"
        f"sys.exit(fashion_mnist.main(['--root', {str(tmp_path / 'root')!r}]))"
    )
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {name: value for name, value in os.environ.items() if name.lower() not in ("no_proxy", "path")}
    done = subprocess.run(
        [sys.executable, "-c", start],
        env={**kept, **unreachable, "PATH": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert "apt-get install dataset-fashion-mnist" in done.stderr and "torchvision downloads it" in done.stderr
    assert "no download" in done.stdout and "no apt-get here" in done.stdout
    assert not list((tmp_path / "root").rglob("*ubyte*"))


def test_a_relative_root_is_named_in_full(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    compress_into(script.DEBIAN_FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBRET_DATA", "my data")
    assert script.main([]) == 0
    assert f"ready in {tmp_path / 'my data'}" in capsys.readouterr().out
    assert script.main(["--root", "other"]) == 0
    assert f"ready in {tmp_path / 'other'}" in capsys.readouterr().out


def test_the_script_imports_the_library_of_its_own_checkout(tmp_path: Path) -> None:
    (tmp_path / "robret_lib").mkdir()
    (tmp_path / "robret_lib" / "__init__.py").write_text("raise SystemExit('another library')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, SCRIPT, "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
