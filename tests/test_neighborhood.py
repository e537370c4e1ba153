"""The kept neighborhood: loss and gradient against a slow double loop, an attack on each image alone, and its ramp."""

from math import exp, log, sqrt

import pytest
import torch
from torch.nn.functional import normalize

from robret_lib.attacks import NES, PGD, AutoPGD, Averaged
from robret_lib.defenses import DrawnRadius, KeptNeighborhood
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
)
from tests.small_retrieval import seeded, small_model

STEPS = 8
UNIT_VECTORS = ["N", "C"]


def at_full_size(search=INNER, **changes):
    return at_step(KeptNeighborhood(search, STEPS, **changes), STEPS // 2)


def slow_loss(position, query, references, labels, temperature, margin=0.2):
    """Of one image, from probabilities."""
    own = other = 0
    for j, reference in enumerate(references):
        apart = (query - reference).square().sum().sqrt()
        if j != position and labels[j] == labels[position]:
            own = own + torch.exp(-apart / temperature)
        elif j != position:
            other = other + torch.exp((margin - apart) / temperature)
    return -torch.log(own / (own + other))


def slow_losses(queries, references, labels, temperature, margin=0.2):
    return [slow_loss(k, query, references, labels, temperature, margin) for k, query in enumerate(queries)]


def mean(values):
    return sum(values) / len(values)


# The loss


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_losses_are_the_slow_ones(temperature, margin):
    """Classes of two, three and four; the queries are other vectors than the references."""
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 1, 2, 2])
    queries, references = (normalize(torch.randn(9, 4, generator=seeded(k)).double(), dim=1) for k in (1, 2))
    found = KeptNeighborhood(INNER, STEPS, temperature, margin).losses(queries, references, labels)
    torch.testing.assert_close(found, torch.stack(slow_losses(queries, references, labels, temperature, margin)))


def test_losses_have_closed_forms():
    """Two classes of two images, at right angles; and all images in one point, where chance and the margin decide."""
    labels, defense = torch.tensor([0, 1, 0, 1]), KeptNeighborhood(INNER, STEPS, temperature=0.5, margin=0.25)
    apart = torch.eye(4).double()[labels]
    expected = log(1 + 2 * exp((0.25 - sqrt(2)) / 0.5))
    found = defense.losses(apart, apart, labels)
    torch.testing.assert_close(found, torch.full((4,), expected).double(), rtol=1e-5, atol=0)
    collapsed = torch.eye(4).double()[[0, 0, 0, 0]]
    expected = torch.full((4,), log(1 + 2 * exp(0.5))).double()
    torch.testing.assert_close(defense.losses(collapsed, collapsed, labels), expected)


def test_the_margin_is_that_of_a_triplet_loss_where_the_temperature_is_low():
    """T times the loss tends to [d(nearest of the own class) - d(nearest of another) + margin]_+."""
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 1, 2, 2])
    vectors = normalize(torch.randn(9, 4, generator=seeded()).double(), dim=1)
    apart = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf)
    same = labels[:, None] == labels
    nearest_own, nearest_other = (apart.masked_fill(~chosen, torch.inf).amin(1) for chosen in (same, ~same))
    hinge = (nearest_own - nearest_other + 0.1).relu()
    assert 0 < (hinge == 0).sum() < 9
    found = 1e-4 * KeptNeighborhood(INNER, STEPS, temperature=1e-4, margin=0.1).losses(vectors, vectors, labels)
    torch.testing.assert_close(found, hinge, rtol=0, atol=1e-3)


def test_images_in_one_point_have_a_loss_without_a_slope():
    """And no NaN: the root has none at 0."""
    labels, point = torch.tensor([0, 1, 0, 1]), torch.eye(4)[[0, 0, 0, 0]].requires_grad_()
    losses = KeptNeighborhood(INNER, STEPS).losses(point, point, labels)
    assert torch.autograd.grad(losses.sum(), point)[0].abs().max() == 0


def test_losses_are_finite_at_a_temperature_whose_exponentials_are_not():
    labels = torch.tensor([0, 0, 1, 1])
    vectors = torch.eye(4)[[0, 1, 0, 1]]  # each is at its other class
    losses = KeptNeighborhood(INNER, STEPS, temperature=1e-3, margin=0).losses(vectors, vectors, labels)
    torch.testing.assert_close(losses, torch.full((4,), 1000 * sqrt(2)))


