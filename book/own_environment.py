"""Stop before pip makes an environment of another checkout run this one's library.

    VENV/bin/python -I book/own_environment.py

-I leaves out the working folder and PYTHONPATH: what counts is what everybody imports who uses the environment.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def owner() -> Path | None:
    """The checkout whose library this environment imports, if that is another one."""
    spec = importlib.util.find_spec("robret_lib")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).resolve().parent.parent
    return found if found != CHECKOUT and (found / "pyproject.toml").exists() else None


if __name__ == "__main__" and (other := owner()):
    sys.exit(
        f"The environment {sys.prefix} runs the library of another checkout:\n  {other}\n"
        f"Installing {CHECKOUT} would make it run this one's, without a word. Do one of these:\n"
        "  make VENV=FOLDER ...    to give this checkout an environment of its own\n"
        f"  {sys.executable} -m pip uninstall robret    to free that one, and then make again"
    )
