"""Panum's global attack, SMA and FNA: against loops over images and items, in every distance."""

import pytest
import torch

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Benign, Gallery
from robret_lib.attacks.embedding import EmbeddingShift
from robret_lib.attacks.neighbors import FurthestNegative, PanumGlobal, SelfMetric
from robret_lib.metrics import recall_at_k
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, DISTANCES, SIZE, gallery_on, seeded, some_split

OWN = torch.arange(0, SIZE, 7)
PUBLISHED = PGD(8 / 255, 2 / 255, 8, random_start=True)
WITH_CLASSES = [PanumGlobal(), FurthestNegative()]


def several_labels(count=SIZE):
    """Multi-hot: one of three classes each, and a fourth for every third item."""
    labels = torch.zeros(count, 4, dtype=torch.uint8)
    labels[torch.arange(count), torch.randint(3, (count,), generator=seeded(2))] = 1
    labels[::3, 3] = 1
    return labels


def shares(label, other):
    return bool((label & other).any()) if label.ndim else bool(label == other)


def by_distance(embedding, gallery, left_out):
    """All positions but one, nearest first, by Euclidean distance in float64."""
    distances = (embedding - gallery.embeddings.double()).norm(dim=1).tolist()
    return sorted((x for x in range(len(gallery)) if x != left_out), key=distances.__getitem__)


def cases(models, galleries, searched):
    """For each distance items and strangers; and several labels. ``(gallery, embeddings, own, labels)``"""
    own, strangers = OWN[::7], some_split(10, seed=40)
    for distance in DISTANCES:
        gallery = galleries[distance]
        yield gallery, gallery.embeddings[own], own, gallery.labels[own]
        yield gallery, embed(models[distance], strangers.images), None, strangers.labels
    gallery = Gallery(galleries["N"].embeddings, "N", several_labels())
    yield gallery, gallery.embeddings[own], own, gallery.labels[own]


def moved(embeddings):
    noise = torch.randn(embeddings.shape, generator=seeded(1))
    return embeddings + 0.1 * noise * embeddings.norm(dim=1, keepdim=True)


def test_panum_flees_from_the_right_first_answer(models, galleries, searched):
    for gallery, embeddings, own, labels in cases(models, galleries, searched):
        benign = Benign(gallery, embeddings, own, labels)
        targets = PanumGlobal().targets(benign, None)
        losses = PanumGlobal().plan(benign, targets).loss(moved(embeddings))
        for i, embedding in enumerate(embeddings.double()):
            first = by_distance(embedding, gallery, None if own is None else own[i].item())[0]
            right = shares(labels[i], gallery.labels[first])
            assert targets[i].tolist() == [first if right else -1]
            away = (moved(embeddings)[i].double() - gallery.embeddings[first]).norm() if right else 0
            assert losses[i].item() == pytest.approx(-float(away), rel=1e-5)
        assert (targets >= 0).any()


