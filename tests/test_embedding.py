"""Attacks on one query: losses, targets and measures against slow definitions, R@1 as the metric's, and strength."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Benign, Gallery, Transfer
from robret_lib.attacks.embedding import (
    EmbeddingShift,
    GreedyTop1Misrank,
    GreedyTop1Translocation,
    LearningToMisrank,
    Margin,
    TargetedMargin,
    TargetedMismatch,
)
from robret_lib.distances import row_distance
from robret_lib.metrics import recall_at_k
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, DISTANCES, SIZE, gallery_on, seeded, some_split

OWN = torch.arange(0, SIZE, 5)


def slow_distances(u, v, distance):
    u, v = u.double(), v.double()
    return 1 - u @ v.T if distance == "C" else (u[:, None] - v).norm(dim=2)


def slow_margin(embeddings, gallery, own, labels, temperature=0.0):
    """``[B]``, one image after the other: soft (or hard) minimum over the other classes less that over the own.

    Of Euclidean distances, whatever the distance of the gallery.
    """
    margins = []
    for row, label, position in zip(slow_distances(embeddings, gallery.embeddings, "E"), labels, own, strict=True):
        minima = []
        for same in (False, True):
            chosen = [
                d
                for x, d in enumerate(row.tolist())
                if (gallery.labels[x] == label).item() is same and x != position.item()
            ]
            values = torch.tensor(chosen, dtype=torch.float64)
            soft = -temperature * (-values / temperature).logsumexp(0) if temperature else values.min()
            minima.append(soft)
        margins.append(minima[0] - minima[1])
    return torch.stack(margins)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("temperature", [0, 0.05, 0.3])
def test_the_loss_of_the_margin_is_its_definition(distance, temperature, models, galleries, searched):
    gallery, own = galleries[distance], torch.arange(12)
    labels = gallery.labels[own]
    embeddings = embed(models[distance], (searched[own] + 0.1).clamp(max=1))
    plan = Margin(temperature).plan(Benign(gallery, gallery.embeddings[own], own, labels), None)
    spread = gallery.euclidean.spread
    expected = slow_margin(embeddings, gallery, own, labels, temperature * spread)
    torch.testing.assert_close(plan.loss(embeddings).double(), expected, rtol=1e-4, atol=1e-4 * spread)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("temperature", [0, 0.1])
def test_the_gradient_of_the_margin(distance, temperature, galleries):
    """Against differences, in float64; hard minima are smooth but where the nearest changes."""
    single, own = galleries[distance], torch.arange(5)
    gallery = Gallery(single.embeddings.double(), distance, single.labels)
    plan = Margin(temperature).plan(Benign(gallery, gallery.embeddings[own], own, gallery.labels[own]), None)
    shift = torch.randn(5, 16, dtype=torch.float64, generator=seeded(1))
    embeddings = (gallery.embeddings[own] + 0.05 * gallery.spread * shift).requires_grad_(True)
    assert torch.autograd.gradcheck(plan.loss, (embeddings,))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_hard_margin_is_negative_where_the_first_answer_is_wrong(distance, models, galleries, searched):
    gallery = galleries[distance]
    margin, own = Margin(0), torch.arange(SIZE)
    plan = margin.plan(Benign(gallery, gallery.embeddings, own, gallery.labels), None)
    result = attacks.run(margin, models[distance], searched, gallery, PGD(0.1, 0.02, 3), own)
    for embeddings, measured in (
        (gallery.embeddings, result.benign),
        (embed(models[distance], result.images), result.measured),
    ):
        decided = plan.loss(embeddings).abs() > 1e-3 * gallery.spread
        wrong = plan.loss(embeddings) < 0
        assert torch.equal(wrong[decided], measured["recall_at_1"][decided] == 0)
        assert decided.double().mean() > 0.9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("attack", [Margin(0), Margin(), EmbeddingShift()], ids=["hard", "soft", "ES"])
def test_recall_is_the_metric_s(device, attack, distance, models, galleries, searched):
    model, gallery = models[distance].to(device), gallery_on(device, galleries[distance])
    result = attacks.run(attack, model, searched[OWN], gallery, AutoPGD(0.1, 4), OWN)
    found, labels = embed(model, result.images), gallery.labels[OWN]
    expected = recall_at_k(found, gallery.embeddings, labels, gallery.labels, (1,), self_excluded=OWN)[1]
    model.cpu()
    assert set(result.measured["recall_at_1"].tolist()) <= {0.0, 100.0}
    assert result.measured["recall_at_1"].mean().item() == pytest.approx(expected, abs=1.01)
    assert expected < result.benign["recall_at_1"].mean() - 10


def test_the_temperature_means_the_same_in_every_unit(galleries):
    """Embeddings in other units, as of a model that is trained with another scale: the same gradient."""
    gallery, own = galleries["E"], torch.arange(20)
    gradients = []
    for scale in (1.0, 1000.0):
        scaled = Gallery(scale * gallery.embeddings, "E", gallery.labels)
        plan = Margin(0.1).plan(Benign(scaled, scaled.embeddings[own], own, gallery.labels[own]), None)
        embeddings = (scaled.embeddings[own] * 1.01).requires_grad_(True)
        gradients.append(torch.autograd.grad(plan.loss(embeddings).sum(), embeddings)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-3)


def test_the_cosine_distance_changes_nothing(galleries):
    """Unit vectors rank alike under both, and so the loss is the same."""
    gallery, own = galleries["N"], torch.arange(20)
    cosine = Gallery(gallery.embeddings, "C", gallery.labels)
    for temperature in (0, 0.05):
        losses = [
            Margin(temperature)
            .plan(Benign(each, each.embeddings[own], own, each.labels[own]), None)
            .loss(each.embeddings[own + 100])
            for each in (gallery, cosine)
        ]
        assert torch.equal(*losses)


def test_several_labels_are_shared_or_not(model, searched):
    """Own is sharing a label: an item with one of two, or with both, is own; one with none is another."""
    labels = torch.zeros(SIZE, 4, dtype=torch.uint8)
    labels[torch.arange(SIZE), torch.randint(3, (SIZE,), generator=seeded(2))] = 1
    labels[::3, 3] = 1
    gallery = Gallery.of(model, searched, labels)
    own = torch.arange(40)
    for temperature in (0, 0.05):
        result = attacks.run(Margin(temperature), model, searched[own], gallery, AutoPGD(0.2, 8), own)
        for embeddings, measured in (
            (gallery.embeddings[own], result.benign),
            (embed(model, result.images), result.measured),
        ):
            distances = slow_distances(embeddings, gallery.embeddings, "N").scatter(1, own[:, None], torch.inf)
            shared = (labels[own].int() @ labels[distances.argmin(1)].int().T).diagonal() > 0
            assert (shared == (measured["recall_at_1"] > 0)).double().mean() > 0.97
        assert result.measured["recall_at_1"].mean() < result.benign["recall_at_1"].mean() - 10


@pytest.mark.parametrize("attack", [Margin(0), Margin(0.05), TargetedMargin(2)], ids=["hard", "soft", "targeted"])
def test_classes_that_are_alone_or_everything_are_defined(attack, model, searched):
    """No other item of the class: the answer is wrong already. No item of another class: it cannot be wrong."""
    own = torch.arange(3)
    alone = torch.arange(SIZE)
    everything = torch.zeros(SIZE, dtype=torch.long)
    for labels, expected in ((alone, 0.0), (everything, 100.0)):
        gallery = Gallery.of(model, searched, labels)
        result = attacks.run(attack, model, searched[own], gallery, AutoPGD(0.2, 3), own)
        for measured in (result.benign, result.measured):
            assert measured["recall_at_1"].tolist() == [expected] * 3
        assert result.images.isfinite().all()


# The margin of one class


def classes_by_nearness(row, labels, position):
    """The nearest item of each other class, nearest first; of items with several labels, what shares none so far."""
    shared = (lambda x, y: (labels[x] & labels[y]).any()) if labels.ndim > 1 else (lambda x, y: labels[x] == labels[y])
    found = []
    for x in order_of(row.tolist(), without=(position,)):
        if not shared(x, position) and not any(shared(x, y) for y in found):
            found.append(x)
    return found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_targeted_margin_is_its_definition(distance, several, models, galleries, searched):
    gallery, own = galleries[distance], torch.arange(12)
    if several:
        labels = torch.nn.functional.one_hot(gallery.labels, 10)
        labels[::3, 0] = 1
        gallery = Gallery(gallery.embeddings, distance, labels, gallery.images)
    benign = benign_of(gallery, own)
    embeddings = embed(models[distance], (searched[own] + 0.1).clamp(max=1))
    before, after = (slow_distances(e, gallery.embeddings, "E") for e in (benign.embeddings, embeddings))
    shares = (gallery.labels[:, None] == gallery.labels) if not several else (labels @ labels.T) > 0
    for place in (1, 2, 3, 20):
        attack = TargetedMargin(place)
        targets = attack.targets(benign, None)
        found = attack.plan(benign, targets).loss(embeddings)
        for row in range(12):
            nearest = classes_by_nearness(before[row], gallery.labels, row)
            target = nearest[min(place, len(nearest)) - 1]
            assert targets[row].item() == target
            of_own, of_target = shares[row].clone(), shares[target] & ~shares[row]
            of_own[row] = False
            expected = after[row][of_target].min() - after[row][of_own].min()
            assert found[row].item() == pytest.approx(expected.item(), abs=1e-4 * gallery.euclidean.spread)


def test_the_targeted_margin_answers_with_its_class(model, gallery, searched):
    own = torch.arange(60)
    for place in (1, 3):
        result = attacks.run(TargetedMargin(place), model, searched[own], gallery, AutoPGD(0.2, 16), own)
        distances = slow_distances(embed(model, result.images), gallery.embeddings, "E")
        answers = distances.scatter(1, own[:, None], torch.inf).argmin(1)
        assert (gallery.labels[answers] == gallery.labels[result.targets[:, 0]]).double().mean() > 0.9
        assert result.measured["recall_at_1"].mean() < 5


@pytest.mark.parametrize("place", [0, -1, 1.5, None])
def test_an_impossible_place_is_refused(place):
    with pytest.raises(ValueError, match="place=.*: expected a whole number of at least 1"):
        TargetedMargin(place)


# Embedding shift


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_shift_is_measured_from_the_benign_embedding(distance, models, galleries, searched):
    model, gallery = models[distance], galleries[distance]
    result = attacks.run(EmbeddingShift(), model, searched[OWN], gallery, PGD(0.1, 0.02, 8), OWN)
    found = embed(model, result.images)
    pairs = slow_distances(found, gallery.embeddings[OWN], distance).diagonal()
    torch.testing.assert_close(result.measured["shift"].double(), pairs, rtol=1e-3, atol=1e-5)
    assert result.benign["shift"].abs().max() < 1e-5
    assert (result.measured["shift"] > 0.02 * gallery.spread).all()


def test_the_first_step_of_the_shift_flees_from_the_nearest_item(model, gallery, searched):
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    embeddings = gallery.embeddings[OWN].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(EmbeddingShift().plan(benign, None).loss(embeddings).sum(), embeddings)
    towards = gallery.embeddings[benign.nearest(1)[:, 0]] - gallery.embeddings[OWN]
    cosine = torch.nn.functional.cosine_similarity(gradient, towards)
    assert (cosine > 0.99).all()  # descending means going the other way


class Shrunk(nn.Module):
    """A model whose unit vectors are drawn together around a pole, ``[s phi(x), sqrt(1 - s^2)]``: it ranks alike."""

    def __init__(self, model, size):
        super().__init__()
        self.model, self.size, self.distance = model, size, model.distance

    def forward(self, images):
        embeddings = self.size * self.model(images)
        return torch.cat([embeddings, torch.full_like(embeddings[:, :1], (1 - self.size**2) ** 0.5)], dim=1)


@pytest.mark.parametrize("distance", ["N", "C"])
def test_the_shift_is_the_same_for_a_model_that_is_drawn_together(distance, models, searched):
    model = deepcopy(models[distance]).double()
    found = []
    for each in (model, Shrunk(model, 0.01)):
        gallery = Gallery.of(each, searched)
        found.append(attacks.run(EmbeddingShift(), each, searched[OWN], gallery, PGD(0.1, 0.02, 8), OWN).images)
    assert torch.equal(*found)


def test_the_shift_needs_no_labels(model, gallery):
    strangers = some_split(20, seed=40)
    result = attacks.run(EmbeddingShift(), model, strangers.images, Gallery(gallery.embeddings), PGD(0.1, 0.02, 4))
    assert set(result.measured) == {"shift"} and (result.measured["shift"] > 0.01).all()


# Strength


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_margin_breaks_more_than_noise_and_more_than_the_shift(distance, models, galleries, searched):
    model, gallery, eps = models[distance], galleries[distance], 0.06
    labels = gallery.labels[OWN]

    def left(attack):
        return attacks.run(attack, model, searched[OWN], gallery, AutoPGD(eps, 16), OWN).measured["recall_at_1"].mean()

    noise = searched[OWN] + eps * torch.randn(len(OWN), 1, 8, 8, generator=seeded(3)).sign()
    noisy = recall_at_k(embed(model, noise.clamp(0, 1)), gallery.embeddings, labels, gallery.labels, (1,), OWN)[1]
    assert left(Margin()) < noisy - 20
    assert left(Margin(0)) < noisy - 20
    assert left(Margin()) <= left(EmbeddingShift()) + 1


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature=.*: expected a finite number of at least 0"):
        Margin(temperature)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch_size", [1, 40])
def test_a_twin_in_the_gallery_does_not_stop_the_shift(distance, batch_size, models, galleries, searched):
    """Every item twice, and queries from outside that are items: the nearest item is the image itself."""
    model, gallery = models[distance], galleries[distance]
    doubled = Gallery(gallery.embeddings.repeat(2, 1), distance)
    results = [
        attacks.run(EmbeddingShift(), model, searched[:40], each, PGD(0.1, 0.02, 8), own, batch_size=batch_size)
        for each, own in ((gallery, torch.arange(40)), (doubled, torch.arange(40)), (doubled, None))
    ]
    alone, item, stranger = (result.measured["shift"].mean() for result in results)
    assert item > 0.9 * alone and stranger > 0.9 * alone


def test_a_collapsed_gallery_is_attacked_without_harm(searched):
    gallery = Gallery(torch.nn.functional.normalize(torch.ones(SIZE, 16), dim=1), labels=torch.arange(SIZE) % 10)
    embeddings = gallery.embeddings[:8].clone().requires_grad_(True)
    benign = Benign(gallery, gallery.embeddings[:8], torch.arange(8), gallery.labels[:8])
    published = [attack(mode) for attack in PUBLISHED.values() for mode in MODES]
    for attack in (Margin(0), Margin(), *published):
        (gradient,) = torch.autograd.grad(
            attack.plan(benign, attack.targets(benign, seeded())).loss(embeddings).sum(), embeddings
        )
        assert gradient.isfinite().all()


# The published suite, against loops over images and items

MODES = ["fixed", "reference"]
PUBLISHED = {
    "ES": EmbeddingShift,
    "TMA": TargetedMismatch,
    "LTM": LearningToMisrank,
    "GTM": GreedyTop1Misrank,
    "GTT": GreedyTop1Translocation,
}
NOTHING = PGD(eps=0, step=0.1, steps=1)


def in_float64(gallery):
    return Gallery(gallery.embeddings.double(), gallery.distance, gallery.labels)


def benign_of(gallery, own):
    return Benign(gallery, gallery.embeddings[own], own, gallery.labels[own])


def one_distance(u, v, distance, offset=0.0):
    return 1 - u @ v if distance == "C" else (u - v + offset).square().sum().sqrt()


def order_of(row, without=()):
    """All items but some, nearest first."""
    return sorted((x for x in range(len(row)) if x not in without), key=lambda x: row[x])


def slow_targets(name, gallery, own, mode):
    """One after the other; the item itself is found by its position, or as the nearest to itself."""
    found = []
    for row, position in zip(
        slow_distances(gallery.embeddings[own], gallery.embeddings, gallery.distance), own.tolist(), strict=True
    ):
        row = row.tolist()
        order = order_of(row, {position if mode == "fixed" else order_of(row)[0]})
        if name == "GTT":
            found.append(order[0])
            continue
        known = gallery.labels[position] if mode == "fixed" else gallery.labels[order[0]]
        other = [x for x in range(len(gallery)) if gallery.labels[x] != known]
        nearest = next(x for x in order if x in other)
        found.append(nearest if mode == "fixed" else other.index(nearest))
    return torch.tensor(found)[:, None]


def slow_loss(name, e, position, target, gallery, mode):
    """Of one embedding ``e [D]``, item by item, by plain autograd."""
    items, distance = gallery.embeddings, gallery.distance
    if name == "TMA":
        return 1 - e @ items[target] / e.norm() / items[target].norm()
    if name == "GTM":
        return one_distance(e, items[target], distance, 1e-6 if mode == "reference" else 0.0)
    if name == "GTT":
        to_target = one_distance(e, items[target], distance)
        return sum((one_distance(e, x, distance) - to_target).relu() for x in items) / len(items)
    same = gallery.labels == gallery.labels[position]
    furthest = max(one_distance(e, items[x], distance) for x in range(len(items)) if not same[x])
    own = [x for x in range(len(items)) if same[x] and (mode == "reference" or x != position)]
    return (furthest - min(one_distance(e, items[x], distance) for x in own)).relu()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["TMA", "LTM", "GTM", "GTT"])
def test_the_published_losses_and_their_gradients_are_their_definitions(name, distance, mode, galleries):
    gallery, own = in_float64(galleries[distance]), torch.arange(3)
    attack, benign = PUBLISHED[name](mode), benign_of(gallery, own)
    targets = attack.targets(benign, seeded())
    noise = torch.randn(3, 16, dtype=torch.float64, generator=seeded(1))
    embeddings = benign.embeddings + 0.05 * gallery.spread * noise
    if distance != "E":
        embeddings = torch.nn.functional.normalize(embeddings, dim=1)
    embeddings.requires_grad_(True)
    found = attack.plan(benign, targets).loss(embeddings)
    expected = torch.stack(
        [
            slow_loss(name, e, position, None if targets is None else targets[i, 0], gallery, mode)
            for i, (e, position) in enumerate(zip(embeddings, own, strict=True))
        ]
    )
    assert (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss.sum(), embeddings)[0] for loss in (found, expected)]
    if distance == "C":  # along the unit vectors: what leads off the sphere is lost in the model's normalization
        gradients = [g - (g * embeddings).sum(1, keepdim=True) * embeddings for g in gradients]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["GTM", "GTT"])
def test_the_greedy_targets_are_those_of_a_loop(name, distance, mode, galleries):
    gallery, own = in_float64(galleries[distance]), torch.arange(0, SIZE, 9)
    found = PUBLISHED[name](mode).targets(benign_of(gallery, own), None)
    assert torch.equal(found, slow_targets(name, gallery, own, mode))


@pytest.mark.parametrize("name", ["ES", "LTM", "GTM", "GTT"])
def test_the_images_themselves_are_looked_for_a_chunk_at_a_time_and_once_in_a_plan(name, gallery, monkeypatch):
    own, asked = torch.arange(SIZE), []
    measured = Gallery.exact_distances_from
    monkeypatch.setattr(
        Gallery, "exact_distances_from", lambda g, queries: asked.append(len(queries)) or measured(g, queries)
    )
    monkeypatch.setattr("robret_lib.attacks.answers.CHUNK", 200)
    attack, benign = PUBLISHED[name]("reference"), benign_of(gallery, own)
    targets = attack.targets(benign, None)
    assert all(rows <= 256 for rows in asked)
    asked.clear()
    plan = attack.plan(benign, targets)
    for _ in range(2):
        plan.measures(benign.embeddings)
    assert [rows for rows in asked if rows != SIZE] == [200, 200, 100]


def test_chunks_change_no_target(gallery):
    benign = benign_of(gallery, torch.arange(50))
    for mode in MODES:
        attack = GreedyTop1Misrank(mode)
        assert torch.equal(attack.targets(benign, None, chunk=7), attack.targets(benign, None))


def test_the_published_target_is_a_place_among_the_others(model, searched_split):
    """Sorted by class: short by the size of the class for targets behind it. Shuffled: the true one's place."""
    by_class = searched_split.labels.argsort(stable=True)
    for order, is_sorted in ((by_class, True), (torch.arange(SIZE), False)):
        labels = searched_split.labels[order]
        gallery = Gallery.of(model, searched_split.images[order], labels)
        benign = benign_of(gallery, torch.arange(SIZE))
        answer = labels[benign.nearest(1)[:, 0]]
        right = answer == labels  # else the two modes speak of different classes
        fixed, reference = (GreedyTop1Misrank(mode).targets(benign, None)[right, 0] for mode in MODES)
        sizes, first = (
            labels.bincount(minlength=10)[labels[right]],
            (labels[None] == labels[right, None]).int().argmax(1),
        )
        assert right.double().mean() > 0.5 and (labels[fixed] != labels[right]).all()
        if is_sorted:
            assert torch.equal(reference, torch.where(fixed > first, fixed - sizes, fixed))
            assert 0.2 < (reference != fixed).double().mean() < 0.8
        else:
            others = (labels[None] != labels[right, None]).int()
            assert torch.equal(reference, others.cumsum(1).gather(1, fixed[:, None])[:, 0] - 1)
            assert (reference != fixed).double().mean() > 0.9


