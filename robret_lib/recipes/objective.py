"""What a recipe with a defense minimizes."""

from torch import nn

from robret_lib import defenses, mining
from robret_lib.attacks import PGD
from robret_lib.defenses import Benign, Constant, Gradual
from robret_lib.recipes.recipe import DefenseName, DestinationName, Recipe

OF_TRIPLETS: dict[DefenseName, type[nn.Module]] = {
    "est": defenses.EmbeddingShiftedTriplets,
    "ses": defenses.ShiftSuppressedTriplets,
    "rest": defenses.ShiftedCandidateTriplets,
    "act": defenses.AntiCollapseTriplets,
    "min_max": defenses.MinMaxTriplets,
    "ramd": defenses.CandidateMinMaxTriplets,
    "panum": defenses.PanumTriplets,
}
"""Those that need nothing but a search and a sampler."""

DESTINATIONS: dict[DestinationName, defenses.Destination] = {
    "gradual": Gradual(),
    "squared": Gradual(2.0),
    "root": Gradual(0.5),
    "benign": Benign(),
    "boosted": Benign(boost=0.1),
}

START_AT_RANDOM = ("panum", "fare", "neighborhood")


def of_defense(recipe: Recipe, original: nn.Module | None = None) -> nn.Module:
    """The objective of a recipe with a defense.

    Args:
        recipe: See `Recipe`.
        original: The network that "fare" starts from; the others do without.
    """
    name, distance, mode, sampler = recipe.defense, recipe.distance, recipe.mode, getattr(mining, recipe.sampler)
    search = PGD(recipe.eps, recipe.inner_step, recipe.inner_steps, random_start=name in START_AT_RANDOM)
    search = defenses.DrawnRadius(search) if recipe.drawn_radius else search
    if name == "hm":
        given = recipe.destination
        destination = DESTINATIONS[given] if isinstance(given, str) else Constant(given)
        return defenses.HardnessManipulation(search, sampler, destination, recipe.invariance, distance, mode)
    if name == "ca_tride":
        return defenses.CollapseAwareTriplets(
            search, recipe.steps, sharpness=recipe.sharpness, distance=distance, mode=mode
        )
    if name == "fare":
        return defenses.FixedTargets(search, original)
    if name == "neighborhood":
        return defenses.KeptNeighborhood(
            search, recipe.steps, recipe.temperature, recipe.margin, recipe.clean_weight, recipe.ramp
        )
    return OF_TRIPLETS[name](search, sampler, distance, mode)
