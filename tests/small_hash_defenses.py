"""What the tests of the defenses of hash codes share: a training set, small networks, the defenses, and slow losses.

The slow losses go image by image and pair by pair, in float64, so that no sign of a gradient depends on the order of
sums. The network alone sees a batch at once, as dropout draws for all of it.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robret_lib.attacks import PGD
from robret_lib.data import Split
from robret_lib.defenses import CenterGuided, MainstayGuided, PairGuided, PrototypeGuided, PrototypeTargeted
from robret_lib.hashing import DPH, HashObjective, KnownCodes
from robret_lib.models import HashModel
from tests.test_hash_objective import BITS, SIZE, seeded, some_split

INNER = PGD(0.1, 0.04, 3, random_start=True)
MODES = ["fixed", "reference"]
DEFENSES = {
    "atrdh": PrototypeTargeted,
    "cgat": CenterGuided,
    "saat": MainstayGuided,
    "pairs": PairGuided,
    "prototypes": PrototypeGuided,
}
IN_ALL_MODES = [(name, mode) for name in DEFENSES for mode in MODES]
of_all = pytest.mark.parametrize("name", DEFENSES)
in_all_modes = pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)


def small_network(dropout: float = 0.0) -> HashModel:
    torch.manual_seed(1)
    return HashModel(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, BITS))
    )


def first_codes() -> Tensor:
    """Of the training set, before training."""
    return 2.0 * torch.randint(0, 2, (SIZE, BITS), generator=seeded(6)) - 1


def a_defense(name: str, mode: str = "fixed", known: bool | None = None, search=INNER, **more: object) -> nn.Module:
    """In training mode; codes are known but to ATRDH as published."""
    unseen = "zeros" if mode == "reference" else "left out"
    clean = HashObjective(DPH(), KnownCodes(some_split().labels, BITS, unseen))
    if known or (known is None and (name, mode) != ("atrdh", "reference")):
        clean.known.fill(first_codes())
    torch.manual_seed(3)
    return DEFENSES[name](search, clean, mode=mode, **more).train()


def given(defense: nn.Module, model: nn.Module, rows: Tensor, seed: int = 7, split: Split | None = None) -> Tensor:
    """The loss of a batch."""
    split = some_split() if split is None else split
    defense.clean.hold(rows, 0)
    torch.manual_seed(seed)  # of dropout
    kind = next(model.parameters()).dtype
    return defense(model, split.images[rows].to(kind), split.labels[rows], seeded(seed))


@dataclass
class SlowKnown:
    """Codes of the training set, their labels, and which have been seen."""

    codes: Tensor
    labels: Tensor
    seen: Tensor

    @classmethod
    def of(cls, defense: nn.Module) -> "SlowKnown":
        known = defense.clean.known
        return cls(known.codes.double().clone(), known.labels.clone(), known.seen.clone())

    def __iter__(self):
        """Pairs of a code and its labels, of those that have been seen."""
        return iter([(self.codes[i], self.labels[i]) for i in range(len(self.codes)) if self.seen[i]])


def share(one: Tensor, other: Tensor) -> bool:
    return bool((one * other).sum() > 0)


def slow_pair_price(code: Tensor, label: Tensor, known: SlowKnown, unseen: int = 0) -> Tensor:
    """``mean_j (h . U_j / K - s_j)^2``; of ``unseen`` images the code is 0, and so the price 1."""
    prices = [((code * other).sum() / BITS - (1 if share(label, theirs) else -1)) ** 2 for other, theirs in known]
    return (sum(prices) + unseen) / (len(prices) + unseen)


def slow_look(outputs: Tensor, mode: str) -> Tensor:
    """What the inner attack sees of the outputs of an image: as published, or with a root mean square of 5 at most."""
    size = (sum(value.item() ** 2 for value in outputs) / len(outputs)) ** 0.5
    return torch.tanh(outputs if mode == "reference" or size <= 5 else 5 * outputs / size)


def slow_loss(model, split, rows, known, price, wish=None, own=None, mode="fixed", weights=(1, 1, 0), seed=7):
    """Of a batch, whose codes are known afterwards.

    Args:
        price: Of all labels of a batch and what is known, one function of a code for each image.
        wish: As the price, and a generator; what the attack makes small.
        own: A scalar of the size of a batch, what is known, and the generator.
        weights: Of the clean loss, of the price, and of quantization.
    """
    torch.manual_seed(seed)
    generator, images, labels = seeded(seed), split.images[rows].double(), split.labels[rows]
    if wish is None:
        wishes = [lambda code, cost=cost: -cost(code) for cost in price(labels, known)]
    else:
        wishes = wish(labels, known, generator)
    model.train(mode == "reference")
    start = torch.rand(len(rows), 1, *images.shape[1:], generator=generator)[:, 0].double() * 2 - 1
    moved = (images + INNER.eps * start).clamp(0, 1)
    for _ in range(INNER.steps):
        moved = moved.detach().requires_grad_()
        codes = torch.stack([slow_look(outputs, mode) for outputs in model(moved)])
        (slope,) = torch.autograd.grad(sum(want(code) for want, code in zip(wishes, codes, strict=True)), moved)
        moved = moved.detach() - INNER.step * slope.sign()
        moved = moved.clamp(images - INNER.eps, images + INNER.eps).clamp(0, 1)
    model.train()
    clean, attacked = torch.tanh(model(torch.cat([images, moved]))).chunk(2)
    for row, code in zip(rows.tolist(), clean.detach(), strict=True):
        known.codes[row], known.seen[row] = code, True
    unseen = int((~known.seen).sum()) if mode == "reference" else 0
    losses = [slow_pair_price(code, label, known, unseen) for code, label in zip(clean, labels, strict=True)]
    prices = [cost(code) for cost, code in zip(price(labels, known), attacked, strict=True)]
    blurs = [(bit - bit.sign().item()) ** 2 for bit in attacked.flatten()]
    mean = sum(weight * sum(each) / len(each) for weight, each in zip(weights, (losses, prices, blurs), strict=True))
    return mean + own(len(rows), known, generator) if own else mean


BATCHES = torch.tensor([0, 7, 12, 5, 31]), torch.tensor([7, 8, 0, 11, 20])
"""Rows of two batches, some of them in both; of 7 and 11 there are no labels."""

HARD = [("fixed", 0.0), ("fixed", 0.3), ("reference", 0.0), ("reference", 0.3)]
in_modes_with_dropout = pytest.mark.parametrize(("mode", "dropout"), HARD)
WEIGHTS = {"hashing_weight": 0.7, "adversarial_weight": 0.6, "quantization": 0.3}
DEFAULTS = {"hashing_weight": 1.0, "adversarial_weight": 1.0, "quantization": 0.0}


def assert_the_loss_is(name, mode, dropout, price, wish=None, own=None, **made):
    """Of two batches one after the other, with the gradients of all weights and the codes that are known then.

    ``wish`` and ``own`` are made for the defense, whose weights they look at; ``made`` is what it is made with.
    """
    made = made or WEIGHTS
    split, defense, model = some_split(), a_defense(name, mode, **made).double(), small_network(dropout).double()
    known, weights = SlowKnown.of(defense), [made.get(field, default) for field, default in DEFAULTS.items()]
    learned = [weight for weight in (*model.parameters(), *defense.parameters()) if weight.requires_grad]
    parts = price, wish and wish(defense), own and own(defense)
    for rows in BATCHES:
        expected = slow_loss(model, split, rows, known, *parts, mode, weights)
        slopes = torch.autograd.grad(expected, learned)
        found = given(defense, model.train(), rows)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(found, learned), slopes, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(defense.clean.known.codes, known.codes)
        assert torch.equal(defense.clean.known.seen, known.seen)
