"""A network that makes adversarial images for labels: its shapes, its training, and the attack with it."""

import pytest
import torch
from torch import Tensor, nn

from robret_lib import attacks
from robret_lib.attacks import Transfer
from robret_lib.attacks.codes import OwnCode
from robret_lib.attacks.pros_gan import Discriminator, GanSchedule, ImageGenerator, train_generator
from robret_lib.attacks.pros_gan.training import discriminator_loss, generator_losses, told
from robret_lib.attacks.search import Generated
from robret_lib.attacks.target_labels import draw_labels
from robret_lib.attacks.targeted_codes import PointToSet, Prototype, TowardsPrecision
from robret_lib.data import as_float
from robret_lib.hashing import PrototypeNet, likelihood_loss, train_prototypes
from tests.small_codes import BITS, ITEMS, QUERIES, hash_model, seeded, small_world

SIDE, SHAPE, CLASSES = 8, (3, 8, 8), 4
QUICK = GanSchedule(steps=6, batch=8)


@pytest.fixture(scope="module")
def world():
    return small_world(SIDE)


@pytest.fixture(scope="module")
def wanted(world) -> Tensor:
    _, _, labels, gallery = world
    return draw_labels(labels, gallery.labels, seeded())


@pytest.fixture(scope="module")
def prototypes(world) -> PrototypeNet:
    gallery, network = world[3], small_prototypes()
    train_prototypes(network, gallery.labels, gallery.codes, gallery.labels, 200, 64, 5e-3, likelihood_loss, seeded())
    return network


def small_prototypes() -> PrototypeNet:
    torch.manual_seed(1)
    return PrototypeNet(CLASSES, BITS, (32, 16))


def networks(prototypes: PrototypeNet) -> tuple[ImageGenerator, Discriminator]:
    torch.manual_seed(2)
    return ImageGenerator(prototypes, SHAPE, width=8), Discriminator(CLASSES, SHAPE, width=8)


def trained(
    world, prototypes: PrototypeNet, schedule: GanSchedule = QUICK, seed: int = 0
) -> tuple[ImageGenerator, dict[str, Tensor]]:
    model, _, _, gallery = world
    network, discriminator = networks(prototypes)
    losses = train_generator(
        network, discriminator, model, gallery.images, gallery.labels, schedule=schedule, generator=seeded(seed)
    )
    return network, losses


# --- networks -------------------------------------------------------------------------------------


def sizes(network: nn.Module) -> list[tuple[int, ...]]:
    """Of the weights that are no biases, in order."""
    return [tuple(weight.shape) for weight in network.parameters() if weight.ndim > 1]


def test_the_published_generator():
    with torch.device("meta"):
        network = ImageGenerator(PrototypeNet(38, 32))
    label_branch = [(128 * 14 * 14, 512), (128, 64, 4, 4), (64, 32, 4, 4), (32, 16, 4, 4), (16, 8, 4, 4), (3, 8, 3, 3)]
    assert sizes(network.picture) == label_branch
    encoder = [(64, 6, 7, 7), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert sizes(network.body) == [*encoder, *[(256, 256, 3, 3)] * 12, (256, 128, 4, 4), (128, 64, 4, 4)]
    assert sizes(network.last) == [(3, 67, 3, 3)]


def test_the_published_discriminator():
    with torch.device("meta"):
        network = Discriminator(38)
    halving = [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1024, 512, 4, 4)]
    assert sizes(network) == [*halving, (39, 1024, 7, 7)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 84, 84), (3, 224, 224), (3, 32, 48), SHAPE])
def test_images_of_any_size_come_back_as_such(shape):
    prototypes, images = small_prototypes(), torch.rand(2, *shape, generator=seeded())
    with torch.no_grad():
        made = ImageGenerator(prototypes, shape, width=8)(images, torch.tensor([0, 3]))
        judged = Discriminator(CLASSES, shape, width=2)(images)
    assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
    assert judged.shape == (2, CLASSES + 1)


def test_other_labels_make_another_image(prototypes):
    network, _ = networks(prototypes)
    images = torch.rand(1, *SHAPE, generator=seeded()).expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = network(images, torch.tensor([0, 1]))
    assert (first - second).abs().max() > 0.01


def test_a_bounded_generator_changes_no_pixel_by_more(prototypes):
    images = torch.rand(2, *SHAPE, generator=seeded())
    network = ImageGenerator(prototypes, SHAPE, width=8, eps=0.1)
    with torch.no_grad():
        network.last.weight.mul_(100)
        made = network(images, torch.tensor([0, 1]))
    assert 0.09 < (made - images).abs().max() <= 0.1 + 1e-6
    assert made.min() >= 0 and made.max() <= 1


