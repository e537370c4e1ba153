"""A search engine of images and texts: networks, what it has indexed, and how good its answers are, both ways."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from robret_lib.attacks import Gallery
from robret_lib.cross_modal.networks import ImageTextModel
from robret_lib.cross_modal.oracle import CodeOracle, encoder
from robret_lib.data import DataError
from robret_lib.data.bag_of_words import Vocabulary
from robret_lib.data.retrieval_data import Split
from robret_lib.hamming import average_precisions, codes_of
from robret_lib.models import HashModel, embed

Kind = Literal["images", "texts"]
"""Of what a query is: "images" is image to text, I2T; "texts" is text to image, T2I."""

OTHER: dict[Kind, Kind] = {"images": "texts", "texts": "images"}


class Asked(NamedTuple):
    """Queries: images ``[Q, C, H, W]``, their texts as bags ``[Q, 1, 1, V]``, and labels of both."""

    images: Tensor
    texts: Tensor
    labels: Tensor

    @classmethod
    def of(cls, split: Split, vocabulary: Vocabulary, rows: int | Tensor | None = None) -> "Asked":
        """The first so many of a split, or those at positions ``[Q]``, or all.

        Raises:
            DataError: It has no texts.
        """
        if split.texts is None:
            raise DataError("a split without texts: expected one of a packed file with a 'text' member")
        rows = rows if isinstance(rows, Tensor) else torch.arange(len(split))[:rows]
        texts = [split.texts[row] for row in rows.tolist()]
        return cls(split.images[rows], vocabulary.bags(texts), split.labels[rows])


@dataclass(frozen=True, eq=False)
class Engine:
    """The networks with the codes of all they have indexed.

    Args:
        model: In evaluation mode.
        images, texts: What is found: the codes of indexed images, which texts search, and of indexed texts.
    """

    model: ImageTextModel
    images: Gallery
    texts: Gallery

    @classmethod
    def of(cls, model: ImageTextModel, indexed: Asked) -> "Engine":
        """Index images and texts."""
        pairs = ((model.images, indexed.images), (model.texts, indexed.texts))
        return cls(model, *(Gallery.of(branch, items, indexed.labels) for branch, items in pairs))

    def branch(self, kind: Kind) -> HashModel:
        """The network that encodes queries of a kind."""
        check_kind(kind)
        return getattr(self.model, kind)

    def searched_by(self, kind: Kind) -> Gallery:
        """What queries of a kind are searched in: the other one."""
        check_kind(kind)
        return getattr(self, OTHER[kind])

    def precisions(self, kind: Kind, queries: Tensor, labels: Tensor, top_k: int | None = None) -> Tensor:
        """Average precision of each query in percent, float64 ``[Q]``, ties as expected over their orders.

        The mean is MAP.

        Args:
            kind: Of the queries.
            queries: Images, or bags of words.
            labels: Of the queries.
            top_k: Depth; None is all, as of DCMH, SSAH and SAAT-Cross. What TA-DCH and EQB2A call MAP@50 is another
                measure, over the first 50 answers that share a label, wherever they stand.
        """
        gallery = self.searched_by(kind)
        codes = codes_of(embed(self.branch(kind), queries)).cpu()
        return 100 * average_precisions(codes, gallery.codes.cpu(), labels.cpu(), gallery.labels.cpu(), top_k)

    def answers(self, kind: Kind, query: Tensor, count: int = 5) -> Tensor:
        """Positions ``[Q, count]`` of the first answers; ties in the order of the index."""
        return self.searched_by(kind).nearest_to(embed(self.branch(kind), query), count)

    def oracle(self, budget: int | None = None) -> CodeOracle:
        """The engine as an attacker meets it."""
        return CodeOracle(encoder(self.model), budget)


def check_kind(kind: Kind) -> None:
    """Raise a ValueError unless it is one of `Kind`."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: expected one of {get_args(Kind)}")
