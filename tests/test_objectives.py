"""The triplet loss and its gradients in closed form, and the losses of pytorch-metric-learning behind one call."""

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.nn.functional import normalize

from robret_lib import mining
from robret_lib.data import Split
from robret_lib.objectives import MARGIN, MetricLearningObjective, TripletObjective, row_distance, triplet_loss
from robret_lib.training import Schedule, train

DISTANCES = ["N", "E", "C"]
SAMPLERS = [mining.random, mining.semihard, mining.softhard, mining.distance, mining.hard]
ALLOWED = [(s, d) for s in SAMPLERS for d in DISTANCES if s is not mining.distance or d == "N"]
LOSSES = {
    "contrastive": lambda: losses.ContrastiveLoss(),
    "margin": lambda: losses.MarginLoss(learn_beta=True, num_classes=4),
    "multi-similarity": lambda: losses.MultiSimilarityLoss(),
    "N-pair": lambda: losses.NPairsLoss(),
    "proxy": lambda: losses.ProxyAnchorLoss(num_classes=4, embedding_size=5),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(distance, seed, count=9):
    values = torch.randn(count, 6, generator=seeded(seed), dtype=torch.float64)
    return (values if distance == "E" else normalize(values, dim=1)).requires_grad_(True)


def slow_distance(u, v, distance):
    if distance == "C":
        return 1 - (u * v).sum() / (u.norm() * v.norm())
    return (u - v).square().sum().sqrt()


def some_split():
    """Four classes of 4x4 images: a pattern each, and noise."""
    patterns, labels = torch.rand(4, 1, 4, 4, generator=seeded(0)), torch.arange(40) % 4
    return Split(0.5 * patterns[labels] + 0.5 * torch.rand(40, 1, 4, 4, generator=seeded(1)), labels)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5))


def a_batch(split):
    positions = next(mining.spc2_epoch(split.labels, 8, seeded(2)))
    return split.images[positions], split.labels[positions]


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_triplet_loss_is_its_formula(distance):
    """Up to the 1e-6 which torch adds to each difference so that a distance of zero has a slope."""
    a, p, n = (vectors(distance, seed) for seed in (1, 2, 3))
    for margin in (0.2, 1.0):
        expected = torch.stack(
            [
                (slow_distance(a[i], p[i], distance) - slow_distance(a[i], n[i], distance) + margin).clamp(min=0)
                for i in range(9)
            ]
        )
        torch.testing.assert_close(triplet_loss(a, p, n, margin, distance), expected, rtol=0, atol=1e-5)
    assert 0 < (triplet_loss(a, p, n, 0.2, distance) == 0).sum() < 9


@pytest.mark.parametrize("distance", ["N", "E"])
def test_the_gradients_of_the_euclidean_triplet_loss(distance):
    a, p, n = (vectors(distance, seed) for seed in (1, 2, 3))
    loss = triplet_loss(a, p, n, 0.2, distance)
    gradients = torch.autograd.grad(loss.sum(), (a, p, n))
    active = (loss > 0)[:, None]
    expected = (
        active * (normalize(a - p, dim=1) - normalize(a - n, dim=1)),
        active * normalize(p - a, dim=1),
        active * normalize(a - n, dim=1),
    )
    assert 0 < active.sum() < 9
    torch.testing.assert_close(gradients, tuple(e.detach() for e in expected), rtol=0, atol=1e-5)