def test_the_generator_has_prototypes_of_its_own(prototypes):
    network, _ = networks(prototypes)
    assert not any(weight.requires_grad for weight in network.prototypes.parameters())
    assert all(weight.requires_grad for weight in prototypes.parameters())


def test_convolutions_of_the_discriminator_have_a_spectral_norm_of_one():
    network = Discriminator(CLASSES, (3, 28, 28), width=8)
    for _ in range(50):
        network(torch.rand(1, 3, 28, 28, generator=seeded()))
    convolutions = [layer for layer in network.body if hasattr(layer, "parametrizations")]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in convolutions]
    assert norms == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ImageGenerator(p, (3, 30, 32)), "30 x 32 pixels: expected multiples of four"),
        (lambda p: ImageGenerator(p, (3, 4, 8)), "of at least 8"),
        (lambda p: ImageGenerator(p, (0, 8, 8)), "channels=0"),
        (lambda p: ImageGenerator(p, SHAPE, width=4), "width=4"),
        (lambda p: ImageGenerator(p, SHAPE, eps=8), "eps=8"),
        (lambda p: Discriminator(0, SHAPE), "classes=0"),
        (lambda p: Discriminator(4, SHAPE, width=0), "width=0"),
        (lambda p: ImageGenerator(p, SHAPE, 8)(torch.rand(1, 1, 8, 8), torch.tensor([0])), r"expected \[B, 3, 8, 8\]"),
        (lambda p: ImageGenerator(p, SHAPE, 8)(torch.rand(1, 3, 8, 8), torch.tensor([4])), "expected 4 classes"),
    ],
)
def test_impossible_networks_are_refused(prototypes, make, message):
    with pytest.raises(ValueError, match=message):
        make(prototypes)


# --- losses ---------------------------------------------------------------------------------------


class Says(nn.Module):
    """Stands for a network that says the same whatever it is shown."""

    def __init__(self, answer: list[list[float]]) -> None:
        super().__init__()
        self.answer = torch.tensor(answer)

    def forward(self, images: Tensor) -> Tensor:
        return self.answer


def test_the_last_number_tells_real_from_made():
    labels = torch.tensor([[1.0, 0.0]])
    assert told(labels, made=False).tolist() == [[1, 0, 0]] and told(labels, made=True).tolist() == [[1, 0, 1]]


def test_the_parts_of_the_generators_loss_by_hand():
    images, made = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.75)
    model, discriminator = Says([[0.0, 100.0]]), Says([[1.0, 0.5, 0.5]])
    codes = torch.tensor([[1, -1]])
    parts = generator_losses(discriminator, model, images, made, torch.tensor([[1.0, 0.0]]), codes)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {"reconstruction": 0.5**2, "code": 1 + 0.5, "realism": (0 + 0.25 + 0.25) / 3}
    )


def test_the_discriminators_loss_by_hand():
    own, wanted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    loss = discriminator_loss(Says([[1.0, 0.0, 0.5]]), torch.zeros(1), own, torch.zeros(1), wanted)
    assert loss.item() == pytest.approx((0.25 / 3 + (1 + 1 + 0.25) / 3) / 2)


# --- training -------------------------------------------------------------------------------------


def test_the_rate_is_constant_and_then_falls_to_zero():
    shares = [GanSchedule(steps=8).share(step) for step in range(9)]
    assert shares == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_the_discriminator_is_trained_in_every_third_step(world, prototypes):
    network, discriminator = networks(prototypes)
    asked = []
    discriminator.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    train_generator(network, discriminator, world[0], world[1], world[2], schedule=GanSchedule(steps=7, batch=4))
    assert len(asked) == 7 + 2 * 3


