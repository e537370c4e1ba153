"""What an evaluation found so far, in a file, so that a crash costs no more than one attack.

That is one on a block of queries in `robust_recall`, whose attacks are many and long, and one on all queries in
`attack_rows`, where each draws its targets for all at once.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robret_lib import source
from robret_lib.files import written_whole

BLOCK = 1000
"""Queries between two checkpoints."""

TOLERANCE = 0.05
"""Share of the largest row up to which two tensors are the same but for the last digits of what a GPU computes."""


class Checkpoint:
    """The file of an evaluation, with images beside it, a file for each block.

    Args:
        path: Of the first file.
        settings: The arguments that decide the result, of types that ``torch.load(weights_only=True)`` reads; the code
            of attacks and scores joins them.
        fingerprint: What model, data and surrogate look like, see `queries.Queries.fingerprint`.
    """

    def __init__(self, path: Path, settings: dict[str, Any], fingerprint: dict[str, Tensor]) -> None:
        self.path, self.settings, self.fingerprint = path, settings | {"code": source.of_evaluation()[:12]}, fingerprint

    def save(self, state: dict[str, Any]) -> None:
        """Keep tensors, numbers, words, and lists and dicts of them."""
        with written_whole(self.path) as file:
            torch.save(state | {"settings": self.settings, "fingerprint": self.fingerprint}, file)

    def load(self, names: set[str]) -> dict[str, Any] | None:
        """What was saved under these names; None where nothing was.

        Raises:
            ValueError: A damaged file, or one of another evaluation.
        """
        if not self.path.exists():
            return None
        state = self._read(self.path, names | {"settings", "fingerprint"})
        written_for, seen = state.pop("settings"), state.pop("fingerprint")
        if written_for != self.settings:
            about = f"was written with {written_for}, this evaluation is {self.settings}"
            raise ValueError(f"{self.path} {about}: move it")
        names_of_both = {**self.fingerprint, **seen}
        different = [name for name in names_of_both if not alike(seen.get(name), self.fingerprint.get(name))]
        if different:
            raise ValueError(f"{self.path} was written with other {', '.join(different)}: move it")
        return state

    def save_images(self, block: int, images: Tensor) -> None:
        """Before the state that speaks of them: where only they were written, the attack finds the same again."""
        with written_whole(self._images_of(block)) as file:
            torch.save({"images": images}, file)

    def load_images(self, block: int) -> Tensor:
        """The images of a block."""
        return self._read(self._images_of(block), {"images"})["images"]

    def _images_of(self, block: int) -> Path:
        return self.path.with_name(f"{self.path.name}.images{block}")

    def _read(self, path: Path, names: set[str]) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True)
            return {name: state[name] for name in names}
        except PermissionError:  # what may not be read is not damaged
            raise
        except Exception as error:  # reading a damaged file can fail in any way
            message = f"{path} is no checkpoint, or a damaged one: delete it and {self.path} to start anew"
            raise ValueError(message) from error


def blocks(count: int) -> int:
    """How many blocks hold ``count`` queries."""
    return -(-count // BLOCK)


def rows_of(block: int) -> slice:
    """The queries of a block."""
    return slice(block * BLOCK, (block + 1) * BLOCK)


def alike(seen: Tensor | None, expected: Tensor | None) -> bool:
    """Whether two tensors of a fingerprint are equal; where they hold fractions, row by row and up to `TOLERANCE`."""
    if seen is None or expected is None or seen.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(seen, expected)
    changes, lengths = (rows.flatten(1).norm(dim=1) for rows in ((seen - expected)[:, None], expected[:, None]))
    return bool(changes.max() <= TOLERANCE * lengths.max())
