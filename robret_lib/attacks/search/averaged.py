"""For models that draw random numbers: the loss sees the mean embedding of several draws."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.search.passes import Loss, Search, check_search
from robret_lib.fields import check_count


@dataclass(frozen=True)
class Averaged:
    """A search against the mean of ``n`` draws, renewed in every pass (expectation over transformation).

    One draw is a noisy model, whose gradient leads a search astray; an attack that ignores this takes noise for
    robustness (Athalye et al. 2018). A pass of the search costs n passes of the model. For a model without random
    draws the result is that of the search alone, whatever the batches; for that the generator is not moved. So for a
    model with random draws, these depend on the batches, and where the search itself draws nothing, every batch and
    every call with one generator meets the same draws: give each call its own, to tell luck from strength.

    Args:
        search: Any `Search` that looks at the model itself, so neither `Transfer`, inside of which one may average, nor
            `OnlyAnswers`.
        n: Draws per pass.
    """

    search: Search
    n: int

    def __post_init__(self) -> None:
        check_search(self, self.search)
        check_count("n", self.n)
        refused = getattr(self.search, "never_averaged", None)
        if refused is not None:
            raise TypeError(f"Averaged with a {type(self.search).__name__}: {refused}")

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        device = images.device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=generator is not None):
            if generator is not None:
                _follow(generator, device)
            return self.search(_MeanOfDraws(model, self.n), images, loss_fn, generator)


def _follow(generator: torch.Generator, device: torch.device) -> None:
    """Let torch's global generators, from which the model draws, depend on ours, which itself does not move."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    seed = int(torch.randint(2**62, (), generator=copy, device=copy.device))
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class _MeanOfDraws(nn.Module):
    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.model, self.n = model, n

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.model(images) for _ in range(self.n)]).mean(0)
