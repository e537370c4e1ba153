"""Attacks on image retrieval, in three parts that do not know each other.

What is wanted: `attack` for the form, `ranking`, `embedding`, `neighbors` and `hub`. How it is searched for: `search`.
The run that brings them together: `run`.
"""

from robret_lib.attacks import embedding, hub, neighbors, ranking
from robret_lib.attacks.attack import Attack, Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.run import Result, run
from robret_lib.attacks.search import PGD, AutoPGD, Averaged, Search, Transfer, pgd

__all__ = [
    "PGD",
    "Attack",
    "AutoPGD",
    "Averaged",
    "Benign",
    "Gallery",
    "Plan",
    "Result",
    "Search",
    "Transfer",
    "embedding",
    "hub",
    "neighbors",
    "pgd",
    "ranking",
    "run",
]
