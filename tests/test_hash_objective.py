"""What a hash model is trained by: codes kept of the whole training set, a sharper tanh, and both after a kill."""

import os
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from robret_lib import models, training
from robret_lib.data import Split
from robret_lib.hamming import codes_of, hamming_map
from robret_lib.hashing import (
    CSQ,
    DCH,
    DPH,
    DPN,
    DPSH,
    DSDH,
    Batch,
    GreedyHash,
    HashNet,
    HashObjective,
    KnownCodes,
    OrthoHash,
    continuation,
    sliced_wasserstein,
)
from robret_lib.hashing.continuation import by_epoch, by_step, constant
from robret_lib.models import HashModel
from robret_lib.training import Schedule, train

SIZE, BITS, CLASSES = 37, 8, 4
SCHEDULE = Schedule(steps=20, batch=8, lr=0.05, weight_decay=1e-4, seed=5, optimizer="sgd", momentum=0.9)
EPOCH = 5  # steps


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_split(size: int = SIZE, seed: int = 1) -> Split:
    """A pattern for each of four classes, and noise; every fifth image has a label more, and two have none."""
    labels = torch.arange(size) % CLASSES
    patterns = torch.rand(CLASSES, 1, 6, 6, generator=seeded())[labels]
    hot = one_hot(labels, CLASSES)
    hot[::5, 0] = 1
    hot[[7, 11]] = 0
    return Split(0.4 * patterns + 0.6 * torch.rand(size, 1, 6, 6, generator=seeded(seed)), hot)


def small_model(bits: int = BITS) -> HashModel:
    """With dropout, which a resumed training could get wrong."""
    torch.manual_seed(1)
    return HashModel(nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, bits)))


def known_of(split: Split, unseen: str = "left out") -> KnownCodes:
    return KnownCodes(split.labels, BITS, unseen)


# The codes that are known


def test_what_no_batch_has_held_is_left_out_or_zeros_without_labels():
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [1, 0]])
    rows, codes = torch.tensor([3, 0]), torch.tensor([[0.5, -0.5], [0.1, 0.2]])
    left_out, zeros = (KnownCodes(labels, 2, unseen).with_batch(rows, codes) for unseen in ("left out", "zeros"))
    assert torch.equal(left_out.codes, codes[[1, 0]]) and torch.equal(left_out.labels, labels[[0, 3]])
    assert torch.equal(zeros.codes, torch.stack([codes[1], *torch.zeros(2, 2), codes[0]]))
    assert zeros.labels.tolist() == [[1, 0], [0, 0], [0, 0], [1, 0]]


def test_the_codes_of_a_batch_are_kept_and_later_ones_take_their_place():
    known = KnownCodes(torch.arange(4), 1)
    assert not known.all().codes.numel()
    known.with_batch(torch.tensor([2, 1]), torch.tensor([[0.2], [0.1]]))
    known.with_batch(torch.tensor([2]), torch.tensor([[-0.9]]))
    assert known.all().codes.flatten().tolist() == pytest.approx([0.1, -0.9])
    assert known.all().labels.tolist() == [1, 2]


def test_no_gradient_passes_through_known_codes():
    """Neither through those of the batch: a pair of the batch pulls at one side alone, as published."""
    codes = torch.rand(2, 3, requires_grad=True)
    known = KnownCodes(torch.arange(4), 3)
    assert not known.with_batch(torch.tensor([0, 2]), codes).codes.requires_grad
    assert not known.codes.requires_grad
    (codes @ known.all().codes.T).sum().backward()
    assert torch.allclose(codes.grad, codes.detach().sum(0).expand(2, 3))


def test_equal_images_are_rows_of_their_own():
    """FLICKR-25K's training list has 504 of its images more than once."""
    split = some_split()
    twice = Split(split.images[[0, 1, 0]], split.labels[[0, 1, 0]])
    model, known = small_model().eval(), KnownCodes(twice.labels, BITS)
    objective = HashObjective(DPH(), known)
    objective.hold(torch.tensor([0, 1]), 0)
    objective(model, twice.images[:2], twice.labels[:2], seeded())
    assert known.seen.tolist() == [True, True, False]
    objective.hold(torch.tensor([2]), 0)
    objective(model, twice.images[2:], twice.labels[2:], seeded())
    assert known.seen.all() and torch.allclose(known.codes[0], known.codes[2])
    assert not torch.equal(known.codes[0], known.codes[1])


def test_a_trained_network_fills_in_all_codes_at_once():
    split = some_split()
    known, codes = known_of(split), torch.tanh(models.embed(small_model(), split.images))
    known.fill(codes)
    assert torch.equal(known.all().codes, codes) and torch.equal(known.all().labels, split.labels)
    known.fill(torch.zeros_like(codes))
    assert not known.codes.any() and codes.any()


