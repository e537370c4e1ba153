"""Center-guided adversarial training: the attack drives codes away from the center of their own, the network back."""

from torch import Tensor

from robret_lib.attacks import Search
from robret_lib.attacks.relaxed import CodeLoss
from robret_lib.defenses.attacked_codes import AttackedCodes
from robret_lib.hamming import codes_of
from robret_lib.hashing import HashObjective
from robret_lib.hashing.center_code import Weights, check_weights, overlap, votes_of
from robret_lib.mining import Mode


class CenterGuided(AttackedCodes):
    """CgAT: an attacked code costs ``-mean_k h~_k c_k``, with the center code c of the labels of its image.

    c is near all codes of the training set that share a label, and far from the others (`hashing.center_code`). The
    same ``mean_k h~_k c_k = 1 - 2 D_H / K`` is made small by the inner attack and large by training, and c is told anew
    between them, by the codes of the clean batch. (Wang et al., "CgAT: Center-Guided Adversarial Training for Deep
    Hashing-Based Retrieval", WWW 2023; `central_adv_train.py` in the authors' code.)

    Args:
        search, clean, weight, clean_weight, mode: See `AttackedCodes`. The codes of ``clean`` are known before training
            (`KnownCodes.fill`). In mode "reference" a bit of c on which there is a draw is 0, and so are all where no
            image or every image shares a label; "fixed" takes +1 for a draw, and the side that there is.
        weights: Of the center code, see `hashing.center_code.Weights`.
        quantization: See `AttackedCodes`; 0 as released, 1e-4 in the authors' code of March 2022.

    Raises:
        TypeError, ValueError: As `AttackedCodes`; no such weights.
    """

    kinds: Tensor  # label vectors that the training set has, each once,
    kind: Tensor  # which of them an image has,
    counts: Tensor  # and how many images have it

    def __init__(
        self,
        search: Search,
        clean: HashObjective,
        weights: Weights = "binary",
        weight: float = 1.0,
        clean_weight: float = 1.0,
        quantization: float = 0.0,
        mode: Mode = "fixed",
    ) -> None:
        super().__init__(search, clean, weight, clean_weight, quantization, mode)
        check_weights(weights)
        self.weights = weights
        found = clean.known.labels.unique(dim=0, return_inverse=True, return_counts=True)
        for name, part in zip(("kinds", "kind", "counts"), found, strict=True):
            self.register_buffer(name, part, persistent=False)

    def looked_up(self, labels: Tensor) -> Tensor:
        """How much each image of the batch has in common with each kind of label vector, float64 ``[B, kinds]``.

        Raises:
            RuntimeError: Codes of the training set are not known.
        """
        if not self.clean.known.seen.all():
            unknown = int((~self.clean.known.seen).sum())
            raise RuntimeError(f"{unknown} codes of the training set are not known: fill them in, see KnownCodes.fill")
        return overlap(labels, self.kinds, self.weights).double()

    def price(self, asked: Tensor) -> CodeLoss:
        centers = self.centers(asked)
        return lambda codes: -(codes * centers).mean(1)

    def centers(self, shared: Tensor) -> Tensor:
        """The center codes ``[B, bits]`` of images that have so much in common with each kind."""
        signs = self.known.codes.sign()
        sums = signs.new_zeros(len(self.kinds), signs.shape[1]).index_add_(0, self.kind, signs)
        votes = votes_of(shared, sums, self.counts)
        if self.mode == "fixed":
            return codes_of(votes).to(signs)
        return votes.sign().to(signs) * self.one_of_each(shared)

    def one_of_each(self, shared: Tensor) -> Tensor:
        """Whether an image has company and others, ``[B, 1]``; without, the published code has a center of zeros."""
        own = (shared > 0).any(1, keepdim=True)
        return own & (shared == 0).any(1, keepdim=True)