@pytest.mark.parametrize("distance", UNIT_VECTORS)
@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_loss_and_gradient_are_the_slow_ones(clean_weight, distance):
    """Each image is attacked for itself, against what the clean images are; then all are learned from."""
    images, labels = exact_batch()
    model = exact_model(distance)
    with torch.no_grad():
        fixed = [one(model, image) for image in images]

    def astray(image, position):
        def loss(step, embedding):
            return -slow_loss(position, embedding, fixed, labels, 0.2)

        return slow_attack(model, [image], loss, INNER)[0]

    moved = [astray(image, position) for position, image in enumerate(images)]
    clean, attacked = ([one(model, image) for image in each] for each in (images, moved))
    expected = mean(slow_losses(attacked, clean, labels, 0.2))
    expected = expected + clean_weight * mean(slow_losses(clean, clean, labels, 0.2))
    settings = {"temperature": 0.2, "clean_weight": clean_weight}
    found = at_full_size(**settings)(model, images, labels, seeded(3))
    torch.testing.assert_close(found, expected, **CLOSE)
    shown = shown_to(model, at_full_size(**settings), images, labels)
    torch.testing.assert_close(shown, torch.cat([images, torch.stack(moved)]), **CLOSE)
    slopes, slow = (torch.autograd.grad(loss, list(model.parameters())) for loss in (found, expected))
    torch.testing.assert_close(slopes, slow, rtol=1e-6, atol=1e-9)


def test_a_gradient_flows_through_the_attacked_and_through_the_clean_images():
    images, labels = exact_batch()
    model, defense = exact_model(), at_full_size(clean_weight=0.0)
    moved = shown_to(model, defense, images, labels).chunk(2)[1]
    loss = at_full_size(clean_weight=0.0)(model, images, labels, seeded(3))
    (whole,), parts = torch.autograd.grad(loss, model.backbone[0].weight), []
    for stopped in (0, 1):
        embeddings = [model(moved), model(images)]
        embeddings[stopped] = embeddings[stopped].detach()
        loss = defense.losses(*embeddings, labels).mean()
        parts.append(torch.autograd.grad(loss, model.backbone[0].weight)[0])
    torch.testing.assert_close(whole, sum(parts))
    assert min(part.norm() for part in parts) > 0.1 * whole.norm()


@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_the_weight_is_that_of_the_clean_loss(weight):
    """In the first step there is no other."""
    images, labels = exact_batch()
    model = exact_model()
    clean = mean(slow_losses(model(images), model(images), labels, 0.05))
    first = KeptNeighborhood(INNER, STEPS, clean_weight=weight)(model, images, labels, seeded(3))
    torch.testing.assert_close(first, (1 + weight) * clean)
    without, with_it = (at_full_size(clean_weight=w)(model, images, labels, seeded(3)) for w in (0.0, weight))
    torch.testing.assert_close(with_it, without + weight * clean)
    assert without > clean + 0.1


def test_the_attack_makes_the_loss_of_every_image_larger():
    images, labels = exact_batch()
    model, defense = exact_model(), at_full_size()
    clean, attacked = model(shown_to(model, defense, images, labels)).chunk(2)
    assert (defense.losses(attacked, clean, labels) > defense.losses(clean, clean, labels)).all()


# How large its ball is