def test_a_mismatch_is_drawn_evenly_and_never_the_image_itself(model, searched):
    gallery, own = Gallery.of(model, searched[:20]), torch.arange(20).repeat(400)
    for mode, choices in (("fixed", 19), ("reference", 20)):
        targets = TargetedMismatch(mode).targets(Benign(gallery, gallery.embeddings[own], own), seeded())
        counts = torch.zeros(20, 20).index_put_((own, targets[:, 0]), torch.ones(()), accumulate=True)
        assert ((counts > 0).sum(1) == choices).all() and ((counts.diagonal() > 0).all() == (mode == "reference"))
        assert (counts.sum(0) / 400 - 1).abs().max() < 0.2
    strangers = TargetedMismatch().targets(Benign(gallery, gallery.embeddings), seeded())
    assert strangers.shape == (20, 1)


def slow_measure(name, embeddings, own, targets, gallery, mode):
    """``[B]``: R@1 or retention, with the item itself by its position, or as the nearest to the benign embedding."""
    measured, benign = [], slow_distances(gallery.embeddings[own], gallery.embeddings, gallery.distance)
    for i, row in enumerate(slow_distances(embeddings, gallery.embeddings, gallery.distance).tolist()):
        order = order_of(row, {own[i].item() if mode == "fixed" else benign[i].argmin().item()})
        right = (
            targets[i, 0].item() in order[:4] if name == "GTT" else gallery.labels[order[0]] == gallery.labels[own[i]]
        )
        measured.append(100.0 if right else 0.0)
    return torch.tensor(measured, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["ES", "LTM", "GTM", "GTT"])
