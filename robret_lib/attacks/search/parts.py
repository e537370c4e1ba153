"""The loss of some images out of many, each as often as a search by values looks at it."""

import torch
from torch import Tensor

from robret_lib.attacks.search.passes import Loss

AT_ONCE = 256
"""About how many images go through the network together."""


class Parts:
    """A loss of B images, for some of them, each as often as is liked.

    A loss of `attacks.run` plans its attack anew for them, once for each time they come, since one product for all is
    several times faster than one for each turn. The last plan is kept, and serves fewer of the same as well. Any other
    loss is called with all B embeddings, of which only some matter.
    """

    def __init__(self, loss_fn: Loss, count: int) -> None:
        self.loss_fn, self.count = loss_fn, count
        self.at_once = getattr(loss_fn, "at_once", AT_ONCE)
        self._rows: Tensor | None = None

    def of(self, rows: Tensor) -> Loss:
        """The loss ``[R]`` of embeddings ``[R, D]`` of the images number ``rows [R]``."""
        if not hasattr(self.loss_fn, "part"):
            return lambda embeddings: self._one_by_one(embeddings, rows)
        if self._rows is None or not torch.equal(rows, self._rows[: len(rows)]):
            self._rows, self._part = rows, self.loss_fn.part(rows)
        missing = len(self._rows) - len(rows)
        if not missing:
            return self._part
        return lambda embeddings: self._part(torch.cat([embeddings, embeddings[:1].expand(missing, -1)]))[: len(rows)]

    def _one_by_one(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """Every image once, then those that come a second time, and so on."""
        turn = (rows[:, None] == rows).tril(-1).sum(1)
        found = embeddings.new_empty(len(rows))
        for which in (turn == number for number in range(int(turn.max()) + 1)):
            everything = embeddings[:1].repeat(self.count, 1)
            everything[rows[which]] = embeddings[which]
            found[which] = self.loss_fn(everything)[rows[which]].to(found.dtype)
        return found
