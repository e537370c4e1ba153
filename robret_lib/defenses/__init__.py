"""Defenses: what to minimize so that a network resists. Each is an objective of the one loop, `training.train`."""

from robret_lib.defenses.act import AntiCollapseTriplets

__all__ = ["AntiCollapseTriplets"]
