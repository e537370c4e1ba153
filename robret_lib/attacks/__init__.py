"""Attacks on image retrieval: `attacks.PGD` is the budget and `attacks.pgd` the engine of all of them."""

from robret_lib.attacks.pgd import PGD, pgd

__all__ = ["PGD", "pgd"]
