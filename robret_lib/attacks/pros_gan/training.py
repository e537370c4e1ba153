"""How ProS-GAN is trained: the code of the labels, little change, and a discriminator that takes the image for real."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pad
from tqdm import tqdm

from robret_lib.attacks.pros_gan.networks import Discriminator, ImageGenerator
from robret_lib.data import as_float, multi_hot
from robret_lib.fields import check_count, check_number
from robret_lib.hamming import codes_of
from robret_lib.hashing.prototype import label_kinds
from robret_lib.mining import shuffled_epoch
from robret_lib.models import embeddings_of, frozen


@dataclass(frozen=True)
class GanSchedule:
    """How long and how fast to train, and what counts how much.

    Args:
        steps: Updates of the generator; published are 100 passes over the training images, 20,900 for the 5,000 of
            FLICKR-25K.
        batch: Images in a step.
        lr: Of Adam (0.5, 0.999), for both networks; constant in the first half, then falling in a line to zero.
        reconstruction: Weight of the squared change of a pixel of [-1, 1]: 100 for FLICKR-25K, 50 for NUS-WIDE and
            MS-COCO.
        code: Weight of one minus the mean agreement of a bit with that of the target.
        realism: Weight of what the discriminator says.
        every: The discriminator is updated in the first step and every so many later.

    Raises:
        ValueError: An impossible number.
    """

    steps: int = 20_900
    batch: int = 24
    lr: float = 1e-4
    reconstruction: float = 100.0
    code: float = 5.0
    realism: float = 1.0
    every: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "every"):
            check_count(name, getattr(self, name))
        check_number("lr", self.lr, above=0)
        for name in ("reconstruction", "code", "realism"):
            check_number(name, getattr(self, name), least=0)

    def share(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the first."""
        return min(1.0, 2 * (1 - step / self.steps))


def train_generator(
    network: ImageGenerator,
    discriminator: Discriminator,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    schedule: GanSchedule | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Train a generator of adversarial images and its discriminator in place; all networks on one device.

    Each image of a batch gets a kind of labels that is drawn for it. (`TargetAttackGAN.train`, which may also draw none
    at all; both may draw those of the image itself.)

    Args:
        network, discriminator: To be trained; put into training mode.
        model: The attacked `HashModel`, seen with its gradients; left as it was found.
        images: ``[N, C, H, W]``, uint8 or float in [0, 1].
        labels: int ``[N]`` or multi-hot ``[N, classes]``.
        targets: Labels that are aimed at, each kind alike; those of the database in the published code. None takes
            those of the images.
        schedule: See `GanSchedule`; None is the published one.
        generator: Of all that is drawn, on the CPU; None is torch's global one.
        progress: Show a progress bar.

    Returns:
        The parts of the generator's loss, unweighted, by the names of their weights, ``[steps]`` each.

    Raises:
        ValueError: An impossible number; labels that do not fit.
        FloatingPointError: A loss became NaN or infinite.
    """
    schedule = GanSchedule() if schedule is None else schedule
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels: expected labels of each")
    device, classes = next(network.parameters()).device, discriminator.classes
    kinds = label_kinds(labels if targets is None else targets, classes).to(device)
    maker, judge = _Trained(network, schedule), _Trained(discriminator, schedule)
    batches = _batches(images, multi_hot(labels, classes).float(), schedule.batch, device, generator)
    history = []
    network.train()
    discriminator.train()
    with frozen(model):
        for step in tqdm(range(schedule.steps), disable=not progress):
            shown, own = next(batches)
            wanted = kinds[torch.randint(len(kinds), (len(shown),), generator=generator).to(device)]
            made = network(shown, wanted)
            if step % schedule.every == 0:
                judge.step(discriminator_loss(discriminator, shown, own, made.detach(), wanted), step)
            parts = generator_losses(discriminator, model, shown, made, wanted, codes_of(network.prototypes(wanted)))
            maker.step(sum(getattr(schedule, name) * part for name, part in parts.items()), step)
            history.append({name: part.detach() for name, part in parts.items()})
    return {name: _finite(name, torch.stack([parts[name] for parts in history])) for name in history[0]}


def generator_losses(
    discriminator: Discriminator, model: nn.Module, images: Tensor, made: Tensor, wanted: Tensor, codes: Tensor
) -> dict[str, Tensor]:
    """What the generator minimizes, by the names of the weights in `GanSchedule`; scalars.

    Args:
        discriminator, model: See `train_generator`.
        images, made: In [0, 1] ``[B, C, H, W]``, before and after.
        wanted: Target labels, multi-hot ``[B, classes]``.
        codes: Theirs, in {-1, +1} ``[B, bits]``.
    """
    relaxed = torch.tanh(embeddings_of(model, made))
    return {
        "reconstruction": mse_loss(2 * made, 2 * images),
        "code": 1 - (relaxed * codes).mean(),
        "realism": mse_loss(discriminator(made), told(wanted, made=False)),
    }


def discriminator_loss(
    discriminator: Discriminator, images: Tensor, own: Tensor, made: Tensor, wanted: Tensor
) -> Tensor:
    """The mean of two squared errors: of real images with their own labels, and of made ones with their targets'."""
    real = mse_loss(discriminator(images), told(own, made=False))
    return (real + mse_loss(discriminator(made), told(wanted, made=True))) / 2


def told(labels: Tensor, made: bool) -> Tensor:
    """What a discriminator is to say: labels ``[B, C]`` and a last number, 0 for a real image and 1 for a made one."""
    return pad(labels, (0, 1), value=float(made))


class _Trained:
    """A network with its optimizer; no other network gets weight gradients."""

    def __init__(self, network: nn.Module, schedule: GanSchedule) -> None:
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(self.weights, schedule.lr, betas=(0.5, 0.999))
        self.schedule = schedule

    def step(self, loss: Tensor, step: int) -> None:
        self.optimizer.zero_grad()
        loss.backward(inputs=self.weights)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr * self.schedule.share(step)
        self.optimizer.step()


def _batches(
    images: Tensor, labels: Tensor, batch: int, device: torch.device, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, pass after pass in an order of its own."""
    while True:
        for rows in shuffled_epoch(len(images), batch, generator):
            yield as_float(images[rows].to(device)), labels[rows].to(device)


def _finite(name: str, losses: Tensor) -> Tensor:
    if not losses.isfinite().all():
        raise FloatingPointError(f"the loss {name} became NaN or infinite: lower the learning rate")
    return losses