def test_what_a_batch_is_compared_with_does_not_change_with_the_next_one():
    known = KnownCodes(torch.arange(2), 1)
    first = known.with_batch(torch.tensor([0]), torch.tensor([[0.3]]))
    known.with_batch(torch.tensor([0]), torch.tensor([[-0.7]]))
    assert first.codes.tolist() == [[pytest.approx(0.3)]]


def test_what_is_noted_does_not_reach_into_what_a_batch_was_compared_with():
    """Not where all have been seen either, and nothing is left out."""
    known = KnownCodes(torch.arange(2), 1)
    known.fill(torch.tensor([[0.5], [-0.5]]))
    first = known.with_batch(torch.tensor([0]), torch.tensor([[0.3]]))
    known.with_batch(torch.tensor([0, 1]), torch.tensor([[-0.7], [0.1]]))
    assert first.codes.flatten().tolist() == pytest.approx([0.3, -0.5])
    assert known.all().codes.flatten().tolist() == pytest.approx([-0.7, 0.1])


def test_another_word_for_the_unseen_is_refused():
    with pytest.raises(ValueError, match="unseen='ones': expected 'left out' or 'zeros'"):
        KnownCodes(torch.arange(3), 4, "ones")


def test_class_numbers_cannot_be_zeros_for_the_unseen():
    """Each of them would be a class, and the code of zeros similar to all codes of it."""
    with pytest.raises(ValueError, match=r"unseen='zeros' with labels int \[N\]: expected multi-hot"):
        KnownCodes(torch.arange(3), 4, "zeros")


@pytest.mark.parametrize("bits", [0, -1, 4.0])
def test_codes_without_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits={bits}: expected a whole number of at least 1"):
        KnownCodes(torch.arange(3), bits)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (2, 4)])
def test_codes_of_another_shape_fill_in_nothing(shape):
    known = KnownCodes(torch.arange(3), 4)
    with pytest.raises(ValueError, match=r"codes of shape \(.*\): expected \(3, 4\)"):
        known.fill(torch.ones(shape))
    assert not known.seen.any()


# Sharpness


@pytest.mark.parametrize(
    ("rule", "step", "epoch", "expected"),
    [
        (constant, 10_000, 100, 1.0),
        (by_step, 0, 9, 1.0),
        (by_step, 199, 9, 1.0),
        (by_step, 200, 0, sqrt(2)),
        (by_step, 399, 0, sqrt(2)),
        (by_step, 1000, 0, sqrt(6)),
        (by_epoch, 999, 19, 1.0),
        (by_epoch, 0, 20, sqrt(2)),
        (by_epoch, 0, 60, 2.0),
    ],
)
def test_how_sharp_the_tanh_is(rule, step, epoch, expected):
    assert rule(step, epoch) == pytest.approx(expected)


def sharper(step: int, epoch: int) -> float:
    """Differs between any two steps, and between two epochs."""
    return 1 + step / 10 + epoch / 3


def test_the_loss_sees_the_sharpness_of_its_step_and_its_epoch():
    split, model = some_split(), small_model().eval()
    objective, rows = HashObjective(HashNet(), known_of(split), sharper), torch.arange(6)
    codes = []
    for step, epoch in enumerate((0, 0, 2)):
        objective.hold(rows, epoch)
        found = objective(model, split.images[:6], split.labels[:6], seeded())
        codes.append(torch.tanh(sharper(step, epoch) * model(split.images[:6])).detach())
        batch = Batch(model(split.images[:6]), split.labels[:6], objective.known.all(), sharper(step, epoch))
        torch.testing.assert_close(found, HashNet()(batch))
        torch.testing.assert_close(objective.known.all().codes, codes[-1])
    assert objective.steps == 3 and objective.epoch == 2


def test_the_quantizer_stands_beside_the_loss():
    split, model, rows = some_split(), small_model().eval(), torch.arange(6)
    losses = []
    for weight in (0.0, 0.1):
        objective = HashObjective(DPH(), known_of(split), quantizer=weight)
        objective.hold(rows, 0)
        losses.append(objective(model, split.images[:6], split.labels[:6], seeded(3)))
    codes = torch.tanh(model(split.images[:6]))
    torch.testing.assert_close(losses[1], losses[0] + 0.1 * sliced_wasserstein(codes, seeded(3)))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), None])
def test_an_impossible_weight_of_the_quantizer_is_refused(weight):
    with pytest.raises(ValueError, match=f"quantizer={weight}: expected a finite number of at least 0"):
        HashObjective(DPH(), known_of(some_split()), quantizer=weight)


