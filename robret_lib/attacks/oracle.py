"""A search engine as an attacker meets it: images go in, the first answers come out, and every question counts."""

from collections import Counter

import torch
from torch import Tensor, nn

from robret_lib.attacks.gallery import Gallery
from robret_lib.fields import check_count
from robret_lib.models import embed

AT_ONCE = 256
"""How many images are ranked together."""


class QueryBudgetSpent(RuntimeError):
    """An engine was asked more often for one attacked image than it answers."""


class RankingOracle:
    """Shows the gallery positions of its first answers, and nothing else: no distance, no embedding, no gradient.

    Args:
        model: Embeds ``[B, C, H, W]`` as ``[B, D]``; the one that made the gallery.
        gallery: See `Gallery`.
        visible: How many answers are shown; None is all of them.
        budget: How many questions are answered for each attacked image; None sets no limit.
        own: Gallery positions ``[A]`` of the attacked images where they are items; an item is not shown as an answer to
            itself. None leaves out nothing.

    Attributes:
        asked: How many questions were answered for each attacked image, by its number.
    """

    def __init__(
        self,
        model: nn.Module,
        gallery: Gallery,
        visible: int | None = None,
        budget: int | None = None,
        own: Tensor | None = None,
    ) -> None:
        for name, count in (("visible", visible), ("budget", budget)):
            if count is not None:
                check_count(name, count)
        self._model, self._gallery, self._own = model, gallery, own
        answers = len(gallery) - (own is not None)
        self.visible, self.budget = answers if visible is None else min(visible, answers), budget
        self.asked: Counter[int] = Counter()

    def __call__(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """The first answers, gallery positions ``[B, visible]``, the nearest first.

        Args:
            images: ``[B, C, H, W]``, uint8 or float in [0, 1].
            rows: For which attacked image each is asked, int64 ``[B]``; None numbers them from 0.

        Raises:
            ValueError: Not one number for each image; nothing is answered or charged then.
            QueryBudgetSpent: For one of them this is more than the budget; none is answered then.
        """
        rows = torch.arange(len(images)) if rows is None else rows
        if rows.shape != images.shape[:1]:
            raise ValueError(
                f"{len(images)} images and rows of shape {tuple(rows.shape)}: expected one number for each image"
            )
        self._charge(rows)
        parts = zip(images.split(AT_ONCE), rows.split(AT_ONCE), strict=True)
        return torch.cat([self._answers(*part) for part in parts])

    def _charge(self, rows: Tensor) -> None:
        asked = self.asked + Counter(rows.tolist())
        for row, count in asked.items():
            if self.budget is not None and count > self.budget:
                raise QueryBudgetSpent(f"image {row} was asked for {count} times: the budget is {self.budget} queries")
        self.asked = asked

    def _answers(self, images: Tensor, rows: Tensor) -> Tensor:
        distances = self._gallery.exact_distances_from(embed(self._model, images))
        if self._own is not None:
            own = self._own[rows.to(self._own.device), None]
            distances.scatter_(1, own.to(distances.device), torch.inf)
        return distances.topk(self.visible, dim=1, largest=False).indices
