"""AACH from the first question to the last query: what an attacker has who may ask M times and sees codes alone.

Stage 1 asks (`oracle`), stages 2 and 3 make triplets of the answers and surrogates of the triplets (`triplets`,
`surrogates`), stage 4 moves queries until the surrogates mistake them (`attacks.cross_modal.TripletReversal`); stage 5,
how bad the engine's answers have become, is for who owns the labels (`Engine.precisions`). Li et al., ICCV 2021;
reconstructed by us.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from robret_lib import attacks, models, training
from robret_lib.attacks import Gallery, Result, Search
from robret_lib.attacks.cross_modal import TripletReversal
from robret_lib.attacks.relaxed import OnCodes
from robret_lib.cross_modal.engine import OTHER, Kind, check_kind
from robret_lib.cross_modal.networks import ImageTextModel, Joined, text_model, with_small_head
from robret_lib.cross_modal.oracle import Answers, CodeOracle, encoder
from robret_lib.cross_modal.surrogates import OfAnswers, SurrogateTriplets, learned
from robret_lib.models import HashModel

ACROSS = TripletReversal(sharpness="own")
"""The attack of stage 4, with the surrogate's own codes as anchors: no further question."""


HEAD = "head"
"""In place of a backbone: EfficientNet-Lite0 as ImageNet left it, with a new head."""

APART = 10_007
"""Added to an attacker's seed: by that of the engine, the same backbone would begin with the engine's first weights."""

HIDDEN = (1024, 1024)
"""Of a surrogate of texts, as of EQB2A."""


def surrogate_networks(backbone: str, words: int, bits: int, seed: int = 0) -> ImageTextModel:
    """New networks for an attacker, who knows how long codes are and chooses the rest.

    Args:
        backbone: `HEAD`, which learns fast and of few answers; or a name of `models.build`, of which all weights learn,
            "efficientnet_lite0" from those of ImageNet, others from none.
        words: Entries of a bag.
        bits: Of a code.
        seed: Of what is drawn.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(APART + seed)
        if backbone == HEAD:
            images = with_small_head("efficientnet_lite0", bits)
        else:
            images = models.build(backbone, bits, backbone == "efficientnet_lite0", "H")
        return ImageTextModel(images, text_model(words, bits, HIDDEN))


@dataclass(frozen=True, eq=False)
class BlackBox:
    """An attacker after stage 3.

    Args:
        answers: All that the engine has said; where a loss does not ask for its bits, with the codes of the surrogates.
        surrogates: Networks that give nearly the codes it gives.
        same_bits: Whether a bit of the surrogates is one of the engine; see `OfAnswers`.
    """

    answers: Answers
    surrogates: ImageTextModel
    same_bits: bool = True

    @classmethod
    def of(
        cls,
        oracle: CodeOracle,
        images: Tensor,
        bags: Tensor,
        surrogates: ImageTextModel,
        schedule: training.Schedule,
        loss: Callable[[Answers], OfAnswers] = SurrogateTriplets,
        progress: bool = False,
    ) -> "BlackBox":
        """Ask for all pairs, images ``[M, C, H, W]`` and bags ``[M, 1, 1, V]``, and train the surrogates, in place.

        Raises:
            QueryBudgetSpent: These are more pairs than the oracle still answers.
        """
        return cls.of_answers(oracle(images, bags), surrogates, schedule, loss, progress)

    @classmethod
    def of_answers(
        cls,
        answers: Answers,
        surrogates: ImageTextModel,
        schedule: training.Schedule,
        loss: Callable[[Answers], OfAnswers] = SurrogateTriplets,
        progress: bool = False,
    ) -> "BlackBox":
        """Train surrogates, in place, by what has been answered before."""
        device = next(surrogates.parameters()).device
        answers = Answers(*(part.to(device) for part in answers))
        minimized = loss(answers)
        learned(surrogates, minimized, answers, schedule, progress)
        if not minimized.same_bits:
            answers = Answers(answers.images, answers.bags, *encoder(surrogates)(answers.images, answers.bags))
        return cls(answers, surrogates, minimized.same_bits)

    @classmethod
    def together(cls, boxes: Sequence["BlackBox"]) -> "BlackBox":
        """Several surrogates of the same answers as one: a query is to mislead all of them.

        That asks the engine nothing more. It is of our own; surrogates that differ by chance share what they have
        learned of the engine, and not their accidents. Codes of queries for anchors are to be repeated as often. The
        sharpness of a search is that of all outputs together, so surrogates should be trained alike.

        Raises:
            ValueError: There are none, or they have learned from different answers.
        """
        told = [box.answers for box in boxes]
        if not told or not all(torch.equal(*pair) for other in told for pair in zip(other, told[0], strict=True)):
            raise ValueError(f"{len(told)} surrogates: expected at least one, all of the same answers")
        first, count = told[0], len(told)
        codes = (each.repeat(1, count) for each in (first.image_codes, first.text_codes))
        branches = zip(*((box.surrogates.images, box.surrogates.texts) for box in boxes), strict=True)
        images, texts = (HashModel(Joined(each)) for each in branches)
        same_bits = all(box.same_bits for box in boxes)
        return cls(Answers(first.images, first.bags, *codes), ImageTextModel(images, texts).eval(), same_bits)

    def gallery(self, kind: Kind) -> Gallery:
        """What queries of a kind are compared with: the items of the other kind, by the codes that were answered."""
        check_kind(kind)
        codes = {"images": self.answers.image_codes, "texts": self.answers.text_codes}[OTHER[kind]]
        return Gallery(codes.float(), "H")

    def attacked(
        self,
        kind: Kind,
        queries: Tensor,
        search: Search,
        attack: OnCodes = ACROSS,
        generator: Generator | None = None,
        progress: bool = False,
    ) -> Result:
        """Adversarial queries, made for the surrogates.

        Args:
            kind: Of the queries.
            queries: Images ``[B, C, H, W]``, or bags of words ``[B, 1, 1, V]``.
            search: As `AutoPGD` of images, `WordFlips` of bags.
            attack: On codes, without labels. For anchors by the engine, ``TripletReversal("own", anchors=codes)``, with
                the codes of a further question for each query.
            generator, progress: As of `attacks.run`.

        Raises:
            ValueError: No such kind, or anchors by the engine for surrogates that do not give its bits.
        """
        check_kind(kind)
        if not self.same_bits and isinstance(attack, TripletReversal) and attack.anchors is not None:
            raise ValueError("anchors by the engine for surrogates with bits of their own: expected anchors=None")
        network, gallery = getattr(self.surrogates, kind), self.gallery(kind)
        return attacks.run(attack, network, queries, gallery, search, generator=generator, progress=progress)
