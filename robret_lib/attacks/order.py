"""The order attack: the same items on top, in the order an attacker wants."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.attack import Benign, ListLoss, Plan, check_mode
from robret_lib.attacks.ranking_losses import HingeItems, QueryHinges
from robret_lib.distances import row_distance
from robret_lib.fields import check_count, check_number
from robret_lib.mining import Mode


@dataclass(frozen=True)
class OrderAttack:
    """OA: perturb queries so that their k nearest items come in another order, drawn at random, and stay on top.

    Minimizes ``L_ReO + xi L_QA+``: with c_1, ..., c_k the wanted order, the mean over pairs i < j of
    ``[d(q~, c_i) - d(q~, c_j)]_+``, and the mean over the k items c and all gallery items x of
    ``[d(q~, c) - d(q~, x)]_+`` (Zhou et al., "Practical Relative Order Attack in Deep Ranking", ICCV 2021).
    Where only lists are seen (`OnlyAnswers`), maximizes `short_range_ranking_correlation` instead.

    The targets are the k items in the wanted order. Measures ``tau``, Kendall's rank correlation between the wanted
    order and the one obtained, in [-1, 1], a pair of equal distances counting 0; and ``mean_rank``, the mean number of
    items in front of each of the k, (k - 1) / 2 before the attack.

    Args:
        k: How many items are put in order.
        xi: Weight of keeping them on top.
        mode: In "reference" a query that is an item is an answer to itself: it is one of the k, the first one before
            the attack, and counts in the ranks; and the mean of L_ReO is over the k x k matrix, of which the pairs fill
            less than half (the published code, `RankLossFullOrderMXAttack`). "fixed" leaves the query out, and takes
            the mean over the pairs.

    Threat model: *knowledge*, white-box: network and gallery; behind `OnlyAnswers` black-box: the first answers to
    every image that is tried. *Goal*: the k nearest items in a chosen order. *Norm* and *budget*: of the search,
    questions included. *What moves*: the query. *Success*: the mean correlation over all queries, -1 to 1, near 0
    before the attack.
    """

    k: int = 5
    xi: float = 10.0
    mode: Mode = "fixed"

    rows = 1

    def __post_init__(self) -> None:
        check_count("k", self.k, least=2)
        check_number("xi", self.xi, least=0)
        check_mode(self.mode)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        if self.mode == "reference":
            benign = Benign(benign.gallery, benign.embeddings)
        order = torch.rand(len(benign), self.k, generator=generator, dtype=torch.float32).argsort(1)
        nearest = benign.nearest(self.k)
        return nearest.gather(1, order.to(nearest.device))

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        gallery, own = benign.gallery, None if self.mode == "reference" else benign.own
        signs = gallery.embeddings.new_ones(self.k)
        items = HingeItems(gallery, targets, len(gallery))  # few are in front of the first k: each one counts

        def loss(embeddings: Tensor) -> Tensor:
            distances = row_distance(embeddings[:, None], gallery.embeddings[targets], gallery.distance)
            kept = QueryHinges.apply(embeddings, items, signs).mean(1)
            return self._reordering(distances) + self.xi * kept

        def measures(embeddings: Tensor) -> dict[str, Tensor]:
            distances = gallery.exact_distances_from(embeddings)
            if own is not None:
                distances.scatter_(1, own[:, None], torch.inf)
            to_targets = distances.gather(1, targets)
            return {"tau": kendall_tau(to_targets), "mean_rank": _mean_rank(distances, to_targets)}

        def of_lists(lists: Tensor) -> Tensor:
            return -short_range_ranking_correlation(lists, targets)

        return Plan(loss, measures, ListLoss(of_lists, own))

    def _reordering(self, distances: Tensor) -> Tensor:
        """L_ReO ``[B]`` of the distances ``[B, k]`` to the items in the wanted order."""
        hinges = (distances[:, :, None] - distances[:, None, :]).triu(1).relu()
        pairs = self.k**2 if self.mode == "reference" else self.k * (self.k - 1) / 2
        return hinges.sum((1, 2)) / pairs


def kendall_tau(values: Tensor) -> Tensor:
    """Kendall's tau ``[*]`` between values ``[*, k]`` and the order in which they come; ascending is 1.

    A pair of equal values counts 0 (tau-a).
    """
    first, second = torch.triu_indices(values.shape[-1], values.shape[-1], 1, device=values.device)
    return (values[..., second] - values[..., first]).sign().double().mean(-1)


def short_range_ranking_correlation(lists: Tensor, wanted: Tensor) -> Tensor:
    """Kendall's tau ``[*]`` as far as it can be read off the answers of a search engine (Zhou et al., ICCV 2021).

    Of the pairs of wanted items, one counts 1 if both are in the list and in the wanted order, and else -1.

    Args:
        lists: Positions ``[*, N]``, the nearest first.
        wanted: Positions ``[*, k]``, in the wanted order.
    """
    found = lists[..., None, :] == wanted[..., :, None]
    seen, place = found.any(-1), found.byte().argmax(-1)
    first, second = torch.triu_indices(wanted.shape[-1], wanted.shape[-1], 1, device=wanted.device)
    right = seen[..., first] & seen[..., second] & (place[..., first] < place[..., second])
    return (2 * right.double() - 1).mean(-1)


def _mean_rank(distances: Tensor, to_targets: Tensor) -> Tensor:
    """How many items are closer than each target, mean ``[B]``; no item counts as closer than itself."""
    closer = torch.stack([(distances < d[:, None]).sum(1) for d in to_targets.T], dim=1)
    return closer.double().mean(1)
