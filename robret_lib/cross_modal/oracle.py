"""A search engine of images and texts as an attacker meets it: pairs go in, binary codes come out, each pair counts."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from robret_lib.attacks.oracle import QueryBudgetSpent
from robret_lib.cross_modal.networks import ImageTextModel
from robret_lib.data import as_float
from robret_lib.fields import check_count
from robret_lib.hamming import codes_of
from robret_lib.models import embed

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Codes int8 in {-1, +1} ``[M, bits]`` of images ``[M, C, H, W]`` and of bags of words ``[M, 1, 1, V]``."""


class Answers(NamedTuple):
    """What an attacker has sent and what came back: all that the attack knows of an engine.

    Args:
        images: ``[M, C, H, W]``, uint8 or float in [0, 1].
        bags: Their texts, ``[M, 1, 1, V]``.
        image_codes, text_codes: int8 in {-1, +1}, ``[M, bits]``.
    """

    images: Tensor
    bags: Tensor
    image_codes: Tensor
    text_codes: Tensor

    @property
    def pairs(self) -> int:
        """M, how many there are."""
        return len(self.images)


class CodeOracle:
    """Answers binary codes for submitted pairs, and nothing else: no gradient, no label, no output, no weight.

    It holds one function, and that sees copies, so that nothing leads back from an answer to a network. AACH (ICCV
    2021) may submit so few pairs that a budget M is part of the attack; a pair is two calls of an encoder.

    Args:
        encode: `encoder` of networks that are here; `over_http.encoder_at` of an engine elsewhere.
        budget: M, how many pairs are answered; None sets no limit.

    Attributes:
        asked: How many pairs were answered.
    """

    def __init__(self, encode: Encode, budget: int | None = None) -> None:
        if budget is not None:
            check_count("budget", budget)
        self._encode, self.budget, self.asked = encode, budget, 0

    def __call__(self, images: Tensor, bags: Tensor) -> Answers:
        """Codes of pairs, which must be as many images as bags.

        Raises:
            ValueError: They are not, or there are none; nothing is answered or charged then.
            QueryBudgetSpent: This is more than the budget has left; none is answered then.
        """
        if len(images) != len(bags) or not len(images):
            raise ValueError(f"{len(images)} images and {len(bags)} bags of words: expected pairs, at least one")
        asked = self.asked + len(images)
        if self.budget is not None and asked > self.budget:
            raise QueryBudgetSpent(f"{asked} pairs asked for: the budget is {self.budget} pairs")
        given = images.detach().clone(), bags.detach().clone()
        codes = self._encode(*given)
        self.asked = asked
        return Answers(images.detach(), bags.detach(), *codes)

    @property
    def encoder_calls(self) -> int:
        """Two for each pair."""
        return 2 * self.asked


def encoder(model: ImageTextModel) -> Encode:
    """The codes by networks that are here, on their device; the codes are on that of what was sent."""

    def encode(images: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        pairs = (model.images, images), (model.texts, bags)
        found = [codes_of(embed(branch, as_float(inputs))).to(inputs.device) for branch, inputs in pairs]
        return found[0], found[1]

    return encode


def check_answers(answers: Answers) -> None:
    """Raise a ValueError unless they are codes of at least two pairs."""
    sizes = {len(part) for part in answers}
    if len(sizes) != 1 or answers.pairs < 2 or answers.image_codes.shape != answers.text_codes.shape:
        shapes = [tuple(part.shape) for part in answers]
        raise ValueError(f"answers of shapes {shapes}: expected at least two pairs, and a code of each half")
    for codes in answers[2:]:
        if not (codes.float().abs() == 1).all():
            raise ValueError("answers with other values than -1 and +1: expected binary codes")
