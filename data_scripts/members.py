"""Members of a packed file that its format has no place for."""

from pathlib import Path

import numpy as np

from robret_lib.files import written_whole


def add_members(path: Path, **members: np.ndarray) -> None:
    """Adds them to a packed file; readers leave them alone."""
    with np.load(path) as packed:
        kept = {member: packed[member] for member in packed.files}
    with written_whole(path) as file:
        np.savez(file, **kept, **members)
