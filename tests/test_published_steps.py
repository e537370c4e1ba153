"""Training steps of the published codes, as they came out of them, beside ours in mode "reference".

`published_steps.npz` holds what RobRank (cdluminate/robrank, 38ec207) and CA-TRIDE (michaeltian108/CA-TRIDE, 55366aa)
made of one batch of noise and a small network, in double precision: the perturbations, the loss, the gradient of the
last layer and the norm of the whole gradient. Triplets were drawn by ours and given to both. CA-TRIDE does not run as
released; its two attacks and its loss were called one by one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robret_lib import data, defenses, mining, models
from robret_lib.attacks import PGD
from robret_lib.mining import Triplets

PUBLISHED = np.load(Path(__file__).with_name("published_steps.npz"))
UNIT = 255 * 600
"""Of the perturbations, in which all of them are whole numbers."""

SEARCH = PGD(77 / 255, 3 / 255, 32)
STAIRS = PGD(77 / 255, 77 / 8 / 255, 16)
SMALL_STEPS, LONG_STEPS = PGD(8 / 255, 0.25 / 255, 32), PGD(77 / 255, 12 / 255, 8)
SHIFTS = {
    "EST": defenses.EmbeddingShiftedTriplets,
    "SES": defenses.ShiftSuppressedTriplets,
    "REST": defenses.ShiftedCandidateTriplets,
    "ACT": defenses.AntiCollapseTriplets,
    "min-max": defenses.MinMaxTriplets,
    "RAMD": defenses.CandidateMinMaxTriplets,
}
GRADUAL, BENIGN = defenses.Gradual(sampler=mining.semihard), defenses.Benign(mining.semihard)
MANIPULATIONS = {
    "HM gradual": (SMALL_STEPS, GRADUAL, 0.0),
    "HM gradual ICS": (LONG_STEPS, GRADUAL, 0.5),
    "HM benign": (SMALL_STEPS, BENIGN, 0.0),
}
EPOCHS, STEPS_PER_EPOCH = 75, 4
NAMES = [name.removesuffix(": loss") for name in PUBLISHED.files if name.endswith(": loss")]


def objective_of(name):
    kind, last = name.rsplit(" ", 1)
    if kind in SHIFTS:
        return SHIFTS[kind](SEARCH, mining.random, distance=last, mode="reference")
    if kind in MANIPULATIONS:
        search, destination, invariance = MANIPULATIONS[kind]
        objective = defenses.HardnessManipulation(
            search, mining.random, destination, invariance, distance=last, mode="reference"
        )
        objective.last_loss.value.fill_(0.1)
        return objective
    objective = defenses.CollapseAwareTriplets(STAIRS, STEPS_PER_EPOCH * EPOCHS, EPOCHS, 10.0, mode="reference")
    objective.progress.done.fill_(STEPS_PER_EPOCH * int(last) + (kind == "ANP"))
    return objective


def published_network(distance):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    for number, weight in enumerate(network.parameters()):
        weight.data = torch.from_numpy(PUBLISHED[f"weight {number}"]).double()
    return models.EmbeddingModel(network, distance)


@pytest.fixture
def seen(monkeypatch):
    """What went into the last attack, and what came out."""
    images, attack = [], PGD.__call__

    def noted(self, model, clean, loss_fn, generator=None):
        images[:] = clean, attack(self, model, clean, loss_fn, generator)
        return images[1]

    monkeypatch.setattr(PGD, "__call__", noted)
    return images


def triplets_of(name, number):
    """As they were given to both, or none: those of the batch, and those that HM takes as its destination."""
    key = f"{name}: triplets {number}"
    return Triplets(*torch.from_numpy(PUBLISHED[key]).long()) if key in PUBLISHED.files else None


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_published_one(name, seen):
    """Every pixel to a ten-thousandth of a gray level, the loss and the gradient to the last digits of a double."""
    images, labels = (torch.from_numpy(PUBLISHED[part]) for part in ("images", "labels"))
    objective, model = objective_of(name), published_network(name[-1] if name[-1] in "NEC" else "N")
    source, destination = (triplets_of(name, number) for number in (0, 1))
    objective.triplets = lambda *_: source
    if destination:
        objective.destined.triplets = lambda *_: destination
    loss = objective(model, data.as_float(images).double(), labels.long(), torch.Generator().manual_seed(7))
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])
    perturbation = torch.from_numpy(PUBLISHED[f"{name}: perturbation"]).double() / UNIT
    assert perturbation.abs().max() > 0.2 / 255
    torch.testing.assert_close(seen[1] - seen[0], perturbation, rtol=0, atol=1e-4 / 255)
    torch.testing.assert_close(loss, torch.from_numpy(PUBLISHED[f"{name}: loss"])[()], rtol=1e-9, atol=0)
    expected = torch.from_numpy(PUBLISHED[f"{name}: gradient"])
    torch.testing.assert_close(torch.cat([gradient[-36:], gradient.norm()[None]]), expected, rtol=1e-7, atol=1e-9)