def largest_changes(defense, steps, model=None):
    """In each step of a training, the largest change of a pixel of each image."""
    images, labels = a_batch()
    model, found = model or small_model(), []
    for _ in range(steps):
        clean, moved = shown_to(model, defense, images, labels).chunk(2)
        assert torch.equal(clean, images)
        found.append((moved - images).abs().flatten(1).amax(1))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("ramp", "shares"),
    [
        (0.0, [1] * 8),
        (0.25, [0, 0.5, *[1] * 6]),
        (0.5, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (1.0, [k / 8 for k in range(8)]),
    ],
)
@pytest.mark.parametrize("search", [INNER, AutoPGD(0.1, 5)], ids=["PGD", "AutoPGD"])
def test_the_radius_rises_from_zero_to_its_full_size_and_stays_there(search, ramp, shares):
    """Also beyond the end of the training."""
    found = largest_changes(KeptNeighborhood(search, STEPS, ramp=ramp), STEPS + 2)
    expected = 0.1 * torch.tensor([*shares, 1, 1]).float()[:, None].expand(-1, 12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_first_step_of_a_ramp_shows_every_image_as_it_is():
    """Bit for bit, also where the search begins at random."""
    images, labels = a_batch()
    defense = KeptNeighborhood(PGD(0.1, 0.04, 5, random_start=True), STEPS)
    assert torch.equal(shown_to(small_model(), defense, images, labels), torch.cat([images, images]))
    assert not torch.equal(shown_to(small_model(), defense, images, labels), torch.cat([images, images]))


def test_the_step_rises_with_the_radius():
    found = largest_changes(KeptNeighborhood(PGD(0.1, 0.04, steps=1), STEPS), STEPS)
    expected = 0.04 * torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])[:, None].expand(-1, 12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_drawn_radius_rises_too_and_each_image_has_its_own():
    """Uniform in [0, radius of the step]: what the generator gives first."""
    defense = KeptNeighborhood(DrawnRadius(PGD(0.1, 0.1, 5)), STEPS)
    found = largest_changes(defense, STEPS)
    drawn = torch.rand(12, generator=seeded(3))
    expected = 0.1 * torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])[:, None] * drawn
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda search: search, DrawnRadius], ids=["whole", "drawn"])
def test_stopped_on_the_ramp_it_goes_on_there(wrap, tmp_path):
    """After five of the ten steps over which the radius rises."""

    def make():
        return KeptNeighborhood(wrap(PGD(0.1, 0.04, 3, random_start=True)), steps=12, ramp=10 / 12)

    assert_resumes_bit_for_bit(make, tmp_path)


def test_where_it_begins_on_the_ramp_makes_a_difference():
    """Else the test above would not notice a forgotten place."""
    images, labels = a_batch()
    losses = [at_step(KeptNeighborhood(INNER, 12), step)(small_model(), images, labels, seeded(3)) for step in (0, 5)]
    assert losses[0] < losses[1] - 0.1


# What is refused


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(
            ("temperature", value, "a finite number above 0")
            for value in (0.0, -0.1, float("nan"), float("inf"), "0.1")
        ),
        *(
            (name, value, "a finite number of at least 0")
            for name in ("margin", "clean_weight")
            for value in (-0.1, float("nan"), float("inf"))
        ),
        *(("ramp", value, r"a share in \[0, 1\]") for value in (-0.1, 1.1, float("nan"))),
    ],
)
def test_impossible_numbers_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=f"{name}={value!r}: expected {expected}"):
        KeptNeighborhood(INNER, STEPS, **{name: value})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1, 1, 2], "a batch where class 2 has one image: expected two or more"),
        ([3, 3, 3, 3], "a batch of a single class has no negatives"),
    ],
)
def test_an_image_without_company_is_refused(labels, message):
    images = a_batch()[0][: len(labels)]
    with pytest.raises(ValueError, match=message):
        KeptNeighborhood(INNER, STEPS)(small_model(), images, torch.tensor(labels), seeded(3))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0: expected a whole number of at least 1"):
        KeptNeighborhood(INNER, 0)


def test_vectors_of_any_length_are_refused():
    message = 'a model with distance "E": expected "N" or "C", the margin is one of unit vectors'
    with pytest.raises(ValueError, match=message):
        KeptNeighborhood(INNER, STEPS)(small_model("E"), *a_batch(), seeded(3))


@pytest.mark.parametrize("search", [NES(0.1), Averaged(NES(0.1), 2)], ids=["NES", "averaged"])
def test_a_search_by_values_is_refused(search):
    with pytest.raises(TypeError, match="KeptNeighborhood with a NES: expected a search by gradients, PGD or AutoPGD"):
        KeptNeighborhood(search, STEPS)


def test_a_search_whose_radius_cannot_shrink_is_refused():
    with pytest.raises(TypeError, match=r"search=Averaged\(.*expected PGD, AutoPGD or DrawnRadius"):
        KeptNeighborhood(Averaged(INNER, 2), STEPS)
