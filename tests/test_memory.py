"""What a defense remembers: exact progress, and the last loss, of two processes their mean."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from robret_lib.defenses.memory import LastLoss, Progress

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("steps", "epochs"), [(3975, 75), (12, 5), (4, 3)])
def test_progress_is_exact(steps, epochs):
    """In floating point, 2915 / 3975 * 75 is below 55."""
    progress = Progress(steps)
    for step in range(steps):
        assert progress.advance() * epochs // 1 == step * epochs // steps
    assert progress.advance() == progress.advance() == 1  # beyond the end


def test_progress_is_part_of_the_state():
    progress, again = Progress(8), Progress(8)
    for _ in range(3):
        progress.advance()
    again.load_state_dict(progress.state_dict())
    assert again.advance() == Fraction(3, 8)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"steps={steps}: expected a whole number of at least 1"):
        Progress(steps)


def test_looking_at_a_loss_changes_no_memory():
    last, progress = LastLoss(2.0).eval(), Progress(4).eval()
    last.note(torch.tensor(1.0))
    assert last.value == 2.0
    assert [progress.advance(), progress.advance()] == [0, 0]
    assert [progress.train().advance(), progress.advance()] == [0, Fraction(1, 4)]


def test_the_last_loss_is_part_of_the_state_and_has_no_gradient():
    last, again = LastLoss(2.0), LastLoss(2.0)
    assert last.value == 2.0
    weight = torch.tensor(3.0, requires_grad=True)
    last.note(weight * 2)
    assert last.value == 6.0 and not last.value.requires_grad and last.value.dtype == torch.float64
    again.load_state_dict(last.state_dict())
    assert again.value == 6.0


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
import torch
from robret_lib import mining
from robret_lib.defenses import CollapseAwareTriplets, HardnessManipulation
from robret_lib.training import Schedule, process_group, seeded, train
from tests.small_defenses import INNER
from tests.small_retrieval import small_model, some_split

torch.set_num_threads(1)


class Noted(HardnessManipulation):
    "Keeps what was noted, and what was remembered then."

    def __init__(self, *given):
        super().__init__(*given)
        self.noted, note, remembered = [], self.last_loss.note, self.last_loss.value

        def kept(loss):
            before = remembered.item()
            note(loss)
            self.noted.append((before, loss.item(), remembered.item()))

        self.last_loss.note = kept


with process_group("cpu") as rank:
    model, objective = small_model(), Noted(INNER)
    train(model, some_split(80, seed=10), objective, Schedule(4, 8, lr=1e-2))
    state = {{"model": model.state_dict(), "objective": objective.state_dict(), "noted": objective.noted}}
    model, in_turns = small_model(), CollapseAwareTriplets(INNER, steps=4, epochs=2)
    train(model, some_split(80, seed=10), in_turns, Schedule(4, 8, lr=1e-2))
    state |= {{"model in turns": model.state_dict(), "turns": in_turns.state_dict()}}
    torch.save(state, Path(sys.argv[1]) / f"end{{rank}}")
"""


@pytest.mark.slow
def test_two_processes_remember_the_mean_of_their_losses_and_take_the_same_turns(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "log", "w") as log:
        ended = subprocess.run([str(part) for part in command], stdout=log, stderr=log, env=environment)
    assert ended.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    first, second = (torch.load(tmp_path / f"end{rank}", weights_only=True) for rank in (0, 1))
    for part in ("model", "objective", "model in turns", "turns"):
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    assert first["turns"] == {"progress.done": 4}
    remembered = 2.0
    for (before, loss, after), noted_there in zip(first["noted"], second["noted"], strict=True):
        assert noted_there == (remembered, pytest.approx(2 * after - loss, rel=1e-12), after)
        assert before == remembered and loss != after  # the other one had another loss
        remembered = after
    assert first["objective"]["last_loss.value"] == remembered