def test_the_published_measures_are_those_of_a_loop(name, distance, mode, models, galleries, searched):
    model, gallery, own = models[distance], galleries[distance], torch.arange(0, SIZE, 11)
    result = attacks.run(PUBLISHED[name](mode), model, searched[own], gallery, PGD(0.04, 0.01, 4), own)
    measure = "retain_at_4" if name == "GTT" else "recall_at_1"
    for embeddings, measured in (
        (gallery.embeddings[own], result.benign),
        (embed(model, result.images), result.measured),
    ):
        expected = slow_measure(name, embeddings, own, result.targets, gallery, mode)
        assert torch.equal(measured[measure], expected)
    assert 0 < result.measured[measure].mean() < result.benign[measure].mean()


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_cosine_is_a_cosine_for_every_distance(distance, models, galleries, searched):
    model, gallery = models[distance], galleries[distance]
    result = attacks.run(TargetedMismatch(), model, searched[OWN], gallery, PGD(0.1, 0.02, 8), OWN, generator=seeded())
    found, target = embed(model, result.images).double(), gallery.embeddings[result.targets[:, 0]].double()
    cosines = [u @ v / u.norm() / v.norm() for u, v in zip(found, target, strict=True)]
    torch.testing.assert_close(result.measured["cosine"].double(), torch.stack(cosines), rtol=0, atol=1e-5)
    assert result.measured["cosine"].mean() > result.benign["cosine"].mean() + 0.1


