"""Embedding shift and margin: their losses against the definitions, R@1 as the metric counts it, and their strength."""

import pytest
import torch

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Benign, Gallery
from robret_lib.attacks.embedding import EmbeddingShift, Margin
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


@pytest.mark.parametrize("temperature", [0, 0.05])
def test_classes_that_are_alone_or_everything_are_defined(temperature, model, searched):
    """No other item of the class: the answer is wrong already. No item of another class: it cannot be wrong."""
    own = torch.arange(3)
    alone = torch.arange(SIZE)
    everything = torch.zeros(SIZE, dtype=torch.long)
    for labels, expected in ((alone, 0.0), (everything, 100.0)):
        gallery = Gallery.of(model, searched, labels)
        result = attacks.run(Margin(temperature), model, searched[own], gallery, AutoPGD(0.2, 3), own)
        for measured in (result.benign, result.measured):
            assert measured["recall_at_1"].tolist() == [expected] * 3
        assert result.images.isfinite().all()


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
    for attack in (EmbeddingShift(), Margin(0), Margin()):
        (gradient,) = torch.autograd.grad(attack.plan(benign, None).loss(embeddings).sum(), embeddings)
        assert gradient.isfinite().all()
