"""Panum's triplets: one role attacked against fixed points, so that no image depends on its batch."""

import pytest
import torch

from robret_lib import mining
from robret_lib.attacks import PGD
from robret_lib.defenses import PanumTriplets
from robret_lib.mining import Triplets
from robret_lib.objectives import MARGIN
from tests.small_defenses import (
    CLOSE,
    INNER,
    exact_batch,
    exact_model,
    one,
    shown_to,
    slow_attack,
    slow_distance,
    slow_hardness,
    slow_triplet_loss,
)
from tests.small_retrieval import DISTANCES, seeded

PUBLISHED = PGD(0.1, 0.04, 5, random_start=True)
ROLES = ["anchor", "positive", "negative"]


def slow_wish(role, fixed, distance):
    """What an embedding of the role is to make small, given the clean embeddings of its triplet by role."""

    def of_positive(step, embedding):
        return -slow_distance(fixed["anchor"], embedding, distance)

    def of_negative(step, embedding):
        return slow_distance(fixed["anchor"], embedding, distance)

    def of_anchor(step, embedding):
        return -slow_hardness(embedding, fixed["positive"], fixed["negative"], distance)

    return {"anchor": of_anchor, "positive": of_positive, "negative": of_negative}[role]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_is_the_slow_one(distance, role):
    """With the random start of the published attack, drawn after the triplets; other roles are shown as they are."""
    images, labels = exact_batch()
    model, generator = exact_model(distance), seeded(3)
    roles = mining.random(torch.zeros(12, 12), labels, 0.2, generator)._asdict()
    draws = torch.rand(6, 1, 1, 8, 8, generator=generator).double()[:, 0] * 2 - 1
    triplets = {name: images[at] for name, at in roles.items()}
    moved = []
    for k, image in enumerate(triplets[role]):
        with torch.no_grad():
            fixed = {name: one(model, triplets[name][k]) for name in ROLES}
        start = (image + PUBLISHED.eps * draws[k]).clamp(0, 1)
        moved += slow_attack(model, [image], slow_wish(role, fixed, distance), PUBLISHED, [start])
    expected = slow_triplet_loss(model, *(triplets | {role: moved}).values(), distance)
    defense = PanumTriplets(PUBLISHED, mining.random, distance, role=role)
    torch.testing.assert_close(defense(model, images, labels, seeded(3)), expected, **CLOSE)
    for name, shown in zip(ROLES, shown_to(model, defense, images, labels).chunk(3), strict=True):
        assert torch.equal(shown, triplets[name]) == (name != role)


@pytest.mark.parametrize("role", ROLES)
def test_no_image_depends_on_the_rest_of_the_batch(role, searches):
    """The first two of six triplets, attacked alone, end where they end among the others."""
    images, labels = exact_batch()
    triplets = Triplets(*mining.hard(torch.cdist(*2 * [images.flatten(1)]), labels, 0.2, seeded()))
    kept = torch.cat([torch.stack(triplets)[:, :2].flatten(), torch.arange(12)])[:12]  # two triplets, and what fills up

    def given(*_):
        return triplets

    def first_two(*_):
        return Triplets(*torch.arange(6).view(3, 2))

    for sampler, batch in ((given, images), (first_two, images[kept])):
        PanumTriplets(PUBLISHED, sampler, role=role)(exact_model(), batch, labels, seeded(3))
    (_, among_others), (_, alone) = searches
    torch.testing.assert_close(alone, among_others[:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_easy_triplets_do_not_dilute_the_loss(distance):
    """Of four triplets two are easier than the margin asks."""
    roles = torch.randn(3, 4, 5, generator=seeded(), dtype=torch.float64)
    anchor, positive, negative = roles if distance == "E" else torch.nn.functional.normalize(roles, dim=-1)
    positive[:2], negative[2:] = anchor[:2], anchor[2:]
    apart = torch.stack([slow_hardness(*triplet, distance) for triplet in zip(anchor, positive, negative, strict=True)])
    assert ((apart + MARGIN[distance]) > 0).tolist() == [False, False, True, True]
    loss = PanumTriplets(PUBLISHED, mining.random, distance).loss
    torch.testing.assert_close(loss(anchor, positive, negative), apart[2:].mean() + MARGIN[distance], **CLOSE)
    assert loss(anchor[:2], positive[:2], negative[:2]) == 0


def test_no_triplet_is_attacked_at_rate_0_and_each_at_rate_1():
    images, labels = exact_batch()
    model = exact_model()
    clean = images[torch.stack(mining.random(torch.zeros(12, 12), labels, 0.2, seeded(3)))]
    never = PanumTriplets(PUBLISHED, mining.random, attack_rate=0.0)
    assert torch.equal(shown_to(model, never, images, labels), clean.flatten(0, 1))
    shown = shown_to(model, PanumTriplets(PUBLISHED, mining.random), images, labels).chunk(3)[1]
    assert (shown != clean[1]).flatten(1).any(1).all()


def test_the_rate_is_the_share_of_the_triplets_that_are_attacked():
    """Of 600, six standard errors around 30 %; the others are shown bit for bit."""
    images, labels = exact_batch()
    defense, attacked = PanumTriplets(PGD(0.1, 0.04, 1), mining.hard, attack_rate=0.3), []
    clean = shown_to(exact_model(), PanumTriplets(PGD(0, 1, 1), mining.hard), images, labels).chunk(3)[1]
    for seed in range(100):
        shown = shown_to(exact_model(), defense, images, labels, seed).chunk(3)[1]
        attacked += (shown != clean).flatten(1).any(1).tolist()
    assert abs(sum(attacked) / 600 - 0.3) < 6 * (0.3 * 0.7 / 600) ** 0.5
    assert len({tuple(attacked[k : k + 6]) for k in range(0, 600, 6)}) > 10  # anew in every step


def test_what_is_no_role_and_no_share_is_refused():
    with pytest.raises(ValueError, match=r"role='pos': expected one of \('anchor', 'positive', 'negative'\)"):
        PanumTriplets(INNER, role="pos")
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"attack_rate={rate}: expected a share in \[0, 1\]"):
            PanumTriplets(INNER, attack_rate=rate)