def test_of_two_equal_items_the_published_code_leaves_out_the_first(gallery):
    """Each item twice, with another class the second time: as the second, an image is its own wrong answer, or not."""
    doubled = Gallery(gallery.embeddings.repeat(2, 1), labels=torch.cat([gallery.labels, 10 + gallery.labels]))
    for own in (torch.arange(40), torch.arange(40) + SIZE):
        benign = benign_of(doubled, own)
        for name, attack in PUBLISHED.items():
            if name in ("TMA", "GTT"):
                continue
            fixed, reference = (
                attack(mode).plan(benign, attack(mode).targets(benign, None)).measures(benign.embeddings)["recall_at_1"]
                for mode in MODES
            )
            assert (fixed == 0).all() and (reference == (0 if own[0] == 0 else 100)).all()
        answers = [GreedyTop1Translocation(mode).targets(benign, None)[:, 0] for mode in MODES]
        assert torch.equal(answers[0], (own + SIZE) % (2 * SIZE)) and torch.equal(answers[1], own % SIZE + SIZE)


def test_images_from_outside_leave_out_nothing(model, gallery, searched):
    """Unless the published code takes their first answer for themselves."""
    for name, attack in PUBLISHED.items():
        labels = gallery.labels[:40]
        kept, taken = (
            attacks.run(attack(mode), model, searched[:40], gallery, NOTHING, labels=labels, generator=seeded())
            for mode in MODES
        )
        if name == "GTT":
            assert torch.equal(kept.targets[:, 0], torch.arange(40)) and not (kept.targets == taken.targets).any()
        elif name != "TMA":
            assert kept.benign["recall_at_1"].mean() == 100 > taken.benign["recall_at_1"].mean()


