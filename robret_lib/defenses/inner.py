"""What all defenses by triplets share: an attack on some of the roles, made anew in every step of training."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from robret_lib import mining
from robret_lib.attacks import Search, Transfer
from robret_lib.attacks.search.passes import check_search
from robret_lib.attacks.search.values import ValueSearch
from robret_lib.distances import row_distance
from robret_lib.mining import Mode, Sampler
from robret_lib.models import Distance, embed
from robret_lib.objectives import MARGIN, OFFSET, TripletObjective


class AttackedTriplets(TripletObjective):
    """A triplet loss of images that an inner attack has moved; which ones and where to is for the subclass to say.

    Args:
        search: The inner attack, by gradients: a loss may look at several images, which none by values is made for.
        sampler, distance, mode: As in `TripletObjective`. In mode "reference" a sampler is given the margin that the
            published code gives it, which for ACT, REST, min-max and RAMD with distance "N" is not that of the loss;
            only `mining.semihard` looks at it. And `mining.softhard` may take an anchor for its own positive.

    Raises:
        TypeError: No search, one by values, such as `NES`, which moves one image at a time, or one on another network.
        ValueError: As `TripletObjective`.
    """

    published_sampling_margin: ClassVar[dict[Distance, float]] = MARGIN | {"N": MARGIN["E"]}

    def __init__(
        self, search: Search, sampler: Sampler = mining.random, distance: Distance = "N", mode: Mode = "fixed"
    ) -> None:
        super().__init__(sampler, distance, mode)
        check_inner(self, search)
        self.search = search
        if mode == "reference":
            self.sampling_margin = self.published_sampling_margin[distance]

    def clean_triplets(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        margin: float | None = None,
    ) -> tuple[Tensor, mining.Triplets]:
        """Embeddings ``[2P, D]`` of the clean batch, without gradients, and triplets drawn from them.

        Arguments: as in `TripletObjective.triplets`.
        """
        self.check(model)
        clean = embed(model, images)
        return clean, self.triplets(clean, labels, generator, margin)

    def triplets_to_attack(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> mining.Triplets:
        """The triplets of `clean_triplets` alone: what looks at no distance needs no pass of the network."""
        if self.sampler is not mining.random:
            return self.clean_triplets(model, images, labels, generator)[1]
        self.check(model)
        return self.triplets(images.new_zeros(len(images), 1), labels, generator)

    def apart(self, one: Tensor, other: Tensor) -> Tensor:
        """Distances ``[*]`` of broadcastable embeddings ``[*, D]`` as the triplet loss takes them."""
        return row_distance(one, other, self.distance, OFFSET)

    def hardness(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """H ``[P]``: how much further from the anchor ``[P, D]`` the positive lies than the negative."""
        return self.apart(anchor, positive) - self.apart(anchor, negative)


class Shift:
    """The inner loss of EST, SES and REST: minus the distance of each embedding to where it was.

    At the clean image itself that has no slope. Mode "fixed" measures from a point aside, see `a_hair_aside`. The
    published code does so in the first step, too, but only by 1e-7 in each coordinate; for "N" and "E" a tenth of what
    PyTorch adds inside the norm, so that all images set out in the same direction. Mode "reference" keeps that
    (RobRank, `AdvRank.embShift`).

    Args:
        clean: Embeddings ``[B, D]`` without gradients.
        distance, mode: Of the objective.
        generator: Of the directions.
    """

    JITTER = 1e-7

    def __init__(self, clean: Tensor, distance: Distance, mode: Mode, generator: torch.Generator) -> None:
        self.distance = distance
        if mode == "fixed":
            self.first = self.later = a_hair_aside(clean, generator)
        else:
            signs = torch.randint(-1, 2, clean.shape, generator=generator, device=clean.device)
            self.first, self.later = clean + self.JITTER * signs, clean

    def __call__(self, embeddings: Tensor) -> Tensor:
        origin, self.first = self.first, self.later
        return -row_distance(embeddings, origin, self.distance, OFFSET)


HAIR = 1e-3
"""In lengths of an embedding."""


def a_hair_aside(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Points `HAIR` away from embeddings ``[B, D]``, each in a direction of its own."""
    aside = torch.randn(clean.shape, generator=generator, device=clean.device).to(clean)
    return clean + HAIR * clean.norm(dim=1, keepdim=True) * normalize(aside, dim=1)


def check_inner(of: nn.Module, search: Search) -> None:
    """Raise a TypeError unless it is a search by the gradients of the network that is trained.

    Such a one may follow a loss of several images.
    """
    check_search(of, search)
    for inner in (search, innermost(search)):
        if isinstance(inner, ValueSearch | Transfer):
            raise TypeError(
                f"{type(of).__name__} with a {type(inner).__name__}: expected a search by gradients, PGD or AutoPGD"
            )


def innermost(search: Search) -> Search:
    """The search inside of `DrawnRadius`, `Averaged` or `Transfer`, or itself."""
    while hasattr(search, "search"):
        search = search.search
    return search
