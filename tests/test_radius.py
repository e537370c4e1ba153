"""A radius of its own for each image: uniform, kept to by every search, and steps that shrink with it."""

import pytest
import torch
from torch import nn

from robret_lib.attacks import NES, PGD, AutoPGD
from robret_lib.attacks.search.auto_pgd import SCHEDULES
from robret_lib.attacks.search.ball import Ball
from robret_lib.defenses import DrawnRadius
from robret_lib.defenses.radius import shrunk
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, seeded, small_model, some_split

NORMS = ["linf", "l2"]
EPS = {"linf": 0.2, "l2": 1.0}
SEARCHES = {
    "PGD": lambda norm: PGD(EPS[norm], EPS[norm] / 2, 4, norm),
    **{name: lambda norm, name=name: AutoPGD(EPS[norm], 4, norm, schedule=name) for name in SCHEDULES},
}


class Pixels(nn.Module):
    """Embeds an image as its pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.weight * images.flatten(1)


def bright(embeddings):
    return -embeddings.sum(1)


def gray(count):
    return torch.full((count, 1, 2, 2), 0.5)


def changes(images, found, norm):
    difference = (found - images).flatten(1)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)


def radii(count, norm="linf", seed=3):
    return EPS[norm] * torch.rand(count, 1, 1, 1, generator=seeded(seed)).flatten()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SEARCHES)
def test_each_image_moves_as_far_as_its_radius(name, norm):
    """To the very edge, where nothing is in the way."""
    images, search = gray(40), DrawnRadius(SEARCHES[name](norm))
    assert search.eps == EPS[norm]
    found = search(Pixels(), images, bright, seeded(3))
    torch.testing.assert_close(changes(images, found, norm), radii(40, norm), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_keeps_to_the_radii_and_to_the_pixels_there_are(name, norm, random_start, device):
    """Also with a generator on the CPU and images elsewhere."""
    images, model = some_split(40, seed=10).images.to(device), small_model().to(device)
    clean = embed(model, images)
    given = SEARCHES[name](norm)
    search = DrawnRadius(type(given)(**{**vars(given), "random_start": random_start}))

    def near(embeddings):
        return (embeddings - clean.roll(1, 0)).norm(dim=1)

    before = images.clone()
    found = search(model, images, near, seeded(3))
    assert torch.equal(images, before) and found.device == images.device and not found.requires_grad
    assert (changes(images, found, norm).cpu() <= radii(40, norm) + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1
    far_enough = (radii(40, norm) > 0.1 * EPS[norm]).to(device)
    assert (near(embed(model, found)) < near(clean))[far_enough].float().mean() > 0.9


def test_radii_are_uniform_from_zero_to_the_largest():
    """Of n draws the mean, the largest and the whole distribution (Kolmogorov and Smirnov), where 1 in 1,000 fails."""
    n, images = 4000, gray(4000)
    found = DrawnRadius(PGD(0.3, 0.3, 1))(Pixels(), images, bright, seeded(1))
    shares = changes(images, found, "linf").double().sort().values / 0.3
    assert abs(shares.mean() - 0.5) < 3.3 * (1 / 12 / n) ** 0.5
    assert 1 - 7 / n < shares[-1] <= 1 + 1e-6
    steps = torch.arange(n + 1).double() / n
    assert max((shares - steps[:-1]).max(), (steps[1:] - shares).max()) < 1.95 / n**0.5


@pytest.mark.parametrize("norm", NORMS)
def test_steps_shrink_with_the_radius(norm):
    """One step of a tenth of the largest radius is a tenth of the own one."""
    images, eps = gray(20), EPS[norm]
    found = DrawnRadius(PGD(eps, eps / 10, 1, norm))(Pixels(), images, bright, seeded(3))
    torch.testing.assert_close(changes(images, found, norm), radii(20, norm) / 10, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SEARCHES)
def test_it_is_the_search_within_balls_of_those_radii(name, norm):
    images, model, search = some_split(12, seed=10).images, small_model(), SEARCHES[name](norm)
    expected = search.within(Ball(images, radii(12, norm).view(-1, 1, 1, 1), norm), model, bright, seeded(4))
    assert torch.equal(DrawnRadius(search)(model, images, bright, seeded(3)), expected)


def test_without_a_radius_nothing_moves_and_nothing_is_drawn():
    images, generator = some_split(6, seed=10).images, seeded(3)
    for search in (PGD(0, 0.1, 2), AutoPGD(0, 2)):
        found = DrawnRadius(search)(small_model(), images, bright, generator)
        assert torch.equal(found, images) and found is not images
    assert torch.equal(generator.get_state(), seeded(3).get_state())


@pytest.mark.parametrize("random_start", [False, True])
def test_the_batch_size_matters_only_where_starts_are_drawn_too(random_start):
    images, model = some_split(12, seed=10).images.double(), small_model().double()
    search = DrawnRadius(PGD(0.2, 0.05, 4, random_start=random_start))
    generator = seeded(3)
    parts = torch.cat([search(model, part, bright, generator) for part in images.split(4)])
    whole = search(model, images, bright, seeded(3))
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12) == (not random_start)


def test_without_a_generator_it_is_the_global_one():
    images, search = gray(5), DrawnRadius(PGD(0.2, 0.2, 1))
    torch.manual_seed(3)
    found = search(Pixels(), images, bright)
    torch.testing.assert_close(changes(images, found, "linf"), radii(5), rtol=1e-4, atol=1e-6)


def test_images_that_are_none_are_refused():
    with pytest.raises(ValueError, match="images hold 0 to 255"):
        DrawnRadius(PGD(0.2, 0.1, 1))(Pixels(), torch.tensor([0.0, 255.0]).view(1, 1, 1, 2), bright)


@pytest.mark.parametrize("search", [NES(0.1), DrawnRadius(PGD(0.1, 0.1, 1)), PGD, None])
def test_another_search_is_refused(search):
    with pytest.raises(TypeError, match="DrawnRadius with .*: expected PGD or AutoPGD, whose ball may be of any size"):
        DrawnRadius(search)


@pytest.mark.parametrize("wrap", [lambda search: search, DrawnRadius])
def test_a_shrunk_search_has_a_share_of_the_radius_and_of_the_step(wrap):
    pgd, auto = PGD(0.2, 0.04, 5, random_start=True), AutoPGD(1.0, 5, "l2", restarts=2)
    assert shrunk(wrap(pgd), 0.25) == wrap(PGD(0.05, 0.01, 5, random_start=True))
    assert shrunk(wrap(auto), 0.25) == wrap(AutoPGD(0.25, 5, "l2", restarts=2))
    for search in (pgd, auto):
        assert shrunk(wrap(search), 1) == wrap(search)
        assert shrunk(wrap(search), 0).eps == 0
