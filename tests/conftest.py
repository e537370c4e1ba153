"""Fixtures: `small_retrieval` searched in itself, trained once for each distance; a small checkout with chapters."""

import pytest

from robret_lib.attacks import Gallery
from tests.small_retrieval import DISTANCES, SIZE, some_split, trained_model
from tests.toy_checkout import make_checkout


@pytest.fixture(scope="session")
def searched_split():
    return some_split(SIZE, seed=10)


@pytest.fixture(scope="session")
def searched(searched_split):
    return searched_split.images


@pytest.fixture(scope="session")
def models():
    """A trained model for each distance."""
    return {distance: trained_model(distance) for distance in DISTANCES}


@pytest.fixture(scope="session")
def galleries(models, searched_split):
    """With labels and images."""
    return {
        distance: Gallery.of(model, searched_split.images, searched_split.labels) for distance, model in models.items()
    }


@pytest.fixture
def model(models):
    return models["N"]


@pytest.fixture
def gallery(galleries):
    return galleries["N"]


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "checkout")
