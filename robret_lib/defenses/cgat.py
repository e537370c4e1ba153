"""Center-guided adversarial training: the attack drives codes away from the center of their own, the network back."""

import torch
from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.defenses.attacked_codes import AttackedCodes
from robret_lib.hamming import codes_of
from robret_lib.hashing import HashObjective
from robret_lib.hashing.center_code import Weights, check_weights, overlap, votes_of
from robret_lib.mining import Mode


class CenterGuided(AttackedCodes):
    """CgAT: an attacked code costs ``-mean_k u~_k c_k``, with the center code c of the labels of its image.

    c is near all codes of the training set that share a label, and far from the others (`hashing.center_code`). The
    same ``mean_k u~_k c_k``, of binary codes ``1 - 2 d_H / K``, is made small by the inner attack and large by
    training, and c is told anew between them, by the codes of the clean batch. (Wang et al., "CgAT: Center-Guided
    Adversarial Training for Deep Hashing-Based Retrieval", WWW 2023; `central_adv_train.py` in the authors' code.)

    Mode "reference" follows the released code in what it makes centers of: codes are binary until a batch has held
    them, and relaxed from then on, since its two buffers are one. A bit of c on which there is a draw is 0, and so are
    all where no image, or every image, shares a label. In "fixed" codes are binary, a draw is +1, and the side that
    there is decides.

    Args:
        search, clean, adversarial_weight, hashing_weight, mode: See `AttackedCodes`.
        weights: Of the center code, see `hashing.center_code.Weights`.
        quantization: See `AttackedCodes`; 0 as released, 1e-4 in the authors' code of March 2022.

    Raises:
        TypeError, ValueError: As `AttackedCodes`; no such weights.
    """

    label_vectors: Tensor  # those that the training set has, each once,
    group: Tensor  # which of them an image has,
    counts: Tensor  # and how many images have it

    def __init__(
        self,
        search: Search,
        clean: HashObjective,
        weights: Weights = "binary",
        adversarial_weight: float = 1.0,
        hashing_weight: float = 1.0,
        quantization: float = 0.0,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__(search, clean, adversarial_weight, hashing_weight, quantization, mode)
        check_weights(weights)
        self.weights = weights
        found = clean.known.labels.unique(dim=0, return_inverse=True, return_counts=True)
        for name, part in zip(("label_vectors", "group", "counts"), found, strict=True):
            self.register_buffer(name, part, persistent=False)

    def label_information(self, labels: Tensor) -> Tensor:
        """How much each image of the batch has in common with each label vector, ``[B, label vectors]``."""
        return overlap(labels, self.label_vectors, self.weights)

    def price(self, information: Tensor) -> CodeLoss:
        centers = self.centers(information)
        return lambda codes: -(codes * centers).mean(1)

    def centers(self, shared: Tensor) -> Tensor:
        """The center codes ``[B, bits]`` of images with this `label_information`."""
        codes = self.known.codes
        if self.mode == "reference":
            return self._votes(shared, codes).sign().to(codes) * self.has_both_sides(shared)
        return codes_of(self._votes(shared, codes.sign())).to(codes)

    def _votes(self, shared: Tensor, codes: Tensor) -> Tensor:
        sums = codes.new_zeros(len(self.label_vectors), codes.shape[1]).index_add_(0, self.group, codes)
        return votes_of(shared, sums, self.counts)

    def has_both_sides(self, shared: Tensor) -> Tensor:
        """Whether some share a label with an image and others do not, ``[B, 1]``; else, as published, c is zero."""
        return torch.logical_and((shared > 0).any(1, keepdim=True), (shared == 0).any(1, keepdim=True))
