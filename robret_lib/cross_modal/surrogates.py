"""Surrogates: networks that learn from an engine's answers to give the codes it gives."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robret_lib import training
from robret_lib.cross_modal.networks import ImageTextModel, SmallHead
from robret_lib.cross_modal.objective import ImagesAndTexts, Pairs
from robret_lib.cross_modal.oracle import Answers, check_answers
from robret_lib.cross_modal.triplets import Choice, cross_modal_triplets
from robret_lib.data import Split
from robret_lib.fields import check_number
from robret_lib.hashing import KnownCodes
from robret_lib.models import HashModel, embed

Regress = Literal["answers", "signs"]
"""What a surrogate's codes are drawn to: the codes that the engine answered; or their own signs, as of EQB2A."""


class OfAnswers(nn.Module):
    """A loss of pairs that knows the engine's answers to them, and what the surrogates said when they saw each last.

    Until then, that is what the engine said. It is a loss of `ImagesAndTexts`, whose rows are those of the answers.

    Args:
        answers: Of the engine, M pairs.
    """

    same_bits = True
    """Whether it asks for the engine's bits, not only for codes that lie to one another as the engine's do."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        check_answers(answers)
        for name, codes in (("image_codes", answers.image_codes), ("text_codes", answers.text_codes)):
            self.register_buffer(name, codes, persistent=False)
        self.images, self.texts = (self._remembered(codes) for codes in (answers.image_codes, answers.text_codes))

    def forward(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """Scalar: of images among texts, and of texts among images."""
        images, texts = (torch.tanh(outputs) for outputs in pairs.outputs)
        known = [
            memory.with_batch(pairs.rows, codes).codes for memory, codes in ((self.images, images), (self.texts, texts))
        ]
        of_images = self.image_codes[pairs.rows], known[1], self.text_codes, generator
        of_texts = self.text_codes[pairs.rows], known[0], self.image_codes, generator
        return self.of_kind(images, *of_images) + self.of_kind(texts, *of_texts)

    def of_kind(
        self, codes: Tensor, answered: Tensor, others: Tensor, others_answered: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Scalar loss of relaxed codes ``[n, bits]`` of one kind.

        Args:
            codes: Of the batch.
            answered: What the engine said of the batch, int8 ``[n, bits]``.
            others: Relaxed codes of the other kind, of all M, without gradients.
            others_answered: What the engine said of them.
            generator: Of draws.
        """
        raise NotImplementedError

    @staticmethod
    def _remembered(codes: Tensor) -> KnownCodes:
        memory = KnownCodes(torch.zeros(len(codes), 2, dtype=torch.uint8, device=codes.device), codes.shape[1])
        memory = memory.to(codes.device)
        memory.fill(codes.float())
        return memory


class SurrogateTriplets(OfAnswers):
    """AACH's loss: anchors lie nearer to their positives than to their negatives, and codes are nearly binary.

    ``J = sum_A max(0, D(h_A, h_P) - D(h_A, h_N) + beta) + lambda sum_A ||h_A - b||^2``, D of relaxed codes
    ``(K - a . b) / 2``, divided by the batch's size, with triplets of `cross_modal_triplets`, drawn anew in each step,
    and h_P and h_N as last seen, without gradients. (Li et al., "Adversarial Attack on
    Deep Cross-Modal Hamming Retrieval", ICCV 2021. The paper was not to be had: loss and stages are told after second
    hands, and the constants are ours.) With b the sign of h_A itself and a lambda of 0.1, networks that begin anew give
    one code, or two, to everything; with a lambda of 0.001 they do not, but learn fewer of the engine's bits than with
    the answered code for b and a lambda of 0.1, so these are the defaults.

    Args:
        answers: See `OfAnswers`.
        margin: beta in shares of the bits.
        quantization: lambda.
        regress: What b is.
        choice: Of triplets.
    """

    def __init__(
        self,
        answers: Answers,
        margin: float = 1 / 8,
        quantization: float = 0.1,
        regress: Regress = "answers",
        choice: Choice = "ordered",
    ) -> None:
        super().__init__(answers)
        check_number("margin", margin, least=0)
        check_number("quantization", quantization, least=0)
        if regress not in get_args(Regress):
            raise ValueError(f"regress={regress!r}: expected one of {get_args(Regress)}")
        self.margin, self.quantization, self.regress, self.choice = margin, quantization, regress, choice

    def of_kind(
        self, codes: Tensor, answered: Tensor, others: Tensor, others_answered: Tensor, generator: torch.Generator
    ) -> Tensor:
        anchors, positives, negatives = cross_modal_triplets(answered, others_answered, self.choice, generator)
        nearer = (codes[anchors] * (others[negatives] - others[positives])).sum(1) / 2
        beta = self.margin * codes.shape[1]
        drawn_to = answered.to(codes) if self.regress == "answers" else codes.detach().sign()
        lost = torch.relu(nearer + beta).sum() + self.quantization * (codes - drawn_to).square().sum()
        return lost / len(codes)


def learned(
    model: ImageTextModel, loss: OfAnswers, answers: Answers, schedule: training.Schedule, progress: bool = False
) -> ImageTextModel:
    """Train surrogates, in place, by a loss of answers; they are returned in evaluation mode.

    Where the image network is a head on a trunk that stays (`networks.with_small_head`), the trunk sees each image
    once, and the head learns on what it said.

    Args:
        model: The surrogates, of as many bits as the answers have, on the device of the answers.
        loss: Made of the same answers.
        answers: Of the engine.
        schedule: Of batches, not of SPC-2 pairs.
        progress: Show a progress bar.
    """
    labels = torch.zeros(answers.pairs, 2, dtype=torch.uint8)
    images, network = answers.images.cpu(), model
    if isinstance(model.images.backbone, SmallHead):
        seen = _seen_by_trunk(model.images, images)
        low, high = (bound.item() for bound in seen.aminmax())
        network = ImageTextModel(HashModel(_Between(model.images.backbone.head, low, high)), model.texts)
        images = ((seen - low) / max(high - low, 1e-12)).clamp(0, 1)
    training.train(
        network, Split(images, labels), ImagesAndTexts(loss, answers.bags.cpu(), labels), schedule, progress=progress
    )
    return model.eval()


class _Between(nn.Module):
    """A head whose inputs come as pictures: shares of the way from their least to their largest value."""

    def __init__(self, head: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.head, self.low, self.high = head, low, high

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.low + (self.high - self.low) * inputs)


def _seen_by_trunk(model: HashModel, images: Tensor) -> Tensor:
    """What the trunk says, as pictures of one row ``[M, 1, 1, width]``."""
    trunk = HashModel(nn.Sequential(model.normalization, model.backbone.trunk))
    return embed(trunk, images)[:, None, None].cpu()
