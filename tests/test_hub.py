"""A hub, against loops over images and queries; how far it reaches, whether it is found, and how it hides."""

import pytest
import torch

from robret_lib import attacks
from robret_lib.attacks import AutoPGD, Benign, Gallery, hub
from robret_lib.attacks.hub import CentroidHub, HiddenHub, Hub
from robret_lib.attacks.run import BYTES_PER_DISTANCE
from robret_lib.distances import Centered
from robret_lib.hubness import hubness, k_occurrence
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, DISTANCES, SIZE, gallery_on, seeded, some_split

OWN = torch.arange(3, SIZE, 60)
SEARCH = AutoPGD(0.2, 20)


def name_of(attack):
    return type(attack).__name__


def distance(u, v):
    return (u.double() - v.double()).norm(dim=-1)


def slow_limit(query, gallery, k, left_out):
    """To the k-th neighbor of item ``query``, one item at a time."""
    distances = [distance(gallery.embeddings[query], gallery.embeddings[x]) for x in range(len(gallery))]
    return sorted(d.item() for x, d in enumerate(distances) if x not in (query, left_out))[k - 1]


def slow_hits(found, own, gallery, k):
    """The queries with the found embedding among their first k, where it has taken the place of ``own``."""
    embeddings = torch.cat([gallery.embeddings.double(), found[None].double()])
    new, hits = len(gallery), []
    for query in range(len(gallery)):
        order = (embeddings[query] - embeddings).norm(dim=1).argsort().tolist()
        if query != own and new in [x for x in order if x not in (query, own)][:k]:
            hits.append(query)
    return hits


def few(gallery, count=60):
    return Gallery(gallery.embeddings[:count], gallery.distance, gallery.labels[:count])


def moved(embeddings, gallery):
    noise = torch.randn(embeddings.shape, generator=seeded(1), dtype=embeddings.dtype)
    return embeddings + 0.3 * gallery.euclidean.spread * noise


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("own", [torch.arange(6), None], ids=["items", "strangers"])
def test_the_loss_is_the_share_of_the_seen_queries_with_soft_steps(own, name, galleries):
    gallery, k = few(galleries[name]), 4
    benign = Benign(gallery, gallery.embeddings[:6], own)
    attack = Hub(k=k, seen=20, temperature=0.3)
    targets = attack.targets(benign, seeded(3))
    embeddings = moved(gallery.embeddings[:6], gallery)
    losses = attack.plan(benign, targets).loss(embeddings)
    assert own is None or set(targets[0].tolist()) & set(own.tolist())  # an image that is seen is not its own query
    for i, (embedding, loss) in enumerate(zip(embeddings, losses, strict=True)):
        left_out = None if own is None else i
        steps = [
            torch.sigmoid(
                (slow_limit(q, gallery, k, left_out) - distance(gallery.embeddings[q], embedding))
                / (0.3 * gallery.euclidean.spread)
            )
            for q in targets[0].tolist()
            if q != left_out
        ]
        assert loss.item() == pytest.approx(-torch.stack(steps).mean().log().item(), rel=1e-3, abs=1e-4)


def test_a_hidden_hub_pays_for_every_query_above_the_ceiling(gallery):
    """Twice the logarithm of how often all queries show it, beyond the ceiling; nothing below."""
    own = torch.arange(6)
    benign = Benign(gallery, gallery.embeddings[own], own)
    embeddings = moved(gallery.embeddings[own], gallery)
    hub = Hub(seen=30, concept=2)
    targets = hub.targets(benign, seeded(3))
    wanted = hub.plan(benign, targets).loss(embeddings)
    everyone = torch.cat([Hub(seen=SIZE - 1).targets(benign, seeded()), torch.zeros(6, 1, dtype=torch.long)], 1)
    missing = set(range(SIZE)) - set(everyone[0, :-1].tolist())
    everyone[:, -1] = missing.pop()
    share = (-hub.plan(benign, everyone).loss(embeddings)).exp()
    for ceiling in (0.2, 3.0, 50.0):
        losses = HiddenHub(seen=30, concept=2, ceiling=ceiling).plan(benign, targets).loss(embeddings)
        torch.testing.assert_close(
            losses, wanted + 2 * (100 * share / ceiling).log().clamp(min=0), rtol=1e-5, atol=1e-5
        )
    assert share.min() < 0.03 < share.max()  # the second ceiling is above some and below others


