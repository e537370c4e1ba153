"""A network that knows the code of labels: near the codes of all images that share one, far from those of the others.

It is trained on label vectors and the codes of a hash network, and never sees an image. Targeted attacks go towards its
codes (`attacks.targeted_codes.Prototype`), and a generator of adversarial images is told by it what is wanted
(`attacks.pros_gan`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus
from tqdm import tqdm

from robret_lib.data import multi_hot, relevance
from robret_lib.fields import check_count, check_number
from robret_lib.hamming.codes import check_binary
from robret_lib.hashing.batch import Known, likelihood, quantization

QUANTIZATION = 1e-4
"""Weight of the squared distance of relaxed codes from their signs, summed over the bits."""


class PrototypeNet(nn.Module):
    """Labels to a relaxed code: C -> 4096, ReLU, -> 512, the feature; and from there to the bits, tanh.

    A second head tells the labels again; ProS-GAN trains it, THA has none and leaves it as it is. (Wang et al.,
    "Targeted Attack and Defense for Deep Hashing", SIGIR 2021; "Prototype-supervised Adversarial Network for Targeted
    Attack of Deep Hashing", CVPR 2021; both as `PrototypeNet` in the authors' code.)

    Args:
        classes, bits: Of the labels and the codes.
        hidden: Sizes of the hidden layer and the feature.
    """

    def __init__(self, classes: int, bits: int, hidden: tuple[int, int] = (4096, 512)) -> None:
        super().__init__()
        for name, count in (("classes", classes), ("bits", bits), ("hidden", min(hidden))):
            check_count(name, count)
        first, self.features = hidden
        self.classes = classes
        self.body = nn.Sequential(nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, self.features))
        self.code = nn.Sequential(nn.Linear(self.features, bits), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(self.features, classes), nn.Sigmoid())

    def forward(self, labels: Tensor) -> Tensor:
        """Relaxed codes ``[B, bits]`` in (-1, 1) of labels ``[B]`` or ``[B, C]``; errors as of `multi_hot`."""
        return self.code(self.feature(labels))

    def feature(self, labels: Tensor) -> Tensor:
        """What codes and labels are read from, ``[B, hidden[1]]``."""
        weight = self.body[0].weight
        return self.body(multi_hot(labels, self.classes).to(weight))

    def probabilities(self, labels: Tensor) -> Tensor:
        """Of each class, as the second head says, ``[B, C]`` in (0, 1)."""
        return self.head(self.feature(labels))


PrototypeLoss = Callable[[PrototypeNet, Tensor, Known], Tensor]
"""A scalar of the network, a batch of label vectors, multi-hot ``[n, C]``, and binary codes with their labels."""


def circle_loss(network: PrototypeNet, labels: Tensor, known: Known, softened: bool = False) -> Tensor:
    """THA's: of all pairs of a code of the network and a known one, the least similar ones count, and most similar.

    With ``s = g b / K``, divided by n, the log of the sum of ``exp((s + 2) s)`` over the pairs without a common label,
    plus that of ``exp((s - 2) s)`` over the pairs with one, the factors in brackets taken as constants; and `blur`.
    (The authors' code, `attack.py` and `CircleLoss`; it leaves out the pairs (i, j) with j up to i, a remainder of a
    square matrix.)

    Args:
        network, labels, known: As in `PrototypeLoss`.
        softened: ``log(1 + e^t)`` in place of the sum t of both logs, as in SAAT's port.
    """
    codes = network(labels)
    similarities = codes @ known.codes.T.to(codes) / codes.shape[1]
    similar = relevance(labels, known.labels)
    weights = similarities.detach()
    sums = _log_of_sum((weights - 2) * similarities, similar) + _log_of_sum((weights + 2) * similarities, ~similar)
    return (softplus(sums) if softened else sums) / len(labels) + blur(codes)


def likelihood_loss(network: PrototypeNet, labels: Tensor, known: Known) -> Tensor:
    """ProS-GAN's: ``mean (log(1 + e^t) - S t)`` with ``t = g b / 2``, `blur`, and the squared error of the labels.

    All pairs count alike, so that with many classes those without a common label decide. (The authors' code,
    `TargetAttackGAN.train_prototype_net`.) Arguments as in `PrototypeLoss`.
    """
    codes = network(labels)
    logits, similar = codes @ known.codes.T.to(codes) / 2, relevance(labels, known.labels).to(codes)
    wrong = mse_loss(network.probabilities(labels), labels.to(codes))
    return likelihood(logits, similar).mean() + wrong + blur(codes)


def blur(codes: Tensor) -> Tensor:
    """1e-4 times the mean over codes ``[n, bits]`` of the squared distance from their signs."""
    return QUANTIZATION * quantization(codes).sum(1).mean()


def train_prototypes(
    network: PrototypeNet,
    labels: Tensor,
    codes: Tensor,
    code_labels: Tensor,
    steps: int = 30_000,
    batch: int = 32,
    lr: float = 1e-4,
    loss: PrototypeLoss = circle_loss,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Train the network in place, on its own device: Adam (0.5, 0.999), a tenth of the rate after 1/2 and 3/4.

    Args:
        network: See `PrototypeNet`.
        labels: Of which the batches are drawn, each kind that has a label alike and with replacement: int ``[M]`` or
            multi-hot ``[M, C]``, the whole database in the published codes.
        codes: Of the hash network, in {-1, +1} ``[N, bits]``, those of its training set there.
        code_labels: Their labels, as the others.
        steps, batch, lr: As THA has them; ProS-GAN has batches of 64.
        loss: `circle_loss` or `likelihood_loss`.
        generator: Of the batches, on the CPU; None is torch's global one.
        progress: Show a progress bar.

    Returns:
        The loss of each step, ``[steps]``.

    Raises:
        ValueError: An impossible number; codes and labels that do not fit together or the network; no labels.
        FloatingPointError: The loss became NaN or infinite.
    """
    for name, count in (("steps", steps), ("batch", batch)):
        check_count(name, count)
    check_number("lr", lr, above=0)
    device = next(network.parameters()).device
    kinds, known = label_kinds(labels, network.classes).to(device), _known(network, codes, code_labels, device)
    optimizer = torch.optim.Adam(network.parameters(), lr, betas=(0.5, 0.999))
    falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])
    losses = torch.zeros(steps, device=device)
    for step in tqdm(range(steps), disable=not progress):
        drawn = torch.randint(len(kinds), (batch,), generator=generator).to(device)
        optimizer.zero_grad()
        found = loss(network, kinds[drawn], known)
        found.backward()
        optimizer.step()
        falling.step()
        losses[step] = found.detach()
    if not losses.isfinite().all():
        raise FloatingPointError("the loss became NaN or infinite: lower the learning rate, or check the codes")
    return losses


