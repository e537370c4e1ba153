"""What the defenses by triplets share: where a shift is measured from, the margin of the sampler, what is refused."""

from itertools import product

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, Transfer
from robret_lib.defenses import AntiCollapseTriplets, DrawnRadius, HardnessManipulation
from robret_lib.defenses.inner import Shift, a_hair_aside, innermost
from robret_lib.objectives import MARGIN
from tests.small_defenses import BY_TRIPLETS, INNER, MODES, WITH_ONE_MODE, a_batch, exact_batch, exact_model
from tests.small_retrieval import DISTANCES, seeded, small_model


def slopes(shift, embeddings):
    embeddings = embeddings.clone().requires_grad_()
    return torch.autograd.grad(shift(embeddings).sum(), embeddings)[0]


def clean_embeddings(distance, count=12):
    images, _ = exact_batch()
    with torch.no_grad():
        return exact_model(distance)(images)[:count]


def cosines(u, v):
    return (u * v).sum(1) / u.norm(dim=1) / v.norm(dim=1)


@pytest.mark.parametrize("distance", ["N", "E"])
def test_in_the_published_code_all_images_set_out_in_one_direction(distance):
    """That of 1e-6 in every coordinate, within a tenth; after the first step it is that direction itself."""
    clean = clean_embeddings(distance)
    shift = Shift(clean, distance, "reference", seeded())
    everywhere = torch.ones_like(clean)
    assert (cosines(-slopes(shift, clean), everywhere) > 0.99).all()
    torch.testing.assert_close(-slopes(shift, clean), everywhere / 4)  # of length one in 16 dimensions


