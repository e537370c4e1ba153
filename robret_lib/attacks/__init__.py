"""Attacks on image retrieval, in three parts that do not know each other.

What is wanted: `attack` for the form, `ranking`, `embedding`, `neighbors`, `order` and `hub`. How it is searched for:
`search`. The run that brings them together: `run`. For those who may only ask: `oracle`.
"""

from robret_lib.attacks import embedding, hub, neighbors, order, ranking
from robret_lib.attacks.attack import Attack, Benign, ListLoss, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.only_answers import OnlyAnswers
from robret_lib.attacks.oracle import QueryBudgetSpent, RankingOracle
from robret_lib.attacks.order import OrderAttack
from robret_lib.attacks.run import Result, run
from robret_lib.attacks.search import (
    NES,
    PGD,
    PSO,
    SPSA,
    AutoPGD,
    Averaged,
    Beta,
    RandomSearch,
    Search,
    Transfer,
    pgd,
)

__all__ = [
    "NES",
    "PGD",
    "PSO",
    "SPSA",
    "Attack",
    "AutoPGD",
    "Averaged",
    "Benign",
    "Beta",
    "Gallery",
    "ListLoss",
    "OnlyAnswers",
    "OrderAttack",
    "Plan",
    "QueryBudgetSpent",
    "RandomSearch",
    "RankingOracle",
    "Result",
    "Search",
    "Transfer",
    "embedding",
    "hub",
    "neighbors",
    "order",
    "pgd",
    "ranking",
    "run",
]
