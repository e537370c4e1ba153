"""How tests run a notebook that judges networks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def papermill(notebook: str, folder: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    """Run a notebook of ``workflow`` there; trained networks and all results end up in the folder."""
    parameters |= {"out_dir": folder / "results"}
    arguments = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    path = ROOT / "workflow" / notebook
    command = [sys.executable, "-m", "papermill", str(path), str(folder / "out.ipynb"), *arguments]
    environment = os.environ | {"ROBRET_DATA": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
