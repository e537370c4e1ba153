"""Our own score of the ten rows: each relative to what the model did before the attack."""

from collections.abc import Mapping

import torch
from torch import Tensor

from robret_lib.scores.ers import NORMALIZED, check_rows

CHANCE, RETAINED_BY_CHANCE, PAIR = "R@1 by chance", "GTT by chance", "pair distance"
"""Names in ``benign`` beside the rows and "R@1"."""

BROKEN: dict[str, float | str] = {
    "CA+": 0.0,
    "CA-": 100.0,
    "QA+": 0.0,
    "QA-": 100.0,
    "TMA": 1.0,
    "ES:D": PAIR,
    "ES:R": CHANCE,
    "LTM": CHANCE,
    "GTM": CHANCE,
    "GTT": RETAINED_BY_CHANCE,
}
"""Where a row ends when the attacker has all he wants: a value, or the name of the one in ``benign``."""

NOTHING, WORKING = 0.1, 0.2
"""The share of the way from chance to perfect up to which a model finds nothing, and from which it counts in full."""


def relative_robustness(rows: Mapping[str, float], benign: Mapping[str, float]) -> float:
    """How much of what the model does an attacker leaves it, from 0 to 100; our own score, of no paper.

    ERS mixes three things: what the model can do at all, how its embedding is spread, and what an attack changes. This
    score asks for the last alone. With v a row under attack, b the same row before, and z the value at which the
    attack has all it wants, the row counts as the share of the way from z to b that is left,

        100 (v - z) / (b - z), cut to [0, 100], and 0 where b is z: what was never there cannot be kept.

    So every row is 0 where it is broken and 100 where it is unmoved, whatever its unit and its attainable range:

    - CA+, QA+: z = 0, the first place. CA-, QA-: z = 100, the last.
    - TMA: z = 1, the embedding is the target's. Before the attack the cosine is that of a random pair.
    - ES:D: z = the mean distance of two gallery items: moved so far, the image may be any other. Since this is measured
      in the model's own distance, shrinking all distances gains nothing, nor does a common offset.
    - ES:R, LTM, GTM: z = the R@1 of the best answer that does not look at the image, always the same item, for all
      queries of the data set; an attacked R@1 below it is no worse than one at it. GTT: z = how often a random ranking
      keeps an item in its top 4.

    The score is the mean of the ten, times ``(skill - 0.1) / 0.1``, cut to [0, 1], where skill is the share of the way
    from that chance to 100 that the benign R@1 has gone. A model that finds nothing, collapsed, dead or random, has
    nothing to lose: half of its rows do not move, and it scores 0. Any model that goes a fifth of the way is not marked
    down for what it cannot do. How many queries were asked changes the interval (`attack_rows.AttackRows.relative`),
    not what is estimated.

    Args:
        rows: The ten rows under attack, as of `ers.ers`.
        benign: The same rows before, "R@1", "R@1 by chance" and "GTT by chance" in percent, and "pair distance", as
            `attack_rows.AttackRows` has them.

    Raises:
        ValueError: Rows or benign values that are missing.
    """
    check_rows(rows)
    needed = [*NORMALIZED, "R@1", CHANCE, RETAINED_BY_CHANCE, PAIR]
    if missing := [name for name in needed if name not in benign]:
        raise ValueError(f"benign: {', '.join(missing)} missing; expected {', '.join(needed)}")
    before = {name: torch.as_tensor(benign[name], dtype=torch.float64) for name in needed}
    return relative({name: torch.as_tensor(rows[name], dtype=torch.float64) for name in NORMALIZED}, before).item()


def relative(rows: Mapping[str, Tensor], benign: Mapping[str, Tensor]) -> Tensor:
    """The same of float64 tensors of one shape, such as many draws at once."""
    left = torch.stack([left_of(name, value, benign) for name, value in rows.items()]).mean(0)
    skill = (benign["R@1"] - benign[CHANCE]) / (100 - benign[CHANCE]).clamp(min=1e-9)
    return left * ((skill - NOTHING) / (WORKING - NOTHING)).clamp(0, 1)


def left_of(name: str, value: Tensor, benign: Mapping[str, Tensor]) -> Tensor:
    """How much of a row is left, 0 to 100."""
    broken = BROKEN[name]
    broken = benign[broken] if isinstance(broken, str) else torch.full_like(value, broken)
    way = benign[name] - broken
    return (100 * (value - broken) / torch.where(way == 0, torch.inf, way)).clamp(0, 100)
