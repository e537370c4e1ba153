"""Strength on photographs of clothes: an undefended network, and one that was trained to resist (Fashion-MNIST).

Published attacks call the second network a third robust; an attack on R@1 itself with a falling step does not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from robret_lib import data
from robret_lib.attacks import PGD, AutoPGD, Benign, Plan
from robret_lib.attacks.embedding import EmbeddingShift, Margin, TargetedMargin
from robret_lib.attacks.search.passes import Loss
from robret_lib.distances import row_distance
from robret_lib.scores import robust_recall
from robret_lib.scores.queries import Queries
from tests.benchmarks.networks import ATTACKS, attacked, mean_loss, network

pytestmark = pytest.mark.slow  # the network that resists is trained first, if nobody has
EPS = 77 / 255


@pytest.fixture(scope="module", params=["none N", "ACT N"])
def world(request):
    try:
        return network(request.param)
    except data.DataError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")


@dataclass(frozen=True)
class Published:
    """Another loss, for what `Margin` measures."""

    loss: Callable[[Benign], Loss]
    rows = 1

    def targets(self, benign, generator):
        return None

    def plan(self, benign, targets):
        return Plan(self.loss(benign), Margin().plan(benign, None).measures)


def others_and_own(benign):
    """Bool ``[B, N]`` each, without self."""
    own = benign.labels[:, None] == benign.gallery.labels
    return ~own, own.scatter(1, benign.own[:, None], False)


def learning_to_misrank(benign):
    """LTM: the furthest item of another class nearer than the nearest of the own class, self excluded."""
    others, own = others_and_own(benign)

    def loss(embeddings):
        distances = (embeddings[:, None] - benign.gallery.embeddings).norm(dim=2)
        furthest = distances.masked_fill(~others, -torch.inf).amax(1)
        return (furthest - distances.masked_fill(~own, torch.inf).amin(1)).relu()

    return loss


def greedy_top_1_misranking(benign):
    """GTM: to the nearest item whose class is not that of the first answer."""
    distances = torch.cdist(benign.embeddings, benign.gallery.embeddings).scatter(1, benign.own[:, None], torch.inf)
    first = benign.gallery.labels[distances.argmin(1)]
    others = first[:, None] != benign.gallery.labels
    goal = benign.gallery.embeddings[distances.masked_fill(~others, torch.inf).argmin(1)]
    return lambda embeddings: row_distance(embeddings, goal)


def recall_left(attack, search, world, n=100):
    return attacked(attack, *world, search, n).measured["recall_at_1"].mean().item()


def test_eight_passes_at_the_margin_beat_every_published_loss_with_the_published_search(world):
    published = {
        name: recall_left(attack, PGD(EPS, 3 / 255, 32), world)
        for name, attack in {
            "ES": EmbeddingShift(),
            "LTM": Published(learning_to_misrank),
            "GTM": Published(greedy_top_1_misranking),
        }.items()
    }
    margin = recall_left(Margin(), AutoPGD(EPS, 8), world)
    assert margin <= min(published.values()), published
    assert margin < 8
    assert recall_left(Margin(), AutoPGD(EPS, 32), world) <= margin + 1


def test_the_published_search_on_the_published_loss_makes_a_network_look_robust():
    """What the margin leaves of it is in the test above."""
    try:
        world = network("ACT N")
    except data.DataError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")
    assert recall_left(EmbeddingShift(), PGD(EPS, 3 / 255, 32), world) > 20


@pytest.mark.parametrize("passes", [8, 32])
@pytest.mark.parametrize("eps", [8 / 255, EPS])
@pytest.mark.parametrize("name", ATTACKS)
def test_at_the_same_steps_auto_pgd_is_never_weaker_in_the_mean(name, eps, passes, world):
    """Than the step of the published tables, and than one that adds up to two and a half times the radius.

    But for one percent of what is won: over 60 images that is below the standard error.
    """
    attack = ATTACKS[name]
    strong, *others, nothing = [
        mean_loss(attack, *world, attacked(attack, *world, search, 60))
        for search in (
            AutoPGD(eps, passes),
            PGD(eps, 3 / 255, passes),
            PGD(eps, 2.5 * eps / passes, passes),
            PGD(0, 1, 1),
        )
    ]
    assert nothing - strong > 0
    assert strong <= min(others) + 0.01 * (nothing - strong)


def test_robust_recall_leaves_nothing_at_the_radius_of_the_tables(world):
    result = robust_recall(world[0], data.load("fashion-mnist", "quick"), EPS, queries=60)
    assert result.benign > 60 and result.warnings == ()
    assert result.recall_at_1 <= 100 / 60  # one query
    assert result.passes < 20  # most are broken by the first eight steps, and not attacked again


def test_no_long_attack_breaks_what_robust_recall_leaves(world):
    """At a radius at which a third stands: of 60 queries one more, at most, by four times as many steps of a loss."""
    dataset, eps = data.load("fashion-mnist", "quick"), 8 / 255
    result = robust_recall(world[0], dataset, eps, queries=60)
    assert 15 < result.recall_at_1 < 55
    asked, rows = Queries(world[0], dataset, 60), result.standing.nonzero()[:, 0]
    for attack in (Margin(temperature=0), Margin(), TargetedMargin(1)):
        longer = asked.attacked(attack, AutoPGD(eps, 50, restarts=2), torch.Generator().manual_seed(1), rows)
        assert (longer.measured["recall_at_1"] == 0).sum() <= 1
