"""What all defenses of hash codes share: passes, modes, the ball, weights, resumption, two processes, and errors."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, Transfer
from robret_lib.data import Split
from robret_lib.hashing import DPH, HashObjective, KnownCodes
from robret_lib.models import HashModel
from robret_lib.training import Schedule, train
from tests.small_hash_defenses import (
    BATCHES,
    BITS,
    DEFENSES,
    INNER,
    MODES,
    a_defense,
    first_codes,
    given,
    in_all_modes,
    of_all,
    seeded,
    small_network,
    some_split,
)
from tests.test_hash_objective import SIZE, Interrupted, small_model, stopping

ROWS = BATCHES[0]


def passes_of(model: HashModel) -> list[tuple[int, tuple[bool, ...]]]:
    """Grows with every forward pass: of how many images, and the modes of all modules."""
    passes = []
    modes = [*model.modules()]
    model.register_forward_pre_hook(
        lambda _, images: passes.append((len(images[0]), tuple(module.training for module in modes)))
    )
    return passes


@in_all_modes
def test_a_batch_costs_the_steps_of_the_attack_and_one_pass_more(name, mode):
    """In which clean and attacked images are together; each in its mode, and the network is left in its own."""
    model = small_network(0.3).train()
    model.backbone[2].eval()
    before = tuple(module.training for module in model.modules())
    passes = passes_of(model)
    given(a_defense(name, mode), model, ROWS)
    attacked = tuple(mode == "reference" and training for training in before)
    assert passes == [(5, attacked)] * INNER.steps + [(10, before)]
    assert tuple(module.training for module in model.modules()) == before
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


@in_all_modes
def test_the_attack_stays_in_the_ball_and_among_images(name, mode, searches):
    split = some_split()
    extreme = Split((2 * split.images - 0.5).clamp(0, 1), split.labels)
    given(a_defense(name, mode), small_network(0.3), ROWS, split=extreme)
    ((clean, moved),) = searches
    assert torch.equal(clean, extreme.images[ROWS]) and (clean == 0).any() and (clean == 1).any()
    change = (moved - clean).abs()
    assert change.max() <= INNER.eps + 1e-6 and (change.flatten(1).amax(1) > 0.9 * INNER.eps).all()
    assert moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in DEFENSES if name != "atrdh"])
def test_the_attack_makes_codes_dear(name, mode, searches):
    """But where the published center is none, of an image without a label."""
    defense, model, labels = a_defense(name, mode), small_network(), some_split().labels[ROWS]
    price = defense.price(defense.label_information(labels))
    given(defense, model, ROWS)
    ((clean, moved),) = searches
    before, after = (price(torch.tanh(model(images))) for images in (clean, moved))
    told = labels.bool().any(1) if (name, mode) == ("cgat", "reference") else torch.ones(5, dtype=torch.bool)
    assert torch.equal(after > before, told)


@in_all_modes
def test_without_a_weight_clean_images_teach_nothing_but_are_known(name, mode):
    """Here codes cost nothing either."""
    model, defense = small_network(), a_defense(name, mode, hashing_weight=0, adversarial_weight=0, quantization=0)
    loss = given(defense, model, ROWS)
    loss.backward()
    assert not any(weight.grad.any() for weight in model.parameters())
    expected = torch.tanh(model(some_split().images[ROWS]))
    torch.testing.assert_close(defense.clean.known.codes[ROWS], expected.detach())
    assert defense.clean.known.seen[ROWS].all() and defense.clean.steps == 1


@in_all_modes
def test_every_weight_reaches_the_loss(name, mode):
    nothing, made = {"hashing_weight": 0, "adversarial_weight": 0, "quantization": 0}, {}
    for field in (None, *nothing):
        weights = nothing if field is None else nothing | {field: 1}
        made[field] = given(a_defense(name, mode, **weights), small_network(0.3), ROWS).item()
    several = {"hashing_weight": 0.5, "adversarial_weight": 2, "quantization": 0.1}
    expected = made[None] + sum(several[field] * (made[field] - made[None]) for field in several)
    assert given(a_defense(name, mode, **several), small_network(0.3), ROWS).item() == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 4) for value in made.values()}) == 4


@in_all_modes
def test_labels_may_be_numbers(name, mode):
    classes = torch.arange(SIZE) % 4
    hot = nn.functional.one_hot(classes, 4)
    losses = []
    for labels in (classes, hot):
        clean = HashObjective(DPH(), KnownCodes(hot, BITS, "zeros" if mode == "reference" else "left out"))
        clean.known.fill(first_codes())
        torch.manual_seed(3)
        defense = DEFENSES[name](INNER, clean, mode=mode).train()
        losses.append(given(defense, small_network(0.3), ROWS, split=Split(some_split().images, labels)))
    assert torch.equal(*losses)


@in_all_modes
def test_nothing_flows_through_what_is_known(name, mode):
    defense = a_defense(name, mode)
    given(defense, small_network(), ROWS).backward()
    assert not any(buffer.requires_grad for buffer in defense.buffers())
    asked = defense.label_information(some_split().labels[ROWS])
    for cost in (defense.price(asked), defense.inner_loss(asked, seeded())):
        codes = torch.zeros(5, BITS, requires_grad=True)
        cost(codes).sum().backward()
        assert cost(codes.detach()).grad_fn is None and codes.grad.shape == (5, BITS)


@of_all
def test_in_evaluation_mode_nothing_is_kept(name):
    defense = a_defense(name).eval()
    before = {key: value.clone() for key, value in defense.state_dict().items()}
    assert given(defense, small_network(), ROWS).isfinite()
    assert all(torch.equal(value, before[key]) for key, value in defense.state_dict().items())


@of_all
def test_any_search_by_gradients_will_do(name):
    for search in (AutoPGD(0.1, 4, random_start=True), PGD(0.1, 0.1, 1), Averaged(PGD(0.1, 0.1, 1), 2)):
        assert given(a_defense(name, search=search), small_network(0.3), ROWS).isfinite()


def test_codes_of_another_batch_are_no_codes_of_this_one():
    defense, split = a_defense("pairs"), some_split()
    with pytest.raises(RuntimeError, match=r"a batch of 5 images: expected hold\(rows, epoch\)"):
        defense(small_network(), split.images[ROWS], split.labels[ROWS], seeded())


# In a training

STEPS_OF_A_DEFENSE = INNER.steps + 1
QUICK = Schedule(steps=12, batch=8, lr=0.05, seed=5, optimizer="sgd", momentum=0.9)


@in_all_modes
def test_stopped_and_resumed_it_ends_with_the_same_weights_and_the_same_codes(name, mode, tmp_path):
    """In the middle of an attack, in the second pass over the training set; the last checkpoint is from the first."""
    whole, undisturbed = small_model(), a_defense(name, mode)
    train(whole, some_split(), undisturbed, QUICK)
    arguments = QUICK, tmp_path / "checkpoint", 4
    with pytest.raises(Interrupted):
        train(stopping(small_model(), 7 * STEPS_OF_A_DEFENSE + 2), some_split(), a_defense(name, mode), *arguments)
    assert torch.load(tmp_path / "checkpoint", weights_only=True)["step"] == 4
    model, resumed = small_model(), a_defense(name, mode)
    train(model, some_split(), resumed, *arguments)
    for mine, expected in ((model, whole), (resumed, undisturbed)):
        for key, value in expected.state_dict().items():
            assert torch.equal(mine.state_dict()[key], value), key
    assert resumed.clean.known.seen.all() and resumed.clean.steps == 12 and resumed.clean.epoch == 2
    begun = {**small_model().state_dict(), **a_defense(name, mode).state_dict()}
    for key in ("backbone.1.weight", *(key for key in begun if "network.code" in key)):
        assert not torch.equal({**whole.state_dict(), **undisturbed.state_dict()}[key], begun[key]), key


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: a_defense("saat"), "MainstayGuided"),
        (lambda: a_defense("cgat", adversarial_weight=2.0), "adversarial_weight=2.0"),
        (lambda: a_defense("cgat", hashing_weight=0.5), "hashing_weight=0.5"),
        (lambda: a_defense("cgat", quantization=0.5), "quantization=0.5"),
        (lambda: a_defense("cgat", "reference"), "mode='reference'"),
        (lambda: a_defense("cgat", weights="cosine"), "weights='cosine'"),
        (lambda: a_defense("cgat", search=PGD(0.2, 0.04, 3, random_start=True)), "eps=0.2"),
    ],
)
def test_a_checkpoint_of_another_defense_is_refused(other, said, tmp_path):
    schedule, split = Schedule(steps=1, batch=8), some_split()
    train(small_model(), split, a_defense("cgat"), schedule, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=f"this training is .*{said}"):
        train(small_model(), split, other(), schedule, tmp_path / "checkpoint")


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
import torch
from robret_lib.training import process_group, train
from tests.small_hash_defenses import IN_ALL_MODES, a_defense, some_split
from tests.test_attacked_codes import QUICK, small_model

torch.set_num_threads(1)
with process_group("cpu") as rank:
    for name, mode in IN_ALL_MODES:
        model, defense = small_model(), a_defense(name, mode)
        history = train(model, some_split(), defense, QUICK)
        state = {{"model": model.state_dict(), "defense": defense.state_dict(), "history": history}}
        torch.save(state, Path({folder!r}) / f"{{name}}, {{mode}}, {{rank}}")
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_the_codes_of_both(tmp_path):
    script, root = tmp_path / "worker.py", Path(__file__).parents[1]
    script.write_text(WORKER.format(root=str(root), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, mode in [(name, mode) for name in DEFENSES for mode in MODES]:
        ends = [torch.load(tmp_path / f"{name}, {mode}, {rank}", weights_only=True) for rank in (0, 1)]
        for part in ("model", "defense"):
            torch.testing.assert_close(ends[1][part], ends[0][part], rtol=0, atol=0)
        codes = ends[0]["defense"]["clean.known.codes"]
        assert ends[0]["defense"]["clean.known.seen"].all() and ends[0]["defense"]["clean.steps"] == QUICK.steps
        assert (codes.abs() < 1).all() and (codes != 0).all()  # relaxed: none is left of those before training
        assert ends[0]["history"][-1]["loss"] != ends[1]["history"][-1]["loss"]
        assert not torch.equal(ends[0]["model"]["backbone.1.weight"], small_model().backbone[1].weight)


@pytest.mark.parametrize("name", ["cgat", "saat", "prototypes"])
def test_a_network_learns_to_keep_its_codes_under_attack(name):
    """Measured by center codes. (Those that are guided by pairs need more than the few images here.)"""
    split, plain, defended = some_split(), small_network(), small_network()
    schedule = Schedule(50, batch=12, lr=5e-3)
    train(plain, split, HashObjective(DPH(), KnownCodes(split.labels, BITS)), replace(schedule, steps=100))
    defended.load_state_dict(plain.state_dict())
    defense = a_defense(name, known=False)
    defense.clean.known.fill(torch.tanh(plain(split.images)).detach())
    train(defended, split, defense, schedule)
    assert agreement_under_attack(defended, split) > agreement_under_attack(plain, split) + 0.1


def agreement_under_attack(model, split):
    """The mean over images with a label, and over bits, of the relaxed code times the center code."""
    judge = a_defense("cgat", known=False)
    judge.clean.known.fill(torch.tanh(model(split.images)).detach())
    price = judge.price(judge.label_information(split.labels))
    moved = PGD(0.1, 0.02, 20)(model, split.images, lambda outputs: -price(torch.tanh(outputs)), seeded())
    return -price(torch.tanh(model(moved)))[split.labels.bool().any(1)].mean().item()


# Errors


@of_all
@pytest.mark.parametrize("field", ["adversarial_weight", "hashing_weight", "quantization"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), None])
def test_an_impossible_weight_is_refused(name, field, value):
    with pytest.raises(ValueError, match=rf"^{field}={value}: expected a finite number of at least 0"):
        a_defense(name, **{field: value})


@of_all
def test_a_mode_nobody_knows_is_refused(name):
    with pytest.raises(ValueError, match="mode='Reference': expected 'fixed' or 'reference'"):
        a_defense(name, "Reference")


@of_all
def test_a_search_by_values_one_on_another_network_and_none_are_refused(name):
    made = DEFENSES[name].__name__
    for search in (NES(0.1), Averaged(NES(0.1), 2), Transfer(small_network(), INNER)):
        with pytest.raises(TypeError, match=f"{made} with a (NES|Transfer): expected a search by gradients"):
            a_defense(name, search=search)
    with pytest.raises(TypeError, match=f"{made} with the class PGD: expected a search, such as"):
        a_defense(name, search=PGD)


@of_all
def test_codes_that_are_known_with_class_numbers_are_refused(name):
    clean = HashObjective(DPH(), KnownCodes(torch.arange(SIZE) % 4, BITS))
    with pytest.raises(ValueError, match=r"labels int \[N\] of the known codes: expected multi-hot \[N, C\]"):
        DEFENSES[name](INNER, clean)


def slopes_met(mode):
    """Of a network with outputs that make tanh flat: for how many images of a batch the inner attack has a slope."""
    model, defense, met = small_network(), a_defense("cgat", mode), []
    with torch.no_grad():
        model.backbone[-1].weight.mul_(1e4)

    def search(network, images, loss_fn, generator=None):
        images = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(network(images)).sum(), images)
        met.append(int(slope.flatten(1).any(1).sum()))
        return images.detach()

    defense.search = search
    given(defense, model, torch.arange(16))
    return met


def test_large_outputs_do_not_blind_the_inner_attack():
    """As published, they do."""
    assert slopes_met("fixed") == [16] and slopes_met("reference")[0] < 8


def test_small_outputs_are_seen_as_they_are():
    defense, outputs = a_defense("cgat"), 3 * torch.rand(5, 8, generator=seeded())
    assert torch.equal(defense._seen_by_attack(outputs), torch.tanh(outputs))
    assert torch.equal(defense._seen_by_attack(torch.zeros(2, 8)), torch.zeros(2, 8))