def test_training_follows_its_generator(world, prototypes):
    (first, losses), (second, again), (other, _) = (trained(world, prototypes, seed=seed) for seed in (0, 0, 1))
    same = [torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same) and all(torch.equal(losses[name], again[name]) for name in losses)
    assert not torch.equal(first.last.weight, other.last.weight)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_two_networks_is_changed(world, training):
    model, _, _, gallery = world
    model.train(training)
    prototypes = small_prototypes()
    network, discriminator = networks(prototypes)
    others = model, prototypes, network.prototypes
    before = [{name: value.clone() for name, value in other.state_dict().items()} for other in others]
    moved = {name: value.clone() for name, value in network.named_parameters() if value.requires_grad}
    train_generator(network, discriminator, model, gallery.images, gallery.labels, schedule=QUICK)
    for other, kept in zip(others, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
        assert all(weight.grad is None for weight in other.parameters())
    assert model.training == training and all(weight.requires_grad for weight in model.parameters())
    weights = dict(network.named_parameters())
    assert not any(torch.equal(weights[name], value) for name, value in moved.items() if value.ndim > 1)
    model.eval()


def test_bytes_and_single_labels_are_the_same_to_it(world, prototypes):
    model, images = world[0], (255 * world[1]).to(torch.uint8)
    classes, found = torch.arange(QUERIES) % 3, []
    for shown, labels in ((images, classes), (as_float(images), torch.eye(CLASSES)[classes])):
        network, discriminator = networks(prototypes)
        found.append(train_generator(network, discriminator, model, shown, labels, None, QUICK, seeded())["code"])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GanSchedule(steps=0), "steps=0"),
        (lambda: GanSchedule(batch=0), "batch=0"),
        (lambda: GanSchedule(every=0), "every=0"),
        (lambda: GanSchedule(lr=0.0), "lr=0.0"),
        (lambda: GanSchedule(reconstruction=-1), "reconstruction=-1"),
        (lambda: GanSchedule(code=-1), "code=-1"),
        (lambda: GanSchedule(realism=float("nan")), "realism=nan"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_training_data_that_do_not_fit_are_refused(world, prototypes):
    model, images, labels, _ = world
    with pytest.raises(ValueError, match="12 images and 11 labels"):
        train_generator(*networks(prototypes), model, images, labels[1:])
    with pytest.raises(ValueError, match="without any label"):
        train_generator(*networks(prototypes), model, images, labels, torch.zeros(3, CLASSES))


def test_a_loss_that_is_nan_is_no_training(world, prototypes):
    model, images, labels, _ = world
    network, discriminator = networks(prototypes)
    nn.init.constant_(network.last.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="became NaN"):
        train_generator(network, discriminator, model, images, labels, schedule=QUICK)


# --- the attack -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(world, prototypes) -> ImageGenerator:
    schedule = GanSchedule(steps=300, batch=12, lr=2e-3, reconstruction=2)
    network, losses = trained(world, prototypes, schedule)
    for name in ("reconstruction", "code"):
        assert losses[name][-50:].mean() < losses[name][:50].mean()
    return network


def attacked(world, attack, search, **more):
    model, images, labels, gallery = world
    return attacks.run(attack, model, images, gallery, search, labels=labels, **more)


@pytest.mark.parametrize("eps", [1.0, 0.2])
def test_the_ranking_becomes_more_that_of_the_target(world, wanted, prototypes, generator, eps):
    found = attacked(world, Prototype(wanted=wanted, network=prototypes), Generated(generator, eps))
    images = world[1]
    assert (found.images - images).abs().max() <= eps + 1e-6
    assert found.images.min() >= 0 and found.images.max() <= 1 and not found.images.requires_grad
    assert found.measured["average_precision"].mean() > found.benign["average_precision"].mean() + 20
    assert found.passes == found.backward_passes == 0


def test_batches_do_not_matter(world, wanted, prototypes, generator):
    attack = Prototype(wanted=wanted, network=prototypes)
    whole, parts = (attacked(world, attack, Generated(generator), batch_size=size).images for size in (QUERIES, 5))
    assert torch.allclose(whole, parts, atol=1e-6)


def test_it_makes_the_same_images_for_every_attack_with_these_labels(world, wanted, prototypes, generator):
    wishes = Prototype(wanted=wanted, network=prototypes), PointToSet(wanted=wanted), TowardsPrecision(wanted=wanted)
    first, *others = (attacked(world, attack, Generated(generator), generator=seeded()).images for attack in wishes)
    assert all(torch.equal(first, other) for other in others)
    with torch.no_grad():
        assert torch.allclose(first, generator(world[1], wanted), atol=1e-6)


def test_what_was_trained_on_one_network_attacks_another(world, wanted, prototypes, generator):
    attack, surrogate = PointToSet(wanted=wanted), hash_model(SIDE)
    made = Generated(generator)
    alone, there = (attacked(world, attack, search) for search in (made, Transfer(surrogate, made)))
    assert torch.equal(alone.images, there.images)


def test_images_come_back_in_their_own_type_and_the_network_as_it_was(world, wanted, generator):
    model, images, labels, gallery = world
    generator.train()
    shown = images.double().to(memory_format=torch.channels_last)
    found = attacks.run(PointToSet(wanted=wanted), model, shown, gallery, Generated(generator), labels=labels).images
    assert found.dtype == torch.float64 and found.is_contiguous(memory_format=torch.channels_last)
    assert generator.training and len(gallery) == ITEMS


def test_without_target_labels_there_is_nothing_to_make(world, generator):
    with pytest.raises(TypeError, match="Generated needs target labels"):
        attacked(world, OwnCode(), Generated(generator))
    with pytest.raises(TypeError, match="Generated needs target labels"):
        Generated(generator)(world[0], world[1], lambda outputs: outputs.sum(1))
    with pytest.raises(ValueError, match=r"eps=28: expected pixel units"):
        Generated(generator, 28)