def label_kinds(labels: Tensor, classes: int) -> Tensor:
    """The label vectors that occur, each once, multi-hot ``[kinds, C]``; one without labels is none.

    Raises:
        ValueError: There are none.
    """
    kinds = multi_hot(labels, classes).float().unique(dim=0)
    kinds = kinds[kinds.any(1)]
    if not len(kinds):
        raise ValueError(f"labels of shape {tuple(labels.shape)} without any label: there is nothing to aim at")
    return kinds


def _known(network: PrototypeNet, codes: Tensor, labels: Tensor, device: torch.device) -> Known:
    check_binary("known", codes)
    bits = network.code[0].out_features
    if codes.shape[1] != bits or len(labels) != len(codes):
        given = f"codes of shape {tuple(codes.shape)} and {len(labels)} labels"
        raise ValueError(f"{given}: expected codes of {bits} bits, as the network has, and labels of each")
    return Known(codes.to(device, torch.float32), multi_hot(labels, network.classes).to(device))


def _log_of_sum(logits: Tensor, chosen: Tensor) -> Tensor:
    """The log of the sum of ``exp`` over the chosen ones; 0 where there are none."""
    return logits.masked_fill(~chosen, -torch.inf).flatten().logsumexp(0) if chosen.any() else logits.new_zeros(())