# In a training


LOSSES = {
    "DPH": (DPH, constant),
    "DSDH": (lambda: DSDH(SIZE, CLASSES, BITS), constant),
    "HashNet": (lambda: HashNet(), sharper),
    "GreedyHash": (lambda: GreedyHash(CLASSES, BITS), constant),
    "OrthoHash": (lambda: OrthoHash(CLASSES, BITS), constant),
}
of_losses = pytest.mark.parametrize("name", LOSSES)


def an_objective(name: str) -> HashObjective:
    torch.manual_seed(2)  # for weights of its own
    loss, rule = LOSSES[name]
    return HashObjective(loss(), known_of(some_split()), rule)


class Interrupted(Exception):
    pass


def stopping(model: HashModel, calls: int) -> HashModel:
    """It fails at a call."""
    seen = []

    def count(module: nn.Module, given: object) -> None:
        seen.append(1)
        if len(seen) > calls:
            raise Interrupted

    model.register_forward_pre_hook(count)
    return model


@of_losses
@pytest.mark.parametrize(("stop", "every"), [(1, 3), (4, 3), (6, 5), (14, 3)])
def test_stopped_and_resumed_it_ends_with_the_same_weights_and_the_same_codes(name, stop, every, tmp_path):
    """Before the first checkpoint, within an epoch, and from a checkpoint between two of them."""
    whole, undisturbed = small_model(), an_objective(name)
    train(whole, some_split(), undisturbed, SCHEDULE)
    arguments = SCHEDULE, tmp_path / "checkpoint", every
    with pytest.raises(Interrupted):
        train(stopping(small_model(), stop), some_split(), an_objective(name), *arguments)
    model, objective = small_model(), an_objective(name)
    train(model, some_split(), objective, *arguments)
    for mine, expected in ((model, whole), (objective, undisturbed)):
        for key, value in expected.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value), key
    assert objective.known.seen.all() and objective.steps == 20 and objective.epoch == 3
    assert not torch.equal(whole.backbone[1].weight, small_model().backbone[1].weight)


def test_the_checkpoint_has_the_codes_the_steps_and_the_epoch(tmp_path):
    objective = an_objective("HashNet")
    train(small_model(), some_split(), objective, SCHEDULE, tmp_path / "checkpoint")
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    weights = state["weights"]
    assert weights["objective.steps"] == 20 and weights["objective.epoch"] == 3
    assert torch.equal(weights["objective.known.codes"], objective.known.codes)
    assert "HashObjective" in state["identity"]["objective"] and "sharper" in state["identity"]["objective"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda known: HashObjective(DPSH(), known), "loss=DPSH"),
        (lambda known: HashObjective(DPH(), known, by_step), "continuation=by_step"),
        (lambda known: HashObjective(DPH(), known, quantizer=0.1), "quantizer=0.1"),
        (lambda known: HashObjective(DPH(), KnownCodes(known.labels, BITS, "zeros")), "unseen='zeros'"),
    ],
)
def test_a_checkpoint_of_another_hash_objective_is_refused(other, said, tmp_path):
    schedule, split = Schedule(steps=1, batch=8), some_split()
    train(small_model(), split, HashObjective(DPH(), known_of(split)), schedule, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=f"this training is .*{said}"):
        train(small_model(), split, other(known_of(split)), schedule, tmp_path / "checkpoint")


def test_codes_and_classifier_are_fitted_between_epochs_and_at_no_other_time(monkeypatch):
    fitted = []
    monkeypatch.setattr(DSDH, "between_epochs", lambda self, known: fitted.append(len(known.codes)))
    train(small_model(), some_split(), an_objective("DSDH"), SCHEDULE)
    assert fitted == [SIZE] * 3  # before the first step of the second, third and fourth


def test_a_pass_may_end_with_a_batch_of_one_image():
    """OrthoHash alone looks at the spread within a batch."""
    objective = an_objective("OrthoHash")
    history = train(small_model(), some_split(), objective, Schedule(steps=7, batch=6, lr=0.05))
    assert SIZE % 6 == 1 and history[-1]["loss"] > 0 and objective.known.seen.all()


def test_classifier_and_codes_of_dsdh_come_from_the_codes_that_are_known():
    split, objective = some_split(), an_objective("DSDH")
    train(small_model(), split, objective, SCHEDULE)
    another = DSDH(SIZE, CLASSES, BITS)
    assert not torch.equal(objective.loss.binary, another.binary)
    assert objective.loss.classifier.abs().sum() > 0
    agreement = (objective.loss.binary.T * objective.known.codes.sign()).mean()
    assert agreement > 0.25  # by chance 0; codes have moved on since


