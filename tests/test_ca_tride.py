"""Collapse-aware triplets: the loss against a slow one, whose turn it is, and where each attack ends."""

from itertools import product

import pytest
import torch
from torch import nn

from robret_lib import mining
from robret_lib.attacks import PGD, AutoPGD
from robret_lib.defenses import CollapseAwareTriplets, DrawnRadius
from robret_lib.defenses.collapse import collapseness
from robret_lib.distances import row_distance
from robret_lib.models import EmbeddingModel, embed
from robret_lib.objectives import MARGIN
from tests.small_defenses import (
    CLOSE,
    INNER,
    a_batch,
    assert_resumes_bit_for_bit,
    at_step,
    exact_batch,
    exact_model,
    one,
    shown_to,
    slow_attack,
    slow_distance,
    slow_triplet_loss,
)
from tests.small_retrieval import seeded, small_model

PUBLISHED = PGD(8 / 255, 1 / 255, steps=16)
CANDIDATES, ANCHOR = 6, 7
"""Steps of a training of eight steps in four epochs: both in the last one, the first for CAP and the second for ANP."""


def in_the_last_epoch(step, search=INNER, **changes):
    return at_step(CollapseAwareTriplets(search, steps=8, epochs=4, **changes), step)


def slow_soft_maximum(values, sharpness):
    weights = [torch.exp(sharpness * (value - max(values))) for value in values]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def slow_smallest_half(values):
    smallest = sorted(values)[: max(1, len(values) // 2)]
    return sum(smallest) / len(smallest)


def pairwise(anchors, others, distance):
    return [slow_distance(u, v, distance) for u, v in zip(anchors, others, strict=True)]


def slow_collapseness(anchors, positives, negatives, distance, sharpness):
    d_ap, d_an = pairwise(anchors, positives, distance), pairwise(anchors, negatives, distance)
    return slow_soft_maximum(d_ap, sharpness) - slow_soft_maximum(d_an, sharpness)


def or_the_end(loss):
    return loss if loss >= 1e-5 else 0 * loss


def slow_outer(anchors, positives, negatives, distance):
    """The half margin of 0.04 is a fifth of that of the triplets."""
    nearer = slow_smallest_half(pairwise(anchors, positives, distance))
    nearer = nearer - slow_smallest_half(pairwise(anchors, negatives, distance)) + MARGIN[distance] / 5
    return 0.5 * nearer.clamp(min=0)


def unmixed(images, labels):
    return images, labels


def misled(images, labels):
    """An SPC-2 batch in which a class is a picture of another one: its pairs lie further apart than others."""
    pairs = labels.new_tensor(range(0, len(labels), 2)).repeat_interleave(2)
    order = torch.stack([torch.arange(0, len(labels), 2), torch.arange(1, len(labels), 2).roll(1)], dim=1).flatten()
    return images[order], pairs


@pytest.mark.parametrize("sharpness", [10.0, 2.0])
@pytest.mark.parametrize(("distance", "mode"), [*product("NEC", ["fixed"]), ("N", "reference")])
@pytest.mark.parametrize(("step", "mix"), [(CANDIDATES, unmixed), (ANCHOR, unmixed), (ANCHOR, misled)])
def test_the_loss_is_the_slow_one(step, mix, distance, mode, sharpness):
    """Three quarters of the way: three quarters of the step, and of the margin (1 - 3/8)^2."""
    images, labels = mix(*exact_batch())
    model, generator = exact_model(distance), seeded(3)
    with torch.no_grad():
        clean = torch.stack([one(model, image) for image in images])
        distances = torch.stack([torch.stack([slow_distance(u, v, distance) for v in clean]) for u in clean])
    roles = mining.semihard(distances, labels, MARGIN[distance] * (5 / 8) ** 2, generator)
    anchor, positive, negative = (list(images[role]) for role in roles)
    a, p, n = (list(clean[role]) for role in roles)
    search = PGD(INNER.eps, 0.75 * INNER.step, INNER.steps)

    def candidates_apart(number, *embeddings):
        collapsed = slow_collapseness(a, embeddings[:6], embeddings[6:], distance, sharpness)
        return or_the_end((-collapsed).clamp(min=0))

    if step == CANDIDATES:
        moved = slow_attack(model, positive + negative, candidates_apart, search)
        shown = anchor, moved[:6], moved[6:]
    else:
        origins = a
        if mode == "fixed":
            draws = torch.randn(6, 16, generator=generator).double()
            origins = [u + 1e-3 * u.norm() * draw / draw.norm() for u, draw in zip(a, draws, strict=True)]

        def anchors_astray(number, *embeddings):
            collapsed = slow_collapseness(embeddings, p, n, distance, sharpness)
            shift = sum(pairwise(embeddings, origins, distance)) / 6
            to_negatives = slow_smallest_half(pairwise(embeddings, n, distance)) - shift
            weight = torch.exp(-(-collapsed.detach()).clamp(min=0))
            return or_the_end(collapsed.clamp(min=0) + weight * to_negatives.clamp(min=0))

        shown = slow_attack(model, anchor, anchors_astray, search), positive, negative
    embedded = [[one(model, image) for image in role] for role in shown]
    expected = slow_triplet_loss(model, *shown, distance) + slow_outer(*embedded, distance)
    defense = in_the_last_epoch(step, sharpness=sharpness, distance=distance, mode=mode)
    torch.testing.assert_close(defense(model, images, labels, seeded(3)), expected, **CLOSE)
    found = shown_to(model, in_the_last_epoch(step, sharpness=sharpness, distance=distance, mode=mode), images, labels)
    torch.testing.assert_close(found, torch.stack([*shown[0], *shown[1], *shown[2]]), **CLOSE)


# Whose turn it is, and how far along


def clean_roles(images, labels, defense, model):
    """The images of the triplets that a defense is about to draw."""
    share = int(defense.progress.done * defense.epochs // defense.progress.steps) / defense.epochs
    margin = MARGIN[defense.distance] * (1 - share / 2) ** 2
    roles = defense.triplets(embed(model, images), labels, seeded(3), margin)
    return [images[role] for role in roles]


def test_candidates_and_anchor_take_turns_and_the_others_stay_clean_bit_for_bit():
    images, labels = a_batch()
    model, defense, moved = small_model(), CollapseAwareTriplets(INNER, steps=8, epochs=4), []
    for _ in range(8):
        clean = clean_roles(images, labels, defense, model)
        shown = shown_to(model, defense, images, labels).chunk(3)
        moved.append([not torch.equal(*pair) for pair in zip(shown, clean, strict=True)])
    nothing, candidates, anchor = [False] * 3, [False, True, True], [True, False, False]
    assert moved == [nothing, nothing, *3 * [candidates, anchor]]  # in the first epoch the steps have no length


def margin_given(defense):
    """What the sampler is given in the next step."""
    given = []

    def noting(distances, labels, margin, generator, mode):
        given.append(margin)
        return mining.semihard(distances, labels, margin, generator, mode)

    defense.sampler = noting
    defense(small_model(), *a_batch(), seeded(3))
    (margin,) = given
    return margin


@pytest.fixture
def used(monkeypatch):
    """Every search that is called."""
    found, search = [], PGD.__call__

    def noted(self, *given):
        found.append(self)
        return search(self, *given)

    monkeypatch.setattr(PGD, "__call__", noted)
    return found


@pytest.mark.parametrize(
    ("epoch", "reach", "margin"), [(0, 0, 0.2), (25, 16 / 3, 0.13889), (50, 32 / 3, 0.08889), (74, 15.787, 0.05134)]
)
def test_steps_rise_and_the_margin_of_the_sampler_falls_with_the_epochs(epoch, reach, margin, used):
    """Of 75, from their first step to their last; the radius is the full one from the second epoch on."""
    for step in (3 * epoch, 3 * epoch + 2):
        assert margin_given(at_step(CollapseAwareTriplets(PUBLISHED, steps=225), step)) == pytest.approx(
            margin, abs=5e-6
        )
    for search in used:
        assert search.steps == 16
        assert search.eps == (8 / 255 if epoch else 0)
        assert (16 * search.step * 255 if epoch else 0) == pytest.approx(reach, abs=1e-3)


def test_a_training_that_goes_on_beyond_its_end_goes_on_at_full_step():
    assert margin_given(at_step(CollapseAwareTriplets(INNER, steps=8, epochs=4), 9)) == pytest.approx(0.05)


def test_stopped_between_candidates_and_anchor_it_goes_on_with_the_anchor(tmp_path):
    """After five of twelve steps; whose turn it is and how far along is in the checkpoint."""

    def make():
        return CollapseAwareTriplets(INNER, steps=12, epochs=4)

    assert_resumes_bit_for_bit(make, tmp_path)
    losses = [at_step(make(), at)(small_model(), *a_batch(), seeded(3)) for at in (4, 5)]
    assert not torch.equal(*losses)  # it would make a difference


# Where each attack ends


def measured(model, roles, distance="N"):
    anchor, positive, negative = (embed(model, role) for role in roles)
    distances = (row_distance(anchor, other, distance, 1e-6) for other in (positive, negative))
    return collapseness(*distances, 10.0).item()


def collapseness_by_steps(model, images, labels, step, size, count):
    """C after 0, 1, 2 ... steps of an attack, in the last epoch, and what was shown then."""
    defense = in_the_last_epoch(step)
    clean = clean_roles(images, labels, defense, model)
    found, shown = [measured(model, clean)], [torch.cat(clean)]
    for steps in range(1, count + 1):
        defense = in_the_last_epoch(step, PGD(0.5, size, steps))
        shown.append(shown_to(model, defense, images, labels))
        found.append(measured(model, shown[-1].chunk(3)))
    return found, shown


def test_candidates_are_moved_until_the_batch_looks_collapsed_and_no_further(models):
    """It steps over zero at most once, and then stays, bit for bit."""
    images, labels = exact_batch()
    found, shown = collapseness_by_steps(models["N"].double(), images, labels, CANDIDATES, 0.02, 12)
    models["N"].float()
    end = next(k for k, value in enumerate(found) if value > -1e-5)
    assert 1 < end < 10
    assert all(later > now for now, later in zip(found[:end], found[1 : end + 1], strict=True))
    assert found[end] < 0.1  # the last step, which changes it by 0.23, is not followed by another
    assert all(torch.equal(images, shown[end]) for images in shown[end:])


def test_an_anchor_is_moved_back_where_the_batch_looks_collapsed(models):
    images, labels = misled(*exact_batch())
    found, _ = collapseness_by_steps(models["N"].double(), images, labels, ANCHOR, 0.02, 4)
    models["N"].float()
    assert found[0] > 0.05
    assert found[-1] < found[0] - 0.05


def test_where_all_is_well_an_anchor_goes_from_where_it_was_to_its_nearer_negatives(models):
    images, labels = a_batch()
    model, defense = models["N"], in_the_last_epoch(ANCHOR)
    anchor, _, negative = clean_roles(images, labels, defense, model)
    moved = shown_to(model, defense, images, labels).chunk(3)[0]
    before, after, negatives = (embed(model, role) for role in (anchor, moved, negative))
    halves = [(e - negatives).norm(dim=1).sort().values[:3].mean() for e in (before, after)]
    assert halves[1] < halves[0] - 0.1
    assert (after - before).norm(dim=1).mean() > 0.1


class Constant(nn.Module):
    """Embeds everything at one point, nearly: its slopes are not zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((16, 64), 1e-9))

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), self.weight) + torch.eye(16)[0]


@pytest.mark.parametrize("step", [CANDIDATES, ANCHOR])
def test_an_attack_with_a_loss_below_1e_5_moves_nothing(step):
    """As on a collapsed network."""
    images, labels = a_batch()
    model, defense = EmbeddingModel(Constant()), in_the_last_epoch(step)
    clean = clean_roles(images, labels, defense, model)
    assert torch.equal(shown_to(model, defense, images, labels), torch.cat(clean))


# The order of distances


class Pixels(nn.Module):
    """Images are their own embeddings; keeps what it was shown last."""

    def forward(self, images):
        self.shown = images
        return images.flatten(1)


def left_half(value):
    image = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    image[:, :, :2] = value
    return image


def roles_after_one_step(at, left_anchor, left_partner):
    """Anchors, positives, negatives ``[2, 1, 4, 4]`` of a gray image that is its own partner, and of a pair that
    differs from it in the left half; the step of the attack is 0.01."""
    images = torch.stack([left_half(value) for value in (0.5, 0.5, left_anchor, left_partner)])
    search = PGD(0.1, 0.01, steps=1)
    defense = at_step(CollapseAwareTriplets(search, steps=1, sharpness=0.0, mode="reference"), at)
    model = Pixels()
    defense(model, images, torch.tensor([0, 0, 1, 1]), seeded(3))
    return model.shown.chunk(3)


def test_a_positive_that_is_its_anchor_becomes_brighter():
    """d(p, a) = |p - a + 1e-6| is made large, since the pair lies close and the gray image far from it."""
    anchors, positives, _ = roles_after_one_step(CANDIDATES, 0.9, 0.85)
    torch.testing.assert_close(positives[0] - anchors[0], torch.full_like(anchors[0], 0.01), rtol=0, atol=1e-12)


def test_an_anchor_that_is_its_positive_becomes_brighter():
    """d(p, a) is made small, since the other pair lies far apart: 1e-6 above a is nearer than a itself. In the right
    half of the image, where it is no different from its negative."""
    anchors, positives, negatives = roles_after_one_step(ANCHOR, 0.55, 0.9)
    moved = (anchors[0] - positives[0])[..., 2:]
    assert torch.equal(negatives[0, ..., 2:], positives[0, ..., 2:])
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=0, atol=1e-12)


# What is refused


@pytest.mark.parametrize("search", [AutoPGD(0.1, 5), DrawnRadius(INNER), lambda *given: given])
def test_a_search_whose_step_cannot_rise_is_refused(search):
    with pytest.raises(TypeError, match=r"CA-TRIDE with .*: expected PGD\(eps, step, steps\), whose step can rise"):
        CollapseAwareTriplets(search, steps=8)


def test_no_steps_and_no_epochs_are_refused():
    with pytest.raises(ValueError, match="steps=0: expected a whole number of at least 1"):
        CollapseAwareTriplets(INNER, steps=0)
    with pytest.raises(ValueError, match="epochs=1: expected a whole number of at least 2"):
        CollapseAwareTriplets(INNER, steps=8, epochs=1)


def test_a_sharpness_below_zero_is_refused():
    with pytest.raises(ValueError, match="sharpness=-1: expected a finite number of at least 0"):
        CollapseAwareTriplets(INNER, steps=8, sharpness=-1)


@pytest.mark.parametrize("distance", ["E", "C"])
def test_the_published_code_knows_unit_vectors_alone(distance):
    with pytest.raises(
        ValueError, match=f"distance='{distance}': the margins of the published code are those of \"N\""
    ):
        CollapseAwareTriplets(INNER, steps=8, distance=distance, mode="reference")
