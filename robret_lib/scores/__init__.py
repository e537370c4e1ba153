"""Scores: what is left of a search under attack.

`robust_recall` takes, query by query, the worst of the strongest attacks there are, and so does `robust_map` for hash
codes. `evaluate_ers` runs the attacks of the published tables, from whose rows `ers` makes their score and
`relative_robustness` ours.
"""

from robret_lib.scores.attack_rows import AttackRows, Interval, attack_rows, evaluate_ers
from robret_lib.scores.ers import ers
from robret_lib.scores.relative import relative_robustness
from robret_lib.scores.robust_map import RobustMap, robust_map
from robret_lib.scores.robust_recall import RobustRecall, robust_recall
from robret_lib.scores.suite import Effort

__all__ = [
    "AttackRows",
    "Effort",
    "Interval",
    "RobustMap",
    "RobustRecall",
    "attack_rows",
    "ers",
    "evaluate_ers",
    "relative_robustness",
    "robust_map",
    "robust_recall",
]
