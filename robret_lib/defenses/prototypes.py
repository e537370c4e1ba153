"""Prototypes that are learned beside a hash network: what code an image with given labels should have."""

import torch
from torch import Tensor, nn

from robret_lib.hamming import codes_of
from robret_lib.hashing import KnownCodes, PrototypeNet, circle_loss
from robret_lib.hashing.batch import Known
from robret_lib.hashing.prototype import label_kinds


class Prototypes(nn.Module):
    """A `hashing.PrototypeNet` that learns, a step at a time, from the known codes of a training set.

    Args:
        known: Of the training set; changes while the hash network is trained.
    """

    kinds: Tensor

    def __init__(self, known: KnownCodes) -> None:
        super().__init__()
        classes = known.labels.shape[1]
        self.network = PrototypeNet(classes, known.codes.shape[1])
        self.network.head.requires_grad_(False)  # tells labels; nobody asks for them here
        self.register_buffer("kinds", label_kinds(known.labels, classes))

    def codes(self, labels: Tensor) -> Tensor:
        """In {-1, +1} ``[B, bits]``, of labels ``[B, C]``."""
        with torch.no_grad():
            relaxed = self.network(labels)
        return codes_of(relaxed).to(relaxed)

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Labels ``[count, C]`` drawn from the kinds of label vectors that the training set has, each as likely."""
        places = torch.randint(len(self.kinds), (count,), generator=generator, device=generator.device)
        return self.kinds[places.to(self.kinds.device)]

    def loss(self, known: KnownCodes, count: int, generator: torch.Generator) -> Tensor:
        """THA's, a scalar, of ``count`` drawn label vectors and the binary codes of images that have been seen."""
        codes, labels = known.codes[known.seen], known.labels[known.seen]
        return circle_loss(self.network, self.drawn(count, generator), Known(codes_of(codes).to(codes), labels))
