"""SSAH: a network of labels teaches the networks of images and texts, and two discriminators cannot tell them apart."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from robret_lib.attacks.attack import check_mode
from robret_lib.cross_modal.networks import Semantic, layers
from robret_lib.cross_modal.objective import Pairs, similar_to
from robret_lib.hashing import KnownCodes
from robret_lib.hashing.batch import Known, balanced, likelihood
from robret_lib.mining import Mode
from robret_lib.models import HashModel

Pairwise = Literal["likelihood", "squared"]
"""What two items cost: ``log(1 + e^t) - S t``, as in the paper; or half its square, as in the authors' code."""

SHRUNK = 0.999
"""S is multiplied by it in the authors' code."""


def squared(logits: Tensor, similar: Tensor) -> Tensor:
    """``(log(1 + e^t) - 0.999 S t)^2 / 2`` of each pair (SSAH, the authors' code)."""
    return likelihood(logits, SHRUNK * similar).square() / 2


PAIRWISE = {"likelihood": likelihood, "squared": squared}


class Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign: what is behind it learns the opposite."""

    @staticmethod
    def forward(context: object, inputs: Tensor) -> Tensor:
        """The inputs."""
        return inputs.view_as(inputs)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        """The gradient, turned around."""
        return -gradient


class SSAH(nn.Module):
    """Self-supervised adversarial hashing (Li et al., CVPR 2018).

    Labels, images and texts have a network each, which gives a semantic feature, and of it a relaxed code and labels
    (`networks.Semantic`). Each of the three is to agree with what the network of labels said of the training set: the
    pairwise loss of half the products, of features and of codes; the distance of its codes to
    ``B = sign(H_L + H_I + H_T)``; and the squared error of its labels. A discriminator each tells features of images,
    and of texts, from those of labels; the networks of images and texts learn to deceive it. All are sums of weight 1,
    divided by the number of pairs. (Were each a mean of its own, the distance to B and the discriminators would count
    as much as all pairs together, and codes would stay what they are by chance.)

    That is mode "reference". In mode "fixed" similar and dissimilar pairs have the same say (`hashing.batch.balanced`),
    as in `DCMH`.

    The authors' code differs from their paper and from this. It trains the networks in stages, that of labels first, at
    rates from 0.01 to 3e-5; here they learn together at one rate, by a reversed gradient. B is each network's own sign
    there; its squares, of B and of labels, are halved, so that in form "squared" they count twice as much here. What
    discriminators say, a mean of the batch, reaches none of the networks that are to deceive them. Local
    responses are normalized. Here the discriminators, one sum among others, have less than a thousandth of the gradient
    of a network that has not learned yet. In our tries, of a head on features of photographs, that was for the better:
    weighed as a mean, beside the mean of the pairs, they took seven points of MAP.

    Args:
        labels: Of the training set, multi-hot ``[N, C]``.
        bits: Of a code.
        pairwise: See `Pairwise`.
        feature: Length of the semantic feature.
        hidden: Units of the network of labels, 4,096 in the paper.
        mode: See above.
    """

    def __init__(
        self,
        labels: Tensor,
        bits: int,
        pairwise: Pairwise = "likelihood",
        feature: int = 512,
        hidden: int = 4096,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__()
        check_mode(mode)
        if pairwise not in PAIRWISE:
            raise ValueError(f"pairwise={pairwise!r}: expected one of {get_args(Pairwise)}")
        self.pairwise, self.mode, classes = pairwise, mode, labels.shape[1]
        self.of_labels = Semantic(_layer(classes, hidden), hidden, bits, classes, feature)
        self.discriminators = nn.ModuleList(_discriminator(feature) for _ in ("images", "texts"))
        self.known_features, self.known_codes = KnownCodes(labels, feature), KnownCodes(labels, bits)

    def forward(self, pairs: Pairs, generator: torch.Generator) -> Tensor:
        """Scalar.

        Raises:
            TypeError: The networks have no semantic feature.
        """
        labels = pairs.labels.to(pairs.images)
        found = [
            self.of_labels.everything(labels),
            _everything(pairs.model.images, pairs.images),
            _everything(pairs.model.texts, pairs.bags),
        ]
        features, outputs, logits = zip(*found, strict=True)
        codes = [torch.tanh(each) for each in outputs]
        binary = sum(codes).detach().sign()
        known_features = self.known_features.with_batch(pairs.rows, features[0])
        known_codes = self.known_codes.with_batch(pairs.rows, codes[0])
        loss = sum(
            self._pairs(feature, pairs.labels, known_features)
            + self._pairs(code, pairs.labels, known_codes)
            + (binary - code).square().sum()
            + (labels - torch.sigmoid(said)).square().sum()
            for feature, code, said in zip(features, codes, logits, strict=True)
        )
        told = zip(self.discriminators, features[1:], strict=True)
        loss = loss + sum(_deceived(tells, feature, features[0].detach()) for tells, feature in told)
        return loss / (len(labels) * len(known_codes.codes))

    def _pairs(self, given: Tensor, labels: Tensor, known: Known) -> Tensor:
        similar = similar_to(labels, known)
        cost = PAIRWISE[self.pairwise](given @ known.codes.T / 2, similar)
        return (balanced(similar) / 2 * cost if self.mode == "fixed" else cost).sum()


def _everything(branch: HashModel, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not isinstance(branch.backbone, Semantic):
        raise TypeError(f"a branch with a {type(branch.backbone).__name__}: expected networks.Semantic for SSAH")
    return branch.backbone.everything(branch.normalization(inputs))


def _deceived(discriminator: nn.Module, features: Tensor, of_labels: Tensor) -> Tensor:
    """What a discriminator gets wrong; the network behind ``features`` wants it to be more."""
    told = discriminator(torch.cat([Reversed.apply(features), of_labels]))[:, 0]
    truth = torch.cat([told.new_zeros(len(features)), told.new_ones(len(of_labels))])
    return binary_cross_entropy_with_logits(told, truth, reduction="sum")


def _layer(entries: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(entries, hidden), nn.ReLU())


def _discriminator(feature: int) -> nn.Module:
    half = feature // 2
    return nn.Sequential(*layers(feature, feature, half, 1))
