"""What all defenses of hash codes share: the loss of clean images, and a price of the codes that an attack leaves."""

import torch
from torch import Tensor, nn

from robret_lib.attacks import Search
from robret_lib.attacks.attack import check_mode
from robret_lib.attacks.relaxed import SPAN, CodeLoss
from robret_lib.data import multi_hot
from robret_lib.defenses.inner import check_inner
from robret_lib.fields import check_number
from robret_lib.hashing import HashObjective
from robret_lib.hashing.batch import Known, quantization
from robret_lib.mining import Mode


class AttackedCodes(nn.Module):
    """The hashing loss of clean images, and what the codes u~ of attacked ones cost.

    ``hashing_weight L_hash(x) + adversarial_weight mean price(u~) + quantization mean (u~ - sign u~)^2``. What codes
    cost is for the subclass to say; the inner attack wants a high price, unless the subclass says otherwise. Of a
    batch, the attack is made first, by what was known before; then both are embedded, the codes of the clean images are
    noted, and the price is told by them.

    Codes are relaxed, ``u = tanh f``. Where outputs are large, tanh is flat: to networks that CgAT has trained, some
    images have no slope at all in float32. In mode "fixed" the inner attack looks at ``tanh(mu f)`` instead, with a mu
    of at most 1 for each image, so that mu f has no larger root mean square than `attacks.relaxed.SPAN`.

    Args:
        search: The inner attack; published as ``PGD(8 / 255, 2 / 255, 7, random_start=True)``.
        clean: The hashing loss, and the codes of the training set as last seen, which prices are made of. Training
            starts from a network that has learned by the same loss, and whose codes are known (`KnownCodes.fill`). The
            codes of later batches are those of training: of crops, where there are some, and with dropout.
        adversarial_weight, hashing_weight, quantization: See above. Without a hashing loss, clean images teach nothing,
            but their codes are noted.
        mode: In "reference" the inner attack looks at u, and meets the network as it is trained, dropout and all, as in
            the published codes; in "fixed" as it searches.

    Raises:
        TypeError: No search, one by values, or one on another network.
        ValueError: A weight below 0, no such mode, or codes that are known with int labels.
    """

    needs_known_codes = True

    def __init__(
        self,
        search: Search,
        clean: HashObjective,
        adversarial_weight: float = 1.0,
        hashing_weight: float = 1.0,
        quantization: float = 0.0,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__()
        check_inner(self, search)
        check_mode(mode)
        if clean.known.labels.ndim != 2:
            raise ValueError("labels int [N] of the known codes: expected multi-hot [N, C]")
        weights = {
            "adversarial_weight": adversarial_weight,
            "hashing_weight": hashing_weight,
            "quantization": quantization,
        }
        for name, value in weights.items():
            check_number(name, value, least=0)
        self.search, self.clean, self.mode = search, clean, mode
        self.adversarial_weight, self.hashing_weight, self.quantization = weights.values()

    @property
    def known(self) -> Known:
        """The training set as last seen."""
        return self.clean.known.all()

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of a batch: images ``[B, C, H, W]`` in [0, 1], labels int ``[B]`` or multi-hot ``[B, C]``.

        Raises:
            RuntimeError: Codes of the training set are not known.
        """
        self._check_known()
        information = self.label_information(multi_hot(labels, self.clean.known.labels.shape[1]))
        wanted = self.inner_loss(information, generator)
        network = _InItsMode(model) if self.mode == "reference" else model
        moved = self.search(network, images, lambda outputs: wanted(self._seen_by_attack(outputs)), generator)
        clean, attacked = model(torch.cat([images, moved])).chunk(2)
        loss = self.hashing_weight * self.clean.of_outputs(clean, labels, generator)
        codes = torch.tanh(attacked)
        loss = loss + self.adversarial_weight * self.price(information)(codes).mean()
        loss = loss + self.own_loss(len(images), generator)
        return loss + self.quantization * quantization(codes).mean() if self.quantization else loss

    def label_information(self, labels: Tensor) -> Tensor:
        """What prices need of labels ``[B, C]``, ``[B, *]``, made once a batch: the labels themselves."""
        return labels

    def price(self, information: Tensor) -> CodeLoss:
        """What codes cost, by what is known now: ``[B]`` of ``[B, bits]``; see `label_information`."""
        raise NotImplementedError

    def inner_loss(self, information: Tensor, generator: torch.Generator) -> CodeLoss:
        """What the inner attack minimizes: minus the price."""
        price = self.price(information)
        return lambda codes: -price(codes)

    def own_loss(self, size: int, generator: torch.Generator) -> Tensor | float:
        """What weights of the objective itself learn by, beside a batch of this size."""
        return 0.0

    def _seen_by_attack(self, outputs: Tensor) -> Tensor:
        if self.mode == "reference":
            return torch.tanh(outputs)
        size = outputs.detach().square().mean(1, keepdim=True).sqrt()
        return torch.tanh(outputs * (SPAN / size).clamp(max=1))

    def _check_known(self) -> None:
        unknown = int((~self.clean.known.seen).sum()) if self.needs_known_codes else 0
        if unknown:
            raise RuntimeError(f"{unknown} codes of the training set are not known: fill them in, see KnownCodes.fill")


class _InItsMode(nn.Module):
    """A network that stays in the mode it is in, whoever asks for another one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def train(self, mode: bool = True) -> "_InItsMode":
        return self
