"""What make does with an environment that another checkout uses too; nothing is installed here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # starts make

ROOT = Path(__file__).resolve().parent.parent
TOLD = '#!/bin/sh\nprintf "%s\\n" "PYTHONPATH=$PYTHONPATH" "ROBRET_DATA=$ROBRET_DATA" "in $PWD: $*"\n'


def clone(folder: Path) -> Path:
    """What make needs of a checkout, and a library."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "book/own_environment.py", "robret_lib/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return clone(tmp_path / "my checkout")


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment in which pip is only pretended."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "bin" / "pip").touch(mode=0o755)
    return folder


def install(checkout: Path, environment: Path) -> None:
    """As `pip install -e` does it."""
    paths = {"base": str(environment), "platbase": str(environment)}
    (Path(sysconfig.get_path("purelib", "venv", paths)) / "robret.pth").write_text(f"{checkout}\n")


def make(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS")}
    command = ["make", "-C", checkout, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=clean | variables)


def test_an_environment_of_another_checkout_is_left_alone(mine: Path, environment: Path, tmp_path: Path):
    other = clone(tmp_path / "other")
    install(other, environment)
    done = make(mine, f"VENV={environment}", "html", PYTHONPATH=str(mine))
    assert done.returncode != 0
    assert f"another checkout:\n  {other}\nInstalling {mine} would" in done.stderr
    assert "pip uninstall robret" in done.stderr
    assert "No module named pip" not in done.stderr, "it stops before pip runs"


@pytest.mark.parametrize("installed", ["nothing", "mine", "gone"])
def test_an_environment_of_no_other_checkout_is_installed_into(
    mine: Path, environment: Path, tmp_path: Path, installed: str
):
    if installed != "nothing":
        install(mine if installed == "mine" else tmp_path / "gone", environment)
    done = make(mine, f"VENV={environment}", "html")
    assert "No module named pip" in done.stderr, "pip would have been run"


@pytest.mark.parametrize("given", ["variable", "argument"])
def test_what_make_runs_gets_its_checkout_first(mine: Path, tmp_path: Path, given: str):
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(TOLD)
    (environment / "bin" / "python").chmod(0o755)
    (environment / ".robret-installed").touch()
    data = {"ROBRET_DATA": "my data"}
    arguments, variables = ([], data) if given == "variable" else (["ROBRET_DATA=my data"], {})
    done = make(mine, f"VENV={environment}", "data", *arguments, PYTHONPATH="/other", **variables)
    assert done.returncode == 0, done.stderr
    assert f"PYTHONPATH={mine}:/other\nROBRET_DATA=my data\nin {mine}: data_scripts/fashion_mnist.py\n" in done.stdout