@pytest.mark.parametrize("name", DISTANCES)
def test_the_loss_of_the_centroid(name, galleries):
    gallery, own = few(galleries[name]), torch.arange(6)
    benign = Benign(gallery, gallery.embeddings[own], own)
    targets = CentroidHub(seen=20).targets(benign, seeded(3))
    embeddings = moved(gallery.embeddings[own], gallery)
    losses = CentroidHub(seen=20).plan(benign, targets).loss(embeddings)
    for i, loss in enumerate(losses):
        seen = [q for q in targets[0].tolist() if q != i]
        centroid = torch.stack([q / q.norm() for q in gallery.embeddings[seen]]).mean(0)
        expected = 1 - torch.cosine_similarity(embeddings[i], centroid, dim=0)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize(
    "attack", [Hub(k=5, seen=20), HiddenHub(k=5, seen=20, ceiling=0.1), CentroidHub(seen=20)], ids=name_of
)
def test_the_gradient(attack, name, galleries):
    """Against differences, in float64."""
    single, own = galleries[name], torch.arange(5)
    gallery = Gallery(single.embeddings.double(), name)
    benign = Benign(gallery, gallery.embeddings[own], own)
    embeddings = moved(gallery.embeddings[own], gallery).requires_grad_(True)
    assert torch.autograd.gradcheck(attack.plan(benign, attack.targets(benign, seeded())).loss, (embeddings,))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("own", [OWN[:3], None], ids=["items", "strangers"])
@pytest.mark.parametrize("concept", [None, 2], ids=["all", "concept"])
def test_the_reach_is_counted_in_whole_rankings(concept, own, name, models, galleries, searched):
    gallery, attack = galleries[name], Hub(k=10, seen=25, concept=concept)
    images = some_split(3, seed=40).images if own is None else searched[own]
    result = attacks.run(attack, models[name], images, gallery, AutoPGD(0.1, 6), own, generator=seeded())
    pool = [x for x in range(SIZE) if concept is None or gallery.labels[x] == concept]
    seen = result.targets[0].tolist()
    sets = {"reach": [q for q in pool if q not in seen], "reach_seen": seen, "reach_everywhere": list(range(SIZE))}
    for i, found in enumerate(embed(models[name], result.images)):
        itself = None if own is None else own[i].item()
        hits = slow_hits(found, itself, gallery, 10)
        for measure, queries in sets.items():
            queries = [q for q in queries if q != itself]
            expected = 100 * len(set(hits) & set(queries)) / len(queries)
            assert result.measured[measure][i].item() == pytest.approx(expected, abs=110 / len(queries))  # one tie
    assert result.measured["reach_seen"].mean() > result.benign["reach_seen"].mean()


def test_the_benign_reach_is_the_k_occurrence(models, galleries, searched):
    """Of what the attack starts from: the natural hubs."""
    gallery = galleries["N"]
    result = attacks.run(Hub(), models["N"], searched[OWN], gallery, AutoPGD(0, 1), OWN, generator=seeded())
    counts = k_occurrence(gallery.embeddings, gallery.embeddings, 10, self_excluded=True)
    expected = 100 * counts[OWN].double() / (SIZE - 1)
    torch.testing.assert_close(result.benign["reach_everywhere"], expected, rtol=0, atol=0.21)


def test_all_images_share_the_seen_queries_and_the_generator_chooses_them(gallery):
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    targets = Hub(seen=40).targets(benign, seeded(5))
    assert targets.shape == (len(OWN), 40) and (targets == targets[0]).all()
    assert len(targets[0].unique()) == 40
    assert torch.equal(targets, Hub(seen=40).targets(benign, seeded(5)))
    assert not torch.equal(targets, Hub(seen=40).targets(benign, seeded(6)))
    concept = Hub(seen=10, concept=4).targets(benign, seeded(5))
    assert (gallery.labels[concept] == 4).all()


