"""Attack a search engine by its answers: what an attacker can do who sees the lists that all its users see."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robret_lib.attacks.oracle import RankingOracle
from robret_lib.attacks.search.passes import Loss
from robret_lib.attacks.search.values import ValueSearch
from robret_lib.fields import check_count


@dataclass(frozen=True)
class OnlyAnswers:
    """A search by values against a `RankingOracle`: it sees the first answers to each image, in order, nothing else.

    For attacks whose plan has a loss of lists, such as `order.OrderAttack`. A query that is an item is no answer to
    itself in "fixed"; in "reference" it is shown among the answers. Called as in `Search`, by `attacks.run`.

    Against a real engine, call the search itself: ``search.minimize(images, values)``, with ``values`` the loss of the
    lists that the engine gives.

    Args:
        search: Any `ValueSearch`.
        visible: How many answers the engine shows; None is all of them.
        budget: How many queries the engine answers for one image; None as many as the search makes.
    """

    search: ValueSearch
    visible: int | None = None
    budget: int | None = None

    never_averaged = "an engine ranks single embeddings, no mean of several: expected OnlyAnswers(search) as it is"

    def __post_init__(self) -> None:
        for name, count in (("visible", self.visible), ("budget", self.budget)):
            if count is not None:
                check_count(name, count)
        if not isinstance(self.search, ValueSearch):
            raise TypeError(
                f"OnlyAnswers with a {type(self.search).__name__}: expected a search that needs values only, "
                "RandomSearch, Beta, PSO, NES or SPSA"
            )

    def __call__(
        self, model: nn.Module, images: Tensor, loss_fn: Loss, generator: torch.Generator | None = None
    ) -> Tensor:
        answers = getattr(getattr(loss_fn, "plan", None), "answers", None)
        if answers is None:
            raise TypeError(
                "OnlyAnswers needs a loss of lists: give attacks.run an attack whose plan has one, such as OrderAttack"
            )
        budget = self.search.queries if self.budget is None else self.budget
        engine = RankingOracle(model, loss_fn.gallery, self.visible, budget, answers.left_out)

        def values(looked_at: Tensor, rows: Tensor) -> Tensor:
            return loss_fn.part(rows).plan.answers.loss(engine(looked_at, rows))

        return self.search.minimize(images, values, generator)