def test_in_the_published_code_a_cosine_distance_sets_out_from_a_jitter_and_then_from_the_image():
    clean = clean_embeddings("C")
    shift = Shift(clean, "C", "reference", seeded())
    first = slopes(shift, clean)
    assert set((first * 1e7).round().unique().tolist()) == {-1, 0, 1}
    assert len(first.round(decimals=8).unique(dim=0)) == len(clean)
    assert (slopes(shift, clean) == 0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_image_sets_out_in_a_direction_of_its_own(distance):
    clean = clean_embeddings(distance)
    shift = Shift(clean, distance, "fixed", seeded())
    first = slopes(shift, clean)
    assert (first.norm(dim=1) > 0).all()
    assert cosines(first, first.roll(1, 0)).abs().max() < 0.9
    torch.testing.assert_close(slopes(shift, clean), first)  # it is measured from there to the end


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_hair_is_a_thousandth_of_the_length(scale):
    clean = scale * clean_embeddings("E")
    aside = a_hair_aside(clean, seeded()) - clean
    torch.testing.assert_close(aside.norm(dim=1), clean.norm(dim=1) / 1000)
    assert torch.equal(a_hair_aside(clean, seeded()), a_hair_aside(clean, seeded()))
    assert not torch.equal(a_hair_aside(clean, seeded()), a_hair_aside(clean, seeded(1)))


WITH_THE_MARGIN_OF_RAW_EMBEDDINGS = {"rest", "act", "min_max", "ramd"}


PUBLISHED = {name: ("N",) if name == "hm" else DISTANCES for name in BY_TRIPLETS if name not in WITH_ONE_MODE}
KNOWN = [*product(BY_TRIPLETS, DISTANCES, ["fixed"])]
KNOWN += [(name, distance, "reference") for name, distances in PUBLISHED.items() for distance in distances]


@pytest.mark.parametrize(("name", "distance", "mode"), KNOWN)
def test_four_published_defenses_give_the_sampler_the_margin_of_raw_embeddings_for_unit_vectors(name, distance, mode):
    """Those that draw the triplets before the attack, but for HM, whose published code knows unit vectors alone."""
    images, labels = a_batch()
    given = []

    def sampler(distances, labels, margin, *rest):
        given.append(margin)
        return mining.semihard(distances, labels, margin, *rest)

    BY_TRIPLETS[name](INNER, sampler, distance=distance, mode=mode)(small_model(distance), images, labels, seeded(3))
    forgotten = mode == "reference" and distance == "N" and name in WITH_THE_MARGIN_OF_RAW_EMBEDDINGS
    assert given == [1.0 if forgotten else MARGIN[distance]]


@pytest.mark.parametrize("name", ["act", "min_max"])
@pytest.mark.parametrize(("sampler", "clean_passes"), [(mining.random, 0), (mining.semihard, 1)])
def test_random_triplets_cost_no_pass_of_the_clean_batch(name, sampler, clean_passes):
    """The inner attack and the loss have their passes, and nobody looks at clean embeddings."""
    passes, model = [], small_model()
    model.register_forward_hook(lambda *_: passes.append(1))
    BY_TRIPLETS[name](INNER, sampler)(model, *a_batch(), seeded(3))
    assert len(passes) == INNER.steps + 1 + clean_passes


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_anchor_is_its_own_positive_in_the_published_sampler_alone(name):
    images, labels = a_batch()
    for mode in MODES:
        defense, own = BY_TRIPLETS[name](INNER, mining.softhard, mode=mode), 0
        for seed in range(5):
            triplets = defense.triplets(small_model()(images), labels, seeded(seed))
            own += (triplets.anchor == triplets.positive).sum()
        assert (own > 0) == (mode == "reference")


@pytest.mark.parametrize("name", BY_TRIPLETS)
def test_a_mode_nobody_knows_is_refused(name):
    with pytest.raises(ValueError, match="mode='Reference': expected 'fixed' or 'reference'"):
        BY_TRIPLETS[name](INNER, mining.random, mode="Reference")


def test_the_innermost_search_is_found():
    search = AutoPGD(0.1, 3)
    for outer in (search, DrawnRadius(search), Averaged(search, 2), Averaged(DrawnRadius(search), 2)):
        assert innermost(outer) is search


@pytest.mark.parametrize("name", BY_TRIPLETS)
def test_a_search_by_values_is_refused(name):
    """It takes the loss of an image for its own, and that of a positive depends on its negative."""
    made = BY_TRIPLETS[name]
    for search in (NES(0.1), Averaged(NES(0.1), 2)):
        with pytest.raises(TypeError, match=f"{made.__name__} with a NES: expected a search by gradients"):
            made(search, mining.random)


@pytest.mark.parametrize("name", BY_TRIPLETS)
def test_a_search_on_another_network_and_what_is_no_search_are_refused(name):
    """The network that is trained is the one to attack."""
    made = BY_TRIPLETS[name]
    for inner in (PGD(0.1, 0.1, 1), NES(0.1)):
        with pytest.raises(TypeError, match=f"{made.__name__} with a Transfer: expected a search by gradients"):
            made(Transfer(small_model(), inner), mining.random)
    with pytest.raises(TypeError, match=f"{made.__name__} with the class PGD: expected a search, such as"):
        made(PGD, mining.random)


def test_an_objective_says_what_it_was_given_instead_of_a_distance_a_sampler_and_a_destination():
    search = PGD(0.1, 0.1, 1)
    with pytest.raises(ValueError, match='distance=\'cosine\': expected "N", "E" or "C"'):
        AntiCollapseTriplets(search, distance="cosine")
    with pytest.raises(TypeError, match="sampler='random': expected one of mining's"):
        AntiCollapseTriplets(search, "random")
    with pytest.raises(TypeError, match="destination=-0.1: expected a Benign, Constant or Gradual"):
        HardnessManipulation(search, destination=-0.1)
    with pytest.raises(ValueError, match="invariance=-1: expected a finite number of at least 0"):
        HardnessManipulation(search, invariance=-1)


@pytest.mark.parametrize("name", BY_TRIPLETS)
def test_a_model_of_another_distance_is_refused(name):
    message = "a model with distance 'E': this objective has distance='N'"
    with pytest.raises(ValueError, match=message):
        BY_TRIPLETS[name](PGD(0.1, 0.1, 1), mining.random)(small_model("E"), *a_batch(), seeded(3))


@pytest.mark.parametrize("name", BY_TRIPLETS)
def test_a_sampler_that_does_not_know_the_distance_is_refused(name):
    with pytest.raises(ValueError, match="the distance-weighted sampler knows the unit sphere only"):
        BY_TRIPLETS[name](PGD(0.1, 0.1, 1), mining.distance, distance="E")
