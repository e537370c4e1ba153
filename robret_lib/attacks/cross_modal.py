"""Attacks on image-text retrieval by codes: the query is of one kind, the gallery of the other.

A query's `Gallery` holds codes of the other kind, and `attacks.run` is given the branch of the query's own kind, so
all attacks of `codes`, with ``sharpness="own"``, are white-box attacks on cross-modal retrieval as they are. Here are
those that were published for it, which have that sharpness unless another is asked for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robret_lib.attacks.answers import need_classes
from robret_lib.attacks.attack import Benign, Plan
from robret_lib.attacks.gallery import Gallery
from robret_lib.attacks.relaxed import OnCodes, Sharpness, check_known, drawn_items, known_items, own_classes
from robret_lib.data import relevance
from robret_lib.fields import check_count, check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing.batch import likelihood


@dataclass(frozen=True)
class TripletReversal(OnCodes):
    """AACH: away from what was near, towards what was far (Li et al., ICCV 2021); reconstructed by us.

    With the n nearest items P of the gallery and the n farthest N of each query, the mean over all n^2 pairs of
    ``max(0, D(h~, N) - D(h~, P) + beta)``, D of relaxed codes ``(K - a . b) / 2``, plus ``lambda ||h~ - sign h~||^2``.

    Threat model: *knowledge*, of the attacked engine its answers alone: the network is a surrogate, the gallery holds
    the items that were asked for, with the codes that were answered, and no labels are looked at. *Goal*: a bad ranking
    of the engine's gallery. *Norm* and *budget*: of the search, and of the oracle. *What moves*: the query. *Success*:
    MAP that is left by the engine. The paper was not to be had: the form of the loss is told after second hands, its
    constants and the number of items are ours.

    Args:
        anchors: Codes of the queries by the engine, int8 ``[B, bits]``, which cost a further question for each; None
            takes those of the surrogate.
        items: n. Of DCMH at full scale, asked 1,000 pairs (surrogates with a new head, two seeds, `AutoPGD` of 25
            steps), one left 1.7 ± 0.5 points of MAP more of images than five; twenty and a hundred left no less than
            five, and of texts there was no difference.
        margin: beta in shares of the bits.
        quantization: lambda.
    """

    sharpness: Sharpness = "own"
    anchors: Tensor | None = None
    items: int = 5
    margin: float = 0.5
    quantization: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("items", self.items)
        check_number("margin", self.margin, least=0)
        check_number("quantization", self.quantization, least=0)

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """Gallery positions ``[B, 2n]``, the nearest, then the farthest; equally near ones in the gallery's order."""
        count = len(benign.gallery) - (benign.own is not None)
        if count < 2 * self.items:
            raise ValueError(f"a gallery of {count} items: expected at least {2 * self.items}, near and far ones")
        codes = benign.embeddings if self.anchors is None else self.anchors.to(benign.embeddings)
        if len(codes) != len(benign):
            raise ValueError(f"{len(codes)} anchors of {len(benign)} queries: expected a code each")
        order = benign.gallery.nearest_to(codes, count, benign.own)
        return torch.cat([order[:, : self.items], order[:, -self.items :]], dim=1)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        near, far = benign.gallery.items[targets].split(self.items, dim=1)
        bound = codes_of(far.sum(1) - near.sum(1))  # the least loss, where no hinge is zero
        return self.planned(benign, own_classes(benign), bound, lambda codes: self.losses(codes, near, far))

    def losses(self, codes: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """``[B]`` of relaxed codes ``[B, bits]`` and of items ``[B, n, bits]`` each."""
        to_near, to_far = ((items @ codes[:, :, None])[..., 0] / 2 for items in (near, far))
        beta = self.margin * codes.shape[1]
        reversed_ = torch.relu(to_near[:, :, None] - to_far[:, None, :] + beta).mean((1, 2))
        return reversed_ + self.quantization * (codes - codes.detach().sign()).square().sum(1)


@dataclass(frozen=True)
class PairwiseReversal(OnCodes):
    """CMLA: away from the other kind's items that share a label, near to its own kind's (Li et al., NeurIPS 2019).

    The mean over items of the gallery of ``log(1 + e^-G) + S G`` with ``G = h~ . b``, which falls where similar items
    go away and dissimilar ones come; plus the mean over items of its own kind of ``log(1 + e^T) - S T``. White-box. The
    authors take the items of a batch of 128, by relaxed codes; here as many are drawn for each query, so that batches
    do not matter, and b are binary. They add the mean change of an entry; here the search keeps to its ball.

    Args:
        own_kind: Items with labels of the query's kind, whose similarities are kept; None leaves that out.
        items: How many of each kind are drawn.
    """

    sharpness: Sharpness = "own"
    own_kind: Gallery | None = None
    items: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("items", self.items)
        check_known(self.own_kind, "own_kind")

    def targets(self, benign: Benign, generator: torch.Generator | None) -> Tensor:
        """Positions ``[B, items]`` in the gallery, or ``[B, 2 items]`` with those in ``own_kind``."""
        need_classes(self, benign)
        galleries = [benign.gallery] if self.own_kind is None else [benign.gallery, known_items(self.own_kind, benign)]
        drawn = [
            drawn_items(torch.ones(len(benign), len(each), dtype=torch.bool), self.items, generator)
            for each in galleries
        ]
        return torch.cat(drawn, dim=1).to(benign.embeddings.device)

    def plan(self, benign: Benign, targets: Tensor) -> Plan:
        others, own = targets[:, : self.items], targets[:, self.items :]
        across = self._items(benign, benign.gallery, others)
        within = None if self.own_kind is None else self._items(benign, self.own_kind, own)
        bound = codes_of(_downhill(*across) - (_downhill(*within) if within else 0))
        return self.planned(benign, own_classes(benign), bound, lambda codes: pairwise_reversal(codes, across, within))

    def _items(self, benign: Benign, gallery: Gallery, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Their codes ``[B, items, bits]``, and which share a label, ``[B, items]``."""
        codes = codes_of(gallery.embeddings)[chosen.to(gallery.embeddings.device)].to(benign.embeddings)
        shared = relevance(benign.labels, gallery.labels.to(benign.labels.device))
        return codes, shared.gather(1, chosen.to(shared.device)).to(benign.embeddings)


def pairwise_reversal(
    codes: Tensor, across: tuple[Tensor, Tensor], within: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """CMLA's loss ``[B]`` of relaxed codes ``[B, bits]``: items and similarities of the other kind, and of its own."""
    items, similar = across
    loss = likelihood(-(items @ codes[:, :, None])[..., 0], similar).mean(1)
    if within is not None:
        items, similar = within
        loss = loss + likelihood((items @ codes[:, :, None])[..., 0], similar).mean(1)
    return loss


def _downhill(items: Tensor, similar: Tensor) -> Tensor:
    """Where CMLA's loss of the other kind falls from a code of zeros, and that of its own kind rises; ``[B, bits]``."""
    return ((0.5 - similar)[:, :, None] * items).mean(1)
