"""A search that makes entries larger alone: CMLA's half of a ball, of images and of bags of words."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robret_lib.attacks import PGD, AutoPGD, RandomSearch
from robret_lib.attacks.search.auto_pgd import SCHEDULES
from robret_lib.attacks.search.upwards import UpperBall, Upwards
from tests.small_cross_modal import seeded
from tests.test_pgd import (
    Linear,
    assert_in_budget,
    assert_unchanged,
    first_coordinate,
    image_contents,
    mixed_network,
    no_slope,
    small_network,
    snapshot,
    some_images,
)

SEARCHES = {
    "PGD": lambda eps: PGD(eps, 0.05, 4),
    "PGD, random start": lambda eps: PGD(eps, 0.05, 4, random_start=True),
    **{name: lambda eps, name=name: AutoPGD(eps, 4, schedule=name) for name in SCHEDULES},
    "restarts": lambda eps: AutoPGD(eps, 3, restarts=3, random_start=True),
}


def losses_of(network, images):
    with torch.no_grad():
        return network.eval()(images)[:, 0]


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=30)
@given(
    images=image_contents(),
    eps=st.one_of(st.sampled_from([0.0, 1e-7, 0.01, 8 / 255, 1.0]), st.floats(0, 1)),
    seed=st.integers(0, 2**16),
)
def test_no_entry_falls_and_the_ball_is_respected(search, images, eps, seed):
    plain = SEARCHES[search](eps)
    found = Upwards(plain)(small_network(), images, first_coordinate, seeded(seed))
    assert_in_budget(images, found, plain)
    assert (found >= images).all()


@pytest.mark.parametrize("search", SEARCHES)
def test_entries_do_move_and_the_whole_ball_would_lower_some(search):
    """Else there would be nothing to leave out."""
    network, images, plain = small_network(), some_images(), SEARCHES[search](0.1)
    found = Upwards(plain)(network, images, first_coordinate, seeded())
    assert (found > images).flatten(1).any(1).all()
    assert (plain(network, images, first_coordinate, seeded()) < images).any()
    assert (losses_of(network, found) < losses_of(network, images)).all()


@pytest.mark.parametrize("search", [*SCHEDULES, "restarts"])
def test_what_keeps_the_best_leaves_no_larger_loss_than_its_start(search):
    """Also of losses that only a fall would lower, where the image itself is the best."""
    plain = AutoPGD(0.3, 3, restarts=3) if search == "restarts" else SEARCHES[search](0.3)
    network, images = small_network(), some_images(20)
    found = Upwards(plain)(network, images, first_coordinate, seeded())
    assert (losses_of(network, found) <= losses_of(network, images) + 1e-6).all()
    rising = Linear(torch.rand(1, 8, 8, generator=seeded(2)) + 0.1)
    assert torch.equal(Upwards(plain)(rising, images, first_coordinate, seeded()), images)


@pytest.mark.parametrize("search", ["PGD", *SCHEDULES])
def test_of_a_linear_model_the_best_there_is_is_found(search):
    """Where the slope is below 0, as far up as allowed; elsewhere as it was."""
    slopes, images = torch.randn(1, 8, 8, generator=seeded(3)), some_images()
    found = Upwards(SEARCHES[search](0.1))(Linear(slopes), images, first_coordinate)
    expected = torch.where(slopes < 0, (images + 0.1).clamp(max=1), images)
    assert torch.allclose(found, expected, atol=1e-6)


def test_no_word_is_removed_from_a_bag():
    bags = (torch.rand(6, 1, 1, 40, generator=seeded(1)) < 0.3).float()
    slopes = torch.randn(1, 1, 40, generator=seeded(3))
    for eps in (0.01, 1.0):
        found = Upwards(AutoPGD(eps, 5))(Linear(slopes), bags, first_coordinate)
        assert torch.equal(found[bags == 1], bags[bags == 1])
        assert torch.allclose(found, torch.where((slopes < 0) & (bags == 0), eps, bags))


def test_random_starts_are_in_the_upper_half():
    images, ball = some_images(), UpperBall(some_images(), 0.2)
    for start in ball.random_starts(3, seeded()):
        assert (start >= images).all() and (start <= (images + 0.2).clamp(max=1)).all() and (start > images).any()


@pytest.mark.parametrize("search", SEARCHES)
def test_the_images_are_not_touched_and_not_shared(search):
    images = some_images()
    before = images.clone()
    found = Upwards(SEARCHES[search](0.2))(small_network(), images, no_slope, seeded())
    assert not found.requires_grad
    found.add_(1)
    assert torch.equal(images, before)


@pytest.mark.parametrize("search", SEARCHES)
def test_without_a_radius_the_images_come_back(search):
    images = some_images()
    found = Upwards(SEARCHES[search](0.0))(small_network(), images, first_coordinate, seeded())
    assert torch.equal(found, images) and found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("search", ["PGD", "momentum"])
def test_the_model_is_left_as_it_was_found(search):
    network = mixed_network()
    before = snapshot(network)
    Upwards(SEARCHES[search](0.2))(network, some_images(), first_coordinate)
    assert_unchanged(network, before)


def test_images_outside_of_black_and_white_are_refused():
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        Upwards(PGD(0.1, 0.1, 1))(small_network(), 2 * some_images(), first_coordinate)


@pytest.mark.parametrize("search", [PGD(0.1, 0.1, 1, "l2"), AutoPGD(0.1, 1, "l2")])
def test_another_norm_is_refused(search):
    with pytest.raises(ValueError, match="Upwards with norm='l2': expected 'linf'"):
        Upwards(search)


@pytest.mark.parametrize("search", [RandomSearch(0.1), Upwards(PGD(0.1, 0.1, 1)), PGD, None])
def test_another_search_is_refused(search):
    with pytest.raises(TypeError, match="Upwards with .*: expected PGD or AutoPGD"):
        Upwards(search)
