"""What all defenses of hash codes share: the loss of clean images, and a price of the codes that an attack leaves."""

import torch
from torch import Tensor, nn

from robret_lib.attacks import Search
from robret_lib.attacks.attack import check_mode
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.data import multi_hot
from robret_lib.defenses.inner import check_inner
from robret_lib.fields import check_number
from robret_lib.hashing import HashObjective
from robret_lib.hashing.batch import Known, quantization
from robret_lib.mining import Mode


class AttackedCodes(nn.Module):
    """``w L_hash(x) + lambda mean price(h(x')) + mu mean (h(x') - sign h(x'))^2``, where an inner attack has made x'.

    What codes cost is for the subclass to say; the attack wants a high price, unless the subclass says otherwise. Codes
    are relaxed, ``h = tanh f``. Of a batch, the attack is made first, by what was known before; then both are embedded,
    the codes of the clean images are noted, and the price is told by them.

    Args:
        search: The inner attack; published as ``PGD(8 / 255, 2 / 255, 7, random_start=True)``.
        clean: The hashing loss, and the codes of the training set as last seen, which prices are made of. Training
            starts from a network that has learned by the same loss.
        weight: lambda.
        clean_weight: w. At 0, clean images teach nothing, but their codes are noted.
        quantization: mu.
        mode: In "reference" the attack meets the network as it is trained, dropout and all, as in the published codes;
            in "fixed" as it searches.

    Raises:
        TypeError: No search, one by values, or one on another network.
        ValueError: A weight below 0, no such mode, or codes that are known with int labels.
    """

    def __init__(
        self,
        search: Search,
        clean: HashObjective,
        weight: float = 1.0,
        clean_weight: float = 1.0,
        quantization: float = 0.0,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__()
        check_inner(self, search)
        check_mode(mode)
        if clean.known.labels.ndim != 2:
            raise ValueError("labels int [N] of the known codes: expected multi-hot [N, C]")
        for name, value in (("weight", weight), ("clean_weight", clean_weight), ("quantization", quantization)):
            check_number(name, value, least=0)
        self.search, self.clean, self.mode = search, clean, mode
        self.weight, self.clean_weight, self.quantization = weight, clean_weight, quantization

    @property
    def known(self) -> Known:
        """The training set as last seen."""
        return self.clean.known.all()

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch: images ``[B, C, H, W]`` in [0, 1], labels int ``[B]`` or multi-hot ``[B, C]``."""
        asked = self.looked_up(multi_hot(labels, self.clean.known.labels.shape[1]))
        wish = self.wish(asked, generator)
        network = _InItsMode(model) if self.mode == "reference" else model
        moved = self.search(network, images, lambda outputs: wish(torch.tanh(outputs)), generator)
        clean, attacked = model(torch.cat([images, moved])).chunk(2)
        loss = self.clean_weight * self.clean.of_outputs(clean, labels, generator)
        codes = torch.tanh(attacked)
        loss = loss + self.weight * self.price(asked)(codes).mean() + self.own_loss(len(images), generator)
        return loss + self.quantization * quantization(codes).mean() if self.quantization else loss

    def looked_up(self, labels: Tensor) -> Tensor:
        """What prices of a batch with labels ``[B, C]`` are told by, and no step of its training changes: the labels.

        Made once a batch, ``[B, *]``.
        """
        return labels

    def price(self, asked: Tensor) -> CodeLoss:
        """What codes of a batch that is `looked_up` cost, by what is known now: ``[B]`` of ``[B, bits]``."""
        raise NotImplementedError

    def wish(self, asked: Tensor, generator: torch.Generator) -> CodeLoss:
        """What the inner attack minimizes of them."""
        price = self.price(asked)
        return lambda codes: -price(codes)

    def own_loss(self, size: int, generator: torch.Generator) -> Tensor | float:
        """What weights of the objective itself learn by, beside a batch of this size."""
        return 0.0


class _InItsMode(nn.Module):
    """A network that stays in the mode it is in, whoever asks for another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def train(self, mode: bool = True) -> "_InItsMode":
        return self
