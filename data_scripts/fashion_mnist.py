"""Puts Fashion-MNIST where `robret_lib.data.load("fashion-mnist")` finds it.

Four sources are tried in order; what a source gives is checked by sha256 before it is moved into place.
Prints which source was used. The exit code is 0 if the set is there and whole, else 1.
"""

import argparse
import gzip
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library of this checkout, whatever is installed

from robret_lib import data

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NETWORK_TIMEOUT = 20  # seconds of silence after which a download counts as failed

Source = Callable[[Path, Path], None]


class SourceError(Exception):
    """A source cannot give the files; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(description="Get, verify and unpack Fashion-MNIST (55 MB).")
    parser.add_argument("--root", type=Path, default=data.data_root(), help="data root (now: %(default)s)")
    folder = data.fashion_mnist_folder(parser.parse_args(arguments).root.expanduser().absolute())
    try:
        source = prepare(folder)
    except SourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write to {folder}: {error}. Choose another --root or ROBRET_DATA", file=sys.stderr)
        return 1
    print(f"Fashion-MNIST is ready in {folder} (source: {source})")
    return 0


def prepare(folder: Path) -> str:
    """Makes sure that the folder holds the four files, verified.

    Returns:
        The name of the source used.

    Raises:
        SourceError: if no source can give them.
    """
    problems = faults(folder)
    if not problems:
        return "already there"
    for problem in problems:
        print(f"{problem}: fetching it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:  # on one disk
            try:
                fetch(source, folder, Path(temporary))
            except (SourceError, OSError) as error:
                print(f"  not from {name}: {error}")
                continue
            for file in data.FASHION_MNIST_SHA256:
                os.replace(Path(temporary) / file, folder / file)
        return name
    raise SourceError(no_source_message(folder))


def faults(folder: Path) -> list[str]:
    """What is missing, truncated or altered in a folder, one line a file; empty if all four are whole."""
    problems = []
    for name, sha256 in data.FASHION_MNIST_SHA256.items():
        try:
            data.read_verified(folder / name, sha256)
        except data.DataError as error:
            problems.append(str(error))
    return problems


def fetch(source: Source, folder: Path, temporary: Path) -> None:
    """Lets a source fill the temporary folder and checks what it gave.

    Raises:
        SourceError: if a file is not as it should be.
    """
    source(folder, temporary)
    if problems := faults(temporary):
        raise SourceError("; ".join(problems))


def from_compressed_files(folder: Path, temporary: Path) -> None:
    """Unpacks .gz files that were copied into the folder, or left there by an earlier download."""
    unpack(folder, temporary)


def from_debian_package(folder: Path, temporary: Path) -> None:
    """Unpacks the files of the installed Debian package."""
    unpack(DEBIAN_FOLDER, temporary)


def from_torchvision(folder: Path, temporary: Path) -> None:
    """Downloads with torchvision, from the host its class names."""
    from torchvision.datasets import FashionMNIST  # takes seconds to import, and is needed here only

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision itself would wait for ever
    try:
        FashionMNIST(temporary, download=True)
    except (RuntimeError, OSError, HTTPException) as error:
        raise SourceError(f"no download ({' '.join(str(error).split())})") from error
    finally:
        socket.setdefaulttimeout(before)
    for name in data.FASHION_MNIST_SHA256:
        os.replace(data.fashion_mnist_folder(temporary) / name, temporary / name)


def from_apt(folder: Path, temporary: Path) -> None:
    """Installs the Debian package, where that is possible without asking anybody, and unpacks its files."""
    if shutil.which("apt-get") is None:
        raise SourceError("there is no apt-get here")
    if os.geteuid() != 0:
        raise SourceError("only root may install packages")
    try:
        apt_get("install", "--reinstall", "--yes", "--no-install-recommends", DEBIAN_PACKAGE)
    except SourceError:  # a fresh machine has no package lists yet
        apt_get("update")
        apt_get("install", "--reinstall", "--yes", "--no-install-recommends", DEBIAN_PACKAGE)
    unpack(DEBIAN_FOLDER, temporary)


def apt_get(*arguments: str) -> None:
    """Runs apt-get; it asks nothing and gives up on a silent network.

    Raises:
        SourceError: with the last line that it wrote, if it fails.
    """
    patience = ["-oAcquire::Retries=0", f"-oAcquire::http::Timeout={NETWORK_TIMEOUT}"]
    done = subprocess.run(
        ["apt-get", *patience, *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise SourceError(f"apt-get {arguments[0]} failed with exit code {done.returncode}: {last}")


def unpack(folder: Path, temporary: Path) -> None:
    """Unpacks the four .gz files of one folder into another.

    Raises:
        SourceError: if one is missing or does not unpack.
    """
    for name in data.FASHION_MNIST_SHA256:
        compressed = folder / f"{name}.gz"
        if not compressed.is_file():
            raise SourceError(f"{compressed} is not there")
        with gzip.open(compressed) as packed, (temporary / name).open("wb") as unpacked:
            try:
                shutil.copyfileobj(packed, unpacked)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise SourceError(f"{compressed} is truncated or altered ({error})") from error


def no_source_message(folder: Path) -> str:
    """What a person can do when every source has failed."""
    return f"""Fashion-MNIST is not in {folder}, and no source could give it. Two ways to get it:
  1. On Debian or Ubuntu, as root: apt-get install {DEBIAN_PACKAGE}
     Then run this script again.
  2. With a network: run this script again, and torchvision downloads it.
     Without one: on a machine that has one, get
       {", ".join(f"{name}.gz" for name in data.FASHION_MNIST_SHA256)}
     from github.com/zalandoresearch/fashion-mnist (folder data/fashion) and copy them to the folder above.
     Then run this script again."""


SOURCES: dict[str, Source] = {
    "compressed files already in the folder": from_compressed_files,
    f"the Debian package in {DEBIAN_FOLDER}": from_debian_package,
    "torchvision's download": from_torchvision,
    "installing the Debian package": from_apt,
}

if __name__ == "__main__":
    sys.exit(main())
