"""Attack one network by searching on another: what an attacker can do who may not look into the first."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.search.passes import Loss, Search, check_search
from robret_lib.models import EmbeddingModel, distance_of


@dataclass(frozen=True)
class Transfer:
    """Search on a surrogate; the images are then measured on the model, which the search never asks.

    The loss is rebuilt in the surrogate's own space: its embeddings of gallery and queries, the same positions as
    targets. (RobRank's transfer mode compares embeddings of the two networks with each other.)

    Args:
        surrogate: Embeds the same images, on the same device; its dimension and distance may differ.
        search: Any `Search`, on the surrogate.
        gallery: The attacked gallery as the surrogate embeds it, for many runs on one; None embeds it in each.
    """

    surrogate: EmbeddingModel
    search: Search
    gallery: Gallery | None = field(default=None, repr=False)

    never_averaged = "the surrogate is what is searched: expected Transfer(surrogate, Averaged(search, n))"

    def __post_init__(self) -> None:
        check_search(self, self.search)
        distance_of(self.surrogate)

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        if not hasattr(loss_fn, "on"):
            raise TypeError(
                "Transfer needs a loss that can be rebuilt for the surrogate, as attacks.run makes them; "
                "with a loss of your own, call the search on the surrogate itself"
            )
        surrogate, loss_on_surrogate = loss_fn.on(self.surrogate, self.gallery)
        return self.search(surrogate, images, loss_on_surrogate, generator)