def test_the_gradients_of_the_cosine_triplet_loss():
    """Through the normalization, as in a model: dL/da = n - p without its part along a, and so for p and n."""
    a, p, n = (vectors("C", seed) for seed in (1, 2, 3))
    loss = triplet_loss(*(normalize(x, dim=1) for x in (a, p, n)), 0.2, "C")
    gradients = torch.autograd.grad(loss.sum(), (a, p, n))
    active = (loss > 0)[:, None]

    def tangent(vector, at):
        return active * (vector - (vector * at).sum(1, keepdim=True) * at)

    expected = tangent(n - p, a), tangent(-a, p), tangent(a, n)
    torch.testing.assert_close(gradients, tuple(e.detach() for e in expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_positive_equal_to_its_anchor_has_a_finite_gradient(distance):
    """One in 6,000 partners of Fashion-MNIST is the anchor itself."""
    a, n = vectors(distance, 1), vectors(distance, 2)
    gradients = torch.autograd.grad(triplet_loss(a, a.clone(), n, 5.0, distance).sum(), (a, n))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (row_distance(a, a.clone(), distance) < 1e-5).all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_the_triplet_objective_samples_from_the_embeddings_it_trains(distance, mode):
    """One forward; the sampler gets their distances without gradient, the margin of the distance, and the mode."""
    seen, embedded = {}, []

    def sampler(distances, labels, margin, generator, mode):
        seen.update(distances=distances, labels=labels, margin=margin, generator=generator, mode=mode)
        return mining.Triplets(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.tensor([5, 4]))

    def model(images):
        embedded.append(vectors(distance, 4, count=len(images)))
        return embedded[-1]

    images, labels = a_batch(some_split())
    generator = seeded(3)
    loss = TripletObjective(sampler, distance, mode)(model, images, labels, generator)
    (e,) = embedded
    assert loss.ndim == 0
    expected = triplet_loss(e[[0, 2]], e[[1, 3]], e[[5, 4]], seen["margin"], distance).mean()
    assert torch.equal(loss, expected)
    assert seen["margin"] == MARGIN[distance] == (1.0 if distance == "E" else 0.2)
    assert seen["mode"] == mode and seen["generator"] is generator and seen["labels"] is labels
    assert not seen["distances"].requires_grad
    by_hand = torch.stack([torch.stack([slow_distance(u, v, distance) for v in e]) for u in e]).detach()
    torch.testing.assert_close(seen["distances"], by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", ["E", "C"])
def test_distance_weighting_is_refused_off_the_unit_sphere(distance):
    with pytest.raises(ValueError, match="knows the unit sphere only"):
        TripletObjective(mining.distance, distance)


@pytest.mark.parametrize("mode", ["fixed", "reference"])
def test_distance_weighting_knows_the_size_of_the_embedding(mode, monkeypatch):
    given = []

    def sampler(distances, labels, margin, generator, mode, dim=512):
        given.append(dim)
        return mining.hard(distances, labels, margin, generator)

    monkeypatch.setattr(mining, "distance", sampler)
    train(small_model(), some_split(), TripletObjective(sampler, "N", mode), Schedule(1, 8))
    size = small_model()(some_split().images[:1].float()).shape[1]
    assert given == [size]


@pytest.mark.parametrize(("sampler", "distance"), ALLOWED)
def test_every_sampler_trains(sampler, distance):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = small_model()

        def forward(self, images):
            return self.layers(images) if distance == "E" else normalize(self.layers(images), dim=1)

    split = some_split()
    history = train(Model(), split, TripletObjective(sampler, distance), Schedule(60, 8, lr=1e-2), validate_every=10)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_pytorch_metric_learning_is_called_on_embeddings_and_labels(name):
    torch.manual_seed(1)
    loss, model = LOSSES[name](), small_model()
    images, labels = a_batch(some_split())
    actual = MetricLearningObjective(loss)(model, images, labels, seeded())
    assert actual.ndim == 0
    assert torch.equal(actual, loss(model(images), labels))
    actual.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_pytorch_metric_learning_trains(name):
    torch.manual_seed(1)
    history = train(
        small_model(),
        some_split(),
        MetricLearningObjective(LOSSES[name]()),
        Schedule(60, 8, lr=1e-2),
        validate_every=10,
    )
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


@pytest.mark.parametrize("name, weights", [("proxy", "proxies"), ("margin", "beta")])
def test_the_weights_of_a_loss_are_trained_and_come_back_from_a_checkpoint(name, weights, tmp_path):
    def objective():
        torch.manual_seed(1)
        return MetricLearningObjective(LOSSES[name]())

    split, schedule = some_split(), Schedule(12, 8, lr=1e-2)
    whole, model = objective(), small_model()
    before = getattr(whole.loss, weights).detach().clone()
    train(model, split, whole, schedule)
    after = getattr(whole.loss, weights).detach()
    assert (after != before).any()

    class Stopped(Exception):
        pass

    def stop(_):
        raise Stopped

    file = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        train(small_model(), split, objective(), schedule, file, checkpoint_every=5, validate=stop, validate_every=7)
    stored = torch.load(file, weights_only=True)
    assert stored["step"] == 5 and f"objective.loss.{weights}" in stored["weights"]
    resumed, resumed_model = objective(), small_model()
    train(resumed_model, split, resumed, schedule, file, checkpoint_every=5, validate_every=7)
    assert torch.equal(getattr(resumed.loss, weights).detach(), after)
    for weight, expected in zip(resumed_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("sampler", "distance"), ALLOWED)
def test_every_sampler_trains_on_a_gpu(sampler, distance):
    model, split = small_model().cuda(), some_split()
    history = train(model, split, TripletObjective(sampler, distance), Schedule(60, 8, lr=1e-2), validate_every=10)
    assert history[-1]["loss"] < history[0]["loss"]
