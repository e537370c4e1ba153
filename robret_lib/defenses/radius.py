"""How large the perturbations are that a training shows to its network."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robret_lib.attacks import PGD, AutoPGD
from robret_lib.attacks.search import Loss
from robret_lib.attacks.search.ball import Ball, check_images


@dataclass(frozen=True)
class DrawnRadius:
    """A search in balls whose radius is drawn for each image, uniformly from [0, eps]. Called as in `attacks.Search`.

    So that a network does not only see perturbations of full size: Kurakin et al., "Adversarial Machine Learning at
    Scale" (ICLR 2017), advise it, since a network trained at one radius resists at that one alone. What it is worth is
    measured in tests/benchmarks/neighborhood.py. The steps of `PGD` shrink with the radius.

    The radii of a batch are drawn before its random starts. So the batch size matters where a search has these; where
    it has none, a generator on the CPU that is passed from batch to batch makes it irrelevant, as for any search.

    Args:
        search: The search; its eps is the largest radius.

    Raises:
        TypeError: Another search than `PGD` or `AutoPGD`.
    """

    search: PGD | AutoPGD

    def __post_init__(self) -> None:
        if not isinstance(self.search, PGD | AutoPGD):
            raise TypeError(f"DrawnRadius with {self.search!r}: expected PGD or AutoPGD, whose ball may be of any size")

    @property
    def eps(self) -> float:
        """The largest radius."""
        return self.search.eps

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        """Adversarial images ``[B, C, H, W]``, each in a ball of its own size around its original."""
        check_images(images)
        images = images.detach()
        if self.search.eps == 0:
            return images.clone()
        where = images.device if generator is None else generator.device
        shares = torch.rand(len(images), 1, 1, 1, generator=generator, device=where).to(images)
        return self.search.within(Ball(images, self.search.eps * shares, self.search.norm), model, loss_fn, generator)


def shrunk(search: PGD | AutoPGD | DrawnRadius, share: float) -> PGD | AutoPGD | DrawnRadius:
    """The same search in a ball of a share of its radius, with steps of the same share."""
    if isinstance(search, DrawnRadius):
        return DrawnRadius(shrunk(search.search, share))
    if share == 0:
        return replace(search, eps=0.0)
    if isinstance(search, AutoPGD):
        return replace(search, eps=share * search.eps)
    return replace(search, eps=share * search.eps, step=share * search.step)
