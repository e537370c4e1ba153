"""For all tests: a machine of any speed. Fixtures: `small_retrieval`, trained for each distance; `PGD`; a checkout."""

import pytest
from hypothesis import HealthCheck, settings

from robret_lib.attacks import PGD, Gallery
from tests.small_retrieval import DISTANCES, SIZE, some_split, trained_model
from tests.toy_checkout import end_all, make_checkout

settings.register_profile("a machine of any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("a machine of any speed")


def pytest_collection_modifyitems(items):
    """What trains for minutes comes first: one worker gets all of it, and no other waits for the trained network."""
    items.sort(key=lambda item: item.path.stem != "test_strength")


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    end_all()


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
def searches(monkeypatch):
    """The images that every search was given, and what it made of them: pairs, of all calls of `PGD`."""
    calls, search = [], PGD.__call__

    def noted(self, model, images, loss_fn, generator=None):
        found = search(self, model, images, loss_fn, generator)
        calls.append((images.clone(), found.clone()))
        return found

    monkeypatch.setattr(PGD, "__call__", noted)
    return calls


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "checkout")