@pytest.mark.parametrize("distance", ["N", "E"])
def test_the_first_step_of_the_published_shift_is_the_same_for_all(distance, galleries):
    benign = benign_of(galleries[distance], OWN)
    plan = EmbeddingShift("reference").plan(benign, None)
    directions = []
    for _ in range(2):
        embeddings = benign.embeddings.clone().requires_grad_(True)
        directions.append(-torch.autograd.grad(plan.loss(embeddings).sum(), embeddings)[0])
    ones = torch.nn.functional.cosine_similarity(directions[0], torch.ones(1, 16))
    assert (ones > 0.99).all()
    near = benign.embeddings + 0.1 * torch.randn(len(OWN), 16, generator=seeded())
    torch.testing.assert_close(-plan.loss(near), (near - benign.embeddings).norm(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_published_shift_is_a_step_old(distance, models, galleries, searched):
    """That of one step less; of the result itself where the search took no gradient of this network."""
    model, gallery = models[distance], galleries[distance]

    def run(steps, search=PGD):
        made = search(0.1, 0.02, steps)
        return attacks.run(EmbeddingShift("reference"), model, searched[OWN], gallery, made, OWN, batch_size=40)

    def shift(result):
        return row_distance(embed(model, result.images), gallery.embeddings[OWN], distance)

    five, six = run(5), run(6)
    torch.testing.assert_close(six.measured["shift"], shift(five), rtol=1e-3, atol=1e-4)
    assert shift(six).mean() > 1.03 * six.measured["shift"].mean()
    assert run(1).measured["shift"].max() < 1e-4
    transferred = run(6, lambda *budget: Transfer(model, PGD(*budget)))
    torch.testing.assert_close(transferred.measured["shift"], shift(transferred), rtol=1e-3, atol=1e-4)
    assert torch.equal(transferred.images, six.images)


def test_the_images_themselves_are_no_item_of_their_class(gallery):
    """Where only the own item is moved, the fixed loss stays; the published one goes up by its share."""
    own = torch.arange(30)
    away = gallery.embeddings.clone()
    away[own] *= -1
    moved = Gallery(away, labels=gallery.labels)
    for mode in MODES:
        losses = []
        for each in (gallery, moved):
            alone = [Gallery(e, labels=gallery.labels) for e in _each_alone_moved(gallery, each, own)]
            plans = [
                LearningToMisrank(mode).plan(Benign(g, gallery.embeddings[[i]], own[[i]], gallery.labels[[i]]), None)
                for i, g in zip(own.tolist(), alone, strict=True)
            ]
            losses.append(torch.cat([p.loss(gallery.embeddings[[i]]) for i, p in enumerate(plans)]))
        same = (losses[0] - losses[1]).abs() < 1e-3
        assert same.all() if mode == "fixed" else not same.any()


def _each_alone_moved(gallery, moved, own):
    for position in own.tolist():
        embeddings = gallery.embeddings.clone()
        embeddings[position] = moved.embeddings[position]
        yield embeddings


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_batches_do_not_matter_and_nothing_happens_at_radius_zero(name, mode, model, gallery, searched):
    attack, search = PUBLISHED[name](mode), PGD(0.1, 0.02, 4)
    results = [
        attacks.run(attack, model, searched[OWN], gallery, each, OWN, generator=seeded(), batch_size=size)
        for each, size in ((search, 7), (search, 100), (NOTHING, 100))
    ]
    for measure, values in results[0].measured.items():
        same = (values - results[1].measured[measure]).abs() < 1e-4
        assert same.double().mean() > 0.95  # a rounding error may decide the sign of a slope that is nearly 0
        torch.testing.assert_close(results[2].measured[measure], results[2].benign[measure], rtol=0, atol=1e-6)
    assert torch.equal(results[2].images, searched[OWN])
    assert (results[0].targets is None) or torch.equal(results[0].targets, results[1].targets)


def test_more_steps_move_further(model, gallery, searched):
    shifts = [
        attacks.run(EmbeddingShift(), model, searched[OWN], gallery, PGD(0.1, 0.01, steps), OWN).measured["shift"]
        for steps in (8, 32)
    ]
    assert shifts[1].mean() >= shifts[0].mean() - 1e-3


@pytest.mark.parametrize("name", ["ES", "LTM", "GTM"])
def test_several_labels_of_the_published_suite(name, model, searched, searched_split):
    labels = torch.zeros(SIZE, 4, dtype=torch.uint8)
    labels[torch.arange(SIZE), searched_split.labels // 4] = 1
    labels[::3, 3] = 1
    gallery, own = Gallery.of(model, searched, labels), torch.arange(40)
    for mode in MODES:
        result = attacks.run(PUBLISHED[name](mode), model, searched[own], gallery, AutoPGD(0.2, 8), own)
        if name == "GTM" and mode == "fixed":
            shared = (labels[own] * labels[result.targets[:, 0]]).sum(1)
            assert (shared == 0).all()
        assert result.measured["recall_at_1"].mean() < result.benign["recall_at_1"].mean() - 10


@pytest.mark.parametrize("mode", MODES)
def test_classes_that_are_alone_or_everything_in_the_published_suite(mode, model, searched):
    own = torch.arange(3)
    for labels, expected in ((torch.arange(SIZE), 0.0), (torch.zeros(SIZE, dtype=torch.long), 100.0)):
        gallery = Gallery.of(model, searched, labels)
        for attack in (LearningToMisrank(mode), GreedyTop1Misrank(mode)):
            result = attacks.run(attack, model, searched[own], gallery, PGD(0.2, 0.1, 3), own)
            assert result.benign["recall_at_1"].tolist() == result.measured["recall_at_1"].tolist() == [expected] * 3
            moved = (result.images != searched[own]).any()
            assert moved == (expected == 0)  # without another class, the loss is a constant
            if result.targets is not None:
                assert ((result.targets == -1) == (expected == 100)).all()


@pytest.mark.parametrize("name", ["LTM", "GTM"])
def test_classes_are_asked_for(name, model, gallery, searched):
    for bare, own in ((Gallery(gallery.embeddings), torch.arange(4)), (gallery, None)):
        with pytest.raises(ValueError, match="needs classes: give labels to Gallery.of, and to run for images from"):
            attacks.run(PUBLISHED[name](), model, searched[:4], bare, NOTHING, own)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_impossible_mode_is_refused(name):
    with pytest.raises(ValueError, match="mode='published': expected 'fixed' or 'reference'"):
        PUBLISHED[name]("published")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_on_a_gpu_targets_and_measures_are_those_of_the_cpu(name, mode, models, galleries, searched):
    found = {}
    for device in ("cpu", "cuda"):
        model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
        arguments = PUBLISHED[name](mode), model, searched[OWN], gallery, PGD(0.1, 0.1, 1), OWN
        found[device] = attacks.run(*arguments, generator=seeded())
    models["N"].cpu()
    on_cpu, on_gpu = found.values()
    assert (on_cpu.targets is None) or (on_cpu.targets == on_gpu.targets).double().mean() > 0.98
    for measure, values in on_cpu.measured.items():
        assert on_gpu.measured[measure].device.type == "cpu"
        assert on_gpu.measured[measure].mean().item() == pytest.approx(values.mean().item(), rel=0.05, abs=0.01)