def test_in_evaluation_mode_nothing_is_kept():
    split, model, objective = some_split(), small_model().eval(), an_objective("HashNet")
    objective.hold(torch.arange(6), 0)
    trained = objective(model, split.images[:6], split.labels[:6], seeded())
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.eval()
    objective.hold(torch.arange(6, 12), 0)
    looked = objective(model, split.images[6:12], split.labels[6:12], seeded())
    assert looked.isfinite() and looked != trained
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_batch_of_which_nobody_has_said_what_it_is_is_refused():
    split, objective = some_split(), an_objective("DPH")
    with pytest.raises(RuntimeError, match=r"a batch of 4 images: expected hold\(rows, epoch\)"):
        objective(small_model(), split.images[:4], split.labels[:4], seeded())
    objective.hold(torch.arange(3), 0)
    with pytest.raises(RuntimeError, match="a batch of 4 images"):
        objective(small_model(), split.images[:4], split.labels[:4], seeded())


LEARNING = {
    "DPH": lambda size, bits: DPH(),
    "DPSH": lambda size, bits: DPSH(),
    "HashNet": lambda size, bits: HashNet(),
    "DCH": lambda size, bits: DCH(),
    "CSQ": lambda size, bits: CSQ(CLASSES, bits),
    "DPN": lambda size, bits: DPN(CLASSES, bits),
    "DSDH": lambda size, bits: DSDH(size, CLASSES, bits),
    "GreedyHash": lambda size, bits: GreedyHash(CLASSES, bits),
    "OrthoHash": lambda size, bits: OrthoHash(CLASSES, bits),
}


@pytest.mark.parametrize("name", LEARNING)
def test_a_hash_model_learns(name, bits=16):
    """What it is asked for it has not seen; some labels are missing, and of some there are two."""
    seen, asked, model = some_split(200), some_split(60, seed=9), small_model(bits)

    def found() -> float:
        codes = (codes_of(models.embed(model, split.images)) for split in (asked, seen))
        return hamming_map(*codes, asked.labels, seen.labels)

    before = found()
    torch.manual_seed(3)
    objective = HashObjective(LEARNING[name](200, bits), KnownCodes(seen.labels, bits), continuation.by_step)
    train(model, seen, objective, Schedule(150, batch=20, lr=5e-3, optimizer="rmsprop"))
    assert found() > before + 25


# Several processes

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from test_hash_objective import SCHEDULE, an_objective, plain_model, some_split
from robret_lib.training import process_group, train

torch.set_num_threads(1)
model, objective = plain_model(), an_objective("DSDH")
with process_group("cpu") as rank:
    train(model, some_split(), objective, SCHEDULE)
    state = {{"model": model.state_dict(), "objective": objective.state_dict()}}
    torch.save(state, Path({folder!r}) / f"end{{rank}}")
"""


def plain_model() -> HashModel:
    torch.manual_seed(4)
    return HashModel(nn.Sequential(nn.Flatten(), nn.Linear(36, BITS)))


@pytest.mark.slow
def test_two_processes_know_the_codes_of_both(tmp_path):
    """As if one held both batches at once, and took the mean of their gradients."""
    script, root = tmp_path / "worker.py", Path(__file__).parents[1]
    script.write_text(WORKER.format(tests=str(root / "tests"), root=str(root), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [torch.load(tmp_path / f"end{rank}", weights_only=True) for rank in (0, 1)]

    split, model, loss, known = some_split(), plain_model(), DSDH(SIZE, CLASSES, BITS), known_of(some_split())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=1e-4, momentum=0.9)
    shards = [training._batches(split.labels, SCHEDULE, 0, rank, 2) for rank in (0, 1)]
    for step in range(20):
        if step and step % 3 == 0:
            loss.between_epochs(known.all())
        batches = [next(shard) for shard in shards]
        both = known.with_batch(torch.cat(batches), torch.tanh(model(split.images[torch.cat(batches)])))
        losses = [loss(Batch(model(split.images[rows]), split.labels[rows], both)) for rows in batches]
        optimizer.zero_grad()
        (sum(losses) / 2).backward()
        optimizer.step()
    for end in ends:
        torch.testing.assert_close(end["model"], model.state_dict(), rtol=0, atol=1e-5)
        torch.testing.assert_close(end["objective"]["known.codes"], known.codes, rtol=0, atol=1e-5)
        assert end["objective"]["known.seen"].all() and end["objective"]["steps"] == 20
        torch.testing.assert_close(end["objective"]["loss.binary"], loss.binary)