def test_a_concept_of_several_labels_is_a_column(gallery):
    labels = torch.zeros(SIZE, 3, dtype=torch.uint8)
    labels[::4, 1] = labels[::3, 2] = 1
    several = Gallery(gallery.embeddings, "N", labels)
    benign = Benign(several, gallery.embeddings[OWN], OWN)
    assert (Hub(seen=30, concept=1).targets(benign, seeded()) % 4 == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attack", [Hub(), CentroidHub(), HiddenHub(seen=20, concept=1)], ids=name_of)
def test_batches_do_not_matter(attack, device, model, gallery, searched):
    model, gallery = model.to(device), gallery_on(device, gallery)
    whole, parts = [
        attacks.run(attack, model, searched[OWN], gallery, SEARCH, OWN, generator=seeded(), batch_size=size)
        for size in (256, 2)
    ]
    model.cpu()
    assert torch.equal(whole.targets, parts.targets)
    assert ((whole.images - parts.images).abs() < 1e-3).double().mean() > 0.98


def test_what_all_plans_share_is_looked_for_once(model, gallery, searched, monkeypatch):
    fresh, products, prepared = Gallery(gallery.embeddings), [], []
    monkeypatch.setattr(Gallery, "nearest", lambda *a, f=Gallery.nearest: products.append(a) or f(*a))
    monkeypatch.setattr(hub.Centered, "of", lambda points, f=Centered.of: prepared.append(len(points)) or f(points))
    arguments = HiddenHub(seen=20), model, searched[OWN], fresh, AutoPGD(0.1, 1), OWN
    attacks.run(*arguments, generator=seeded(), batch_size=3)
    assert len(products) == 1
    assert [size for size in prepared if size != 20] == [SIZE, SIZE]  # in float32, and in float64 for what is reported


def test_the_slope_does_not_vanish_far_away(gallery):
    """A gallery of two lumps, very far apart: the share is zero to the last digit, its logarithm is not flat."""
    lumps = torch.randn(SIZE, 8, generator=seeded()) * 0.01
    lumps[1:, 0] += 1000
    world = Gallery(lumps, "E")
    benign = Benign(world, lumps[:1], torch.arange(1))
    embeddings = lumps[:1].clone().requires_grad_(True)
    attack = Hub(temperature=0.001)
    loss = attack.plan(benign, attack.targets(benign, seeded())).loss(embeddings)
    (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    assert torch.cosine_similarity(-gradient, torch.eye(8)[:1]) > 0.99


def test_a_collapsed_gallery_is_attacked_without_harm():
    embeddings = torch.nn.functional.normalize(torch.ones(SIZE, 16), dim=1)
    benign = Benign(Gallery(embeddings), embeddings[:4], torch.arange(4))
    for attack in (Hub(), CentroidHub(), HiddenHub()):
        there = embeddings[:4].clone().requires_grad_(True)
        plan = attack.plan(benign, attack.targets(benign, seeded()))
        (gradient,) = torch.autograd.grad(plan.loss(there).sum(), there)
        assert gradient.isfinite().all()
        assert all(values.isfinite().all() for values in plan.measures(embeddings[:4]).values())


@pytest.mark.parametrize("name", DISTANCES)
def test_a_hub_reaches_further_than_any_item_and_its_unseen_queries_too(name, models, galleries, searched):
    gallery = galleries[name]
    counts = k_occurrence(gallery.embeddings, gallery.embeddings, 10, self_excluded=True)
    natural = 100 * counts.max().item() / (SIZE - 1)
    hub, centroid = [
        attacks.run(attack, models[name], searched[OWN], gallery, SEARCH, OWN, generator=seeded())
        for attack in (Hub(seen=250), CentroidHub(seen=250))
    ]
    assert hub.measured["reach"].max() > natural
    assert hub.measured["reach"].mean() > 2 * hub.benign["reach"].mean()
    assert hub.measured["reach"].mean() > centroid.measured["reach"].mean()
    assert hub.measured["reach"].mean() > 0.4 * hub.measured["reach_seen"].mean()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k=0: expected a whole number"),
        ({"seen": 0}, "seen=0: expected a whole number"),
        ({"ceiling": 0}, "ceiling=0: expected percent, above 0 and at most 100"),
        ({"temperature": 0}, "temperature=0: expected a finite number above 0"),
        ({"concept": -1}, "concept=-1: expected a whole number of at least 0"),
        ({"concept": "a"}, "concept='a': expected a whole number of at least 0"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HiddenHub(**fields)


def test_a_concept_without_items_is_refused(gallery):
    several = Gallery(gallery.embeddings, "N", torch.eye(10, dtype=torch.uint8)[gallery.labels])
    for each in (gallery, several):
        benign = Benign(each, gallery.embeddings[OWN], OWN)
        with pytest.raises(ValueError, match="concept=99: no gallery item has this class, the highest one is 9"):
            Hub(concept=99).targets(benign, None)


def test_the_memory_of_a_plan_is_what_the_run_counts_for_it(gallery):
    """In bytes for each image and item; of what is kept for the gradient, each tensor once."""
    own = torch.arange(8)
    benign, kept = Benign(gallery, gallery.embeddings[own], own), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for attack in (Hub(), HiddenHub()):
        kept.clear()
        plan = attack.plan(benign, attack.targets(benign, seeded()))
        embeddings = gallery.embeddings[own].clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            plan.loss(embeddings)
        size = sum(storage.nbytes() for storage in kept.values())
        plan_itself = 8 + 1 + 8  # limits, which queries count, and the logarithms of their weights
        assert size / len(own) / SIZE + plan_itself < attack.rows * BYTES_PER_DISTANCE


def test_a_hub_needs_queries_it_has_not_seen(gallery):
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    with pytest.raises(ValueError, match="seen=500 of 500 queries: leave some unseen"):
        Hub(seen=SIZE).targets(benign, None)
    with pytest.raises(ValueError, match="concept=3: the gallery has no labels"):
        Hub(concept=3).targets(Benign(Gallery(gallery.embeddings), gallery.embeddings[OWN]), None)


# The detector


def test_k_occurrence_counts_whole_rankings(gallery):
    items, strangers = gallery.embeddings[:70], gallery.embeddings[200:240]
    for probes, left_out in ((strangers, False), (items, True), (items[20:50], torch.arange(20, 50))):
        expected = [0] * len(items)
        for i, probe in enumerate(probes):
            order = distance(probe, items).argsort().tolist()
            if left_out is not False:
                order.remove(i if left_out is True else left_out[i].item())
            for x in order[:5]:
                expected[x] += 1
        found = k_occurrence(probes, items, 5, left_out)
        assert found.sum() == 5 * len(probes)
        assert (found - torch.tensor(expected)).abs().sum() <= 4  # two ties


def test_k_occurrence_does_not_depend_on_what_is_looked_at_at_once(gallery, monkeypatch):
    whole = k_occurrence(gallery.embeddings, gallery.embeddings, 10, self_excluded=True)
    monkeypatch.setattr("robret_lib.hubness.CHUNK", 7)
    assert (k_occurrence(gallery.embeddings, gallery.embeddings, 10, self_excluded=True) - whole).abs().sum() <= 4


def test_hubness_is_the_robust_deviation_from_the_median():
    counts = torch.tensor([90, 100, 110, 80, 120, 60, 500])
    assert hubness(counts).tolist() == pytest.approx([(n - 100) / (1.4826 * 20) for n in counts.tolist()])
    rare = torch.tensor([0] * 95 + [1] * 4 + [30])  # the median deviation is zero: chance is the unit
    assert hubness(rare)[-1].item() == pytest.approx(30 / 0.34**0.5)
    assert (hubness(torch.zeros(9)) == 0).all()


def test_what_cannot_be_counted_is_refused(gallery):
    items = gallery.embeddings[:70]
    unknown = items.clone()
    unknown[3, 0] = torch.nan
    for arguments, message in (
        ((items, items, 70, True), "k=70: expected 1 to 69, the gallery items to choose from"),
        ((items, items, 0, True), "k=0: expected a whole number of at least 1"),
        ((items, items, 2.5), "k=2.5: expected a whole number of at least 1"),
        ((unknown, items), "probes hold NaN or infinity"),
        ((items, unknown), "gallery hold NaN or infinity"),
        ((items[0], items), r"probes and gallery of shapes \(16,\) and \(70, 16\): expected \[P, D\] and \[N, D\]"),
        ((items[:, :8], items), r"of shapes \(70, 8\) and \(70, 16\): expected \[P, D\] and \[N, D\]"),
        ((items, items, 5, torch.arange(69)), r"70 probes and self_excluded of shape \(69,\): expected one position"),
        ((items[:2], items, 5, torch.tensor([0, 70])), "self_excluded holds 0 to 70: the gallery has 70 items"),
        ((items[:2], items, 5, torch.tensor([-1, 3])), "self_excluded holds -1 to 3: the gallery has 70 items"),
        ((gallery.embeddings, items, 5, True), "self_excluded holds 0 to 499: the gallery has 70 items"),
    ):
        with pytest.raises(ValueError, match=message):
            k_occurrence(*arguments)


def test_the_detector_finds_hubs_and_the_hub_that_knows_of_it_hides(gallery, model, searched):
    """The threshold is the largest score of the clean gallery, and so is the ceiling, in counts."""
    clean = k_occurrence(gallery.embeddings, gallery.embeddings, 10, self_excluded=True)
    ceiling = 100 * clean.max().item() / SIZE
    own, search = OWN[gallery.labels[OWN] != 1], AutoPGD(0.3, 30)
    scores, reach = {}, {}
    for name, attack in {
        "hub": Hub(seen=250),
        "concept": Hub(seen=20, concept=1),
        "hidden": HiddenHub(seen=20, concept=1, ceiling=0.8 * ceiling),
    }.items():
        result = attacks.run(attack, model, searched[own], gallery, search, own, generator=seeded())
        reach[name] = result.measured["reach"].mean()
        found = embed(model, result.images)
        worlds = [
            gallery.embeddings.index_copy(0, at, item) for at, item in zip(own.split(1), found.split(1), strict=True)
        ]
        counts = [k_occurrence(world, world, 10, self_excluded=True) for world in worlds]
        scores[name] = torch.stack([hubness(each)[at] for each, at in zip(counts, own, strict=True)])
    threshold = hubness(clean).max()
    assert (scores["hub"] > threshold).double().mean() > 0.5
    assert (scores["hidden"] <= threshold).all()
    assert scores["hidden"].mean() < scores["concept"].mean()
    assert reach["hidden"] > 40
