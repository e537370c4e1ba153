"""The checkout that is run is the one that is imported, and no personal folder decides what a chapter shows.

Importing this module puts the checkout that it lies in first on this process's own path.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robret_lib.folders import data_root

# Where a person's own start-up files, styles and kernels would be found, and notes be left.
PERSONAL = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
# The backend of matplotlib is among them: the kernel picks the one that draws into the notebook.
UNWANTED = ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH", "MATPLOTLIBRC", "MPLBACKEND", "PYTHONSTARTUP")
QUESTION = "import matplotlib.font_manager, robret_lib; print(ascii(robret_lib.__file__))"


def settle(root: Path) -> None:
    """Change the environment so that whatever is started from here on uses the library and the folders of `root`.

    Relative paths in it become absolute: they were meant from the working folder, and kernels work in others.
    """
    given = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(root), *given]))
    os.environ["ROBRET_DATA"] = str(data_root())
    os.environ |= {name: str(home(root) / name.lower()) for name in PERSONAL}
    for name in UNWANTED:
        os.environ.pop(name, None)


def home(root: Path) -> Path:
    """What the children have in place of the home folder, which may be missing or read-only."""
    return root / "book" / "_build" / "home"


def refuse_other_library(root: Path) -> None:
    """Exit where the children would not import the library of `root`; after `settle`.

    The child that is asked builds matplotlib's font cache too, so that no chapter has to say that it does.
    """
    home(root).mkdir(parents=True, exist_ok=True)
    # Its working folder is on its path, so it must be one that holds no library.
    asked = subprocess.run([sys.executable, "-c", QUESTION], cwd=home(root), capture_output=True, text=True)
    if asked.returncode:
        sys.exit(f"The library of {root} cannot be imported:\n{asked.stderr}")
    found = Path(ast.literal_eval(asked.stdout) or "")
    if found.resolve().parent != (root / "robret_lib").resolve():
        sys.exit(
            f"This is the checkout {root}, but {sys.executable} imports robret_lib from {found.parent}, whatever "
            "PYTHONPATH says. Give the checkout an environment of its own: make VENV=FOLDER"
        )