def test_the_guides_are_near_and_the_negative_is_far(models, galleries, searched):
    for gallery, embeddings, own, labels in cases(models, galleries, searched):
        benign = Benign(gallery, embeddings, own, labels)
        attack = FurthestNegative(guides=3)
        targets = attack.targets(benign, None)
        losses = attack.plan(benign, targets).loss(moved(embeddings))
        for i, embedding in enumerate(embeddings.double()):
            order = by_distance(embedding, gallery, None if own is None else own[i].item())
            same = [x for x in order if shares(labels[i], gallery.labels[x])]
            others = [x for x in order if not shares(labels[i], gallery.labels[x])]
            assert targets[i].tolist() == [*same[:3], others[-1]]
            squares = [(moved(embeddings)[i].double() - gallery.embeddings[x]).square().sum() for x in targets[i]]
            expected = float(squares[-1] - sum(squares[:-1]) / 3)
            assert losses[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_targets_do_not_depend_on_what_is_looked_at_at_once(gallery, monkeypatch):
    benign = Benign(gallery, gallery.embeddings[OWN], OWN, gallery.labels[OWN])
    whole = FurthestNegative().targets(benign, None)
    monkeypatch.setattr("robret_lib.attacks.neighbors.CHUNK", 5)
    assert torch.equal(FurthestNegative().targets(benign, None), whole)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("attack", [*WITH_CLASSES, SelfMetric()], ids=lambda attack: type(attack).__name__)
def test_the_gradients(attack, distance, galleries):
    """Against differences, in float64."""
    single, own = galleries[distance], torch.arange(6)
    gallery = Gallery(single.embeddings.double(), distance, single.labels)
    benign = Benign(gallery, gallery.embeddings[own], own, gallery.labels[own])
    embeddings = moved(gallery.embeddings[own]).requires_grad_(True)
    assert torch.autograd.gradcheck(attack.plan(benign, attack.targets(benign, None)).loss, (embeddings,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("attack", [FurthestNegative(), SelfMetric()], ids=["FNA", "SMA"])
def test_recall_is_the_metric_s(device, attack, distance, models, galleries, searched):
    model, gallery = models[distance].to(device), gallery_on(device, galleries[distance])
    result = attacks.run(attack, model, searched[OWN], gallery, PUBLISHED, OWN, generator=seeded())
    found, labels = embed(model, result.images), gallery.labels[OWN]
    expected = recall_at_k(found, gallery.embeddings, labels, gallery.labels, (1,), self_excluded=OWN)[1]
    model.cpu()
    assert result.measured["recall_at_1"].mean().item() == pytest.approx(expected, abs=1.5)
    assert set(result.measured["recall_at_1"].tolist()) <= {0.0, 100.0}


@pytest.mark.parametrize("distance", DISTANCES)
def test_panum_leaves_wrong_queries_alone_and_counts_them_as_wrong(distance, models, galleries, searched):
    model, gallery = models[distance], galleries[distance]
    still = PGD(8 / 255, 2 / 255, 8)
    result = attacks.run(PanumGlobal(), model, searched, gallery, still, torch.arange(SIZE))
    right = result.benign["recall_at_1"] == 100
    unmoved = (result.images == searched).flatten(1).all(1)
    assert torch.equal(unmoved, ~right) and torch.equal(result.targets[:, 0] == -1, ~right)
    found = embed(model, result.images)
    expected = recall_at_k(found, gallery.embeddings, gallery.labels, gallery.labels, (1,), self_excluded=True)[1]
    assert result.measured["recall_at_1"].mean().item() == pytest.approx(expected, abs=0.5)
    noisy = attacks.run(PanumGlobal(), model, searched, gallery, PUBLISHED, torch.arange(SIZE), generator=seeded())
    assert (noisy.measured["recall_at_1"][~right] == 0).all()  # also where noise happens to right them
    assert noisy.measured["recall_at_1"].mean() < result.benign["recall_at_1"].mean() - 5


@pytest.mark.parametrize("distance", DISTANCES)
def test_from_the_image_itself_sma_first_makes_for_the_furthest_item(distance, galleries):
    gallery = galleries[distance]
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    embeddings = gallery.embeddings[OWN].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(SelfMetric().plan(benign, None).loss(embeddings).sum(), embeddings)
    for row, position in zip(gradient, OWN.tolist(), strict=True):
        furthest = by_distance(gallery.embeddings[position].double(), gallery, None)[-1]
        towards = gallery.embeddings[furthest] - gallery.embeddings[position]
        assert torch.cosine_similarity(-row, towards, dim=0) > 0.999


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("search", [PUBLISHED, AutoPGD(8 / 255, 8)], ids=["random start", "from the image"])
def test_sma_moves_as_far_as_the_embedding_shift(search, distance, models, galleries, searched):
    """They are one attack from one random start, and as strong from the image."""
    model, gallery = models[distance], galleries[distance]
    shift, own = [
        attacks.run(attack, model, searched[OWN], gallery, search, OWN, generator=seeded())
        for attack in (EmbeddingShift(), SelfMetric())
    ]
    assert own.measured["shift"].mean() > 0.95 * shift.measured["shift"].mean()
    assert own.benign["shift"].abs().max() < 1e-5
    if search is PUBLISHED:
        assert (own.images - shift.images).abs().mean() < 0.1 * 8 / 255


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attack", [*WITH_CLASSES, SelfMetric()], ids=lambda attack: type(attack).__name__)
def test_batches_do_not_matter(attack, device, model, gallery, searched):
    model, gallery = model.to(device), gallery_on(device, gallery)
    whole, parts = [
        attacks.run(attack, model, searched[OWN], gallery, PUBLISHED, OWN, generator=seeded(), batch_size=size)
        for size in (256, 9)
    ]
    model.cpu()
    assert whole.targets is None or torch.equal(whole.targets, parts.targets)
    assert ((whole.images - parts.images).abs() < 1e-4).double().mean() > 0.99


def test_without_guides_or_negatives(gallery, searched, model):
    """A class of its own is only pulled; one class for all is only pushed; both are defined."""
    own = torch.arange(4)
    alone, everybody = torch.arange(SIZE), torch.zeros(SIZE, dtype=torch.long)
    for labels, missing in ((alone, slice(0, 4)), (everybody, slice(4, 5))):
        labeled = Gallery(gallery.embeddings, "N", labels)
        benign = Benign(labeled, gallery.embeddings[own], own, labels[own])
        targets = FurthestNegative(guides=4).targets(benign, None)
        assert (targets[:, missing] == -1).all() and ((targets == -1).sum(1) == len(range(5)[missing])).all()
        embeddings = moved(gallery.embeddings[own])
        losses = FurthestNegative(guides=4).plan(benign, targets).loss(embeddings)
        squares = (embeddings[:, None] - gallery.embeddings[targets]).square().sum(2)
        expected = squares[:, 4] if missing.start == 0 else -squares[:, :4].mean(1)
        torch.testing.assert_close(losses, expected)
        for attack in WITH_CLASSES:
            result = attacks.run(attack, model, searched[own], labeled, PUBLISHED, own, generator=seeded())
            assert result.images.isfinite().all()


def test_fewer_guides_than_asked_for(gallery):
    """A class of three gives two guides; both push alike."""
    labels = torch.arange(SIZE) // 3
    labeled = Gallery(gallery.embeddings, "N", labels)
    own = torch.arange(3)
    benign = Benign(labeled, gallery.embeddings[own], own, labels[own])
    targets = FurthestNegative(guides=SIZE + 5).targets(
        Benign(labeled, gallery.embeddings[own], own, labels[own]), None
    )
    assert [sorted(row[row >= 0][:-1].tolist()) for row in targets] == [[1, 2], [0, 2], [0, 1]]
    embeddings = moved(gallery.embeddings[own])
    losses = FurthestNegative(guides=SIZE + 5).plan(benign, targets).loss(embeddings)
    for i, loss in enumerate(losses):
        squares = [(embeddings[i] - gallery.embeddings[x]).square().sum() for x in targets[i][targets[i] >= 0]]
        torch.testing.assert_close(loss, squares[-1] - (squares[0] + squares[1]) / 2)


def test_a_collapsed_gallery_is_attacked_without_harm():
    embeddings = torch.nn.functional.normalize(torch.ones(SIZE, 16), dim=1)
    gallery, own = Gallery(embeddings, labels=torch.arange(SIZE) % 10), torch.arange(8)
    benign = Benign(gallery, embeddings[own], own, gallery.labels[own])
    for attack in (*WITH_CLASSES, SelfMetric()):
        there = embeddings[own].clone().requires_grad_(True)
        loss = attack.plan(benign, attack.targets(benign, None)).loss(there)
        (gradient,) = torch.autograd.grad(loss.sum(), there)
        assert gradient.isfinite().all() and loss.isfinite().all()


@pytest.mark.parametrize("attack", WITH_CLASSES, ids=lambda attack: type(attack).__name__)
def test_classes_are_needed(attack, model, gallery, searched):
    with pytest.raises(ValueError, match=f"{type(attack).__name__} needs classes"):
        attacks.run(attack, model, searched[OWN], Gallery(gallery.embeddings), PUBLISHED, OWN)
    result = attacks.run(SelfMetric(), model, searched[OWN], Gallery(gallery.embeddings), PUBLISHED, OWN)
    assert set(result.measured) == {"shift"}


@pytest.mark.parametrize("guides", [0, -1, 2.0, True])
def test_an_impossible_number_of_guides_is_refused(guides):
    with pytest.raises(ValueError, match="guides=.*: expected a whole number"):
        FurthestNegative(guides)
