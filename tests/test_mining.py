"""Each sampler against a loop that lists what every anchor may get; SPC-2 batches against the published counts."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from scipy.stats import chisquare

from robret_lib import mining
from robret_lib.distances import pairwise_distance

DRAWS = 600
SPREADS = (0.05, 0.3, 1.0)  # of a class: far apart (only fallbacks), touching, mixed
DIM = 8  # of the distance sampler here: low, so that more than the nearest negative has a chance


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed, pairs=6, n_classes=3, spread=1.0):
    """Distances and labels of an SPC-2 batch of unit vectors, each class in two pairs or more."""
    generator = seeded(seed)
    labels = (torch.arange(pairs) % n_classes).repeat_interleave(2)
    centers = torch.randn(n_classes, 4, generator=generator, dtype=torch.float64)
    points = centers[labels] + spread * torch.randn(2 * pairs, 4, generator=generator, dtype=torch.float64)
    points = torch.nn.functional.normalize(points, dim=1)
    return pairwise_distance(points, points), labels


def uniform(items):
    return {item: 1 / len(items) for item in items}


def partner(d, labels, anchor, mode):
    return uniform([anchor + 1])


def negatives(labels, anchor):
    return [i for i in range(len(labels)) if labels[i] != labels[anchor]]


def random_negative(d, labels, anchor, mode):
    return uniform(negatives(labels, anchor))


def semihard_negative(d, labels, anchor, mode, margin=0.2):
    d_ap = d[anchor][anchor + 1]
    chosen = [n for n in negatives(labels, anchor) if d_ap < d[anchor][n] < d_ap + margin]
    return uniform(chosen or negatives(labels, anchor))


def positives(labels, anchor, mode):
    same = [i for i in range(len(labels)) if labels[i] == labels[anchor]]
    return same if mode == "reference" else [i for i in same if i != anchor]


def softhard_negative(d, labels, anchor, mode):
    furthest = max(d[anchor][p] for p in positives(labels, anchor, mode))
    chosen = [n for n in negatives(labels, anchor) if d[anchor][n] < furthest]
    return uniform(chosen or negatives(labels, anchor))


def softhard_positive(d, labels, anchor, mode):
    nearest = min(d[anchor][n] for n in negatives(labels, anchor))
    chosen = [p for p in positives(labels, anchor, mode) if d[anchor][p] > nearest]
    return uniform(chosen or positives(labels, anchor, mode))


def distance_negative(d, labels, anchor, mode):
    """Weight 1 / q with q(d) = d^(D-2) (1 - d^2/4)^((D-3)/2)."""
    weight = {}
    for n in negatives(labels, anchor):
        x = d[anchor][n]
        weight[n] = 1 / (x ** (DIM - 2) * (1 - x * x / 4) ** ((DIM - 3) / 2))
    return {n: w / sum(weight.values()) for n, w in weight.items()}


def hard_negative(d, labels, anchor, mode):
    return uniform([min(negatives(labels, anchor), key=lambda n: d[anchor][n])])


SAMPLERS = {
    "random": (mining.random, partner, random_negative),
    "semihard": (mining.semihard, partner, semihard_negative),
    "softhard": (mining.softhard, softhard_positive, softhard_negative),
    "distance": (partial(mining.distance, dim=DIM), partner, distance_negative),
    "hard": (mining.hard, partner, hard_negative),
}


def assert_drawn_from(counts, expected):
    """Nothing that may not be drawn, everything that is likely enough, and each as often as it should be."""
    assert set(counts) <= set(expected)
    likely = {item: share for item, share in expected.items() if DRAWS * share >= 5}
    assert set(likely) <= set(counts)
    for item, share in likely.items():
        assert counts[item] == pytest.approx(DRAWS * share, abs=5 * math.sqrt(DRAWS * share * (1 - share)) + 1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("mode", ["fixed", "reference"])
@pytest.mark.parametrize("spread", SPREADS)
def test_samplers_draw_what_a_loop_lists(name, mode, spread):
    sampler, positive_of, negative_of = SAMPLERS[name]
    distances, labels = batch(1, spread=spread)
    generator = seeded(2)
    drawn = [sampler(distances, labels, 0.2, generator, mode) for _ in range(DRAWS)]
    anchors, positive, negative = (torch.stack(part) for part in zip(*drawn, strict=True))
    assert torch.equal(anchors, torch.arange(0, 12, 2).expand(DRAWS, -1))
    d, y = distances.tolist(), labels.tolist()
    for column, anchor in enumerate(range(0, 12, 2)):
        assert_drawn_from(Counter(positive[:, column].tolist()), positive_of(d, y, anchor, mode))
        assert_drawn_from(Counter(negative[:, column].tolist()), negative_of(d, y, anchor, mode))


@pytest.mark.parametrize("rule", [semihard_negative, softhard_negative])
def test_the_batches_above_reach_both_the_rule_and_its_fallback(rule):
    """Else the test above would compare uniform with uniform."""
    restricted = Counter()
    for spread in SPREADS:
        distances, labels = (part.tolist() for part in batch(1, spread=spread))
        for anchor in range(0, 12, 2):
            restricted[len(rule(distances, labels, anchor, "fixed")) < len(negatives(labels, anchor))] += 1
    assert restricted[True] >= 4 and restricted[False] >= 4


def test_the_margin_decides_what_is_semihard():
    distances = torch.full((4, 4), 0.5)
    distances[0] = torch.tensor([0.0, 0.3, 0.4, 0.6])
    labels = torch.tensor([0, 0, 1, 1])
    for margin, allowed in ((0.2, {2}), (0.5, {2, 3}), (0.05, {2, 3})):  # the last: none, so any
        drawn = {mining.semihard(distances, labels, margin, seeded(s)).negative[0].item() for s in range(40)}
        assert drawn == allowed


def test_softhard_takes_the_anchor_as_its_positive_only_in_reference_mode():
    distances, labels = batch(3, pairs=32, n_classes=20, spread=0.5)
    for mode, expected in (("fixed", False), ("reference", True)):
        drawn = [mining.softhard(distances, labels, 0.2, seeded(s), mode) for s in range(20)]
        assert any((t.anchor == t.positive).any() for t in drawn) == expected
        assert all((labels[t.anchor] == labels[t.positive]).all() for t in drawn)


def crowd(noise):
    """Distances below sqrt 2 in a batch of 56 classes, as among the embeddings of an ImageNet network."""
    generator = seeded(5)
    labels = torch.arange(56).repeat_interleave(2)
    points = 4 + torch.randn(56, 32, generator=generator)[labels] + noise * torch.randn(112, 32, generator=generator)
    points = torch.nn.functional.normalize(points, dim=1)
    return pairwise_distance(points, points), labels


def test_the_published_dimension_puts_most_weight_on_the_nearest_negatives():
    distances, labels = crowd(noise=1.0)
    drawn = torch.stack([mining.distance(distances, labels, 0.2, seeded(s)).negative for s in range(50)])
    ranks = distances[0::2].masked_fill(labels[0::2, None] == labels, torch.inf).argsort(1).argsort(1)
    assert (ranks.gather(1, drawn.T) == 0).double().mean() > 0.9
    assert (ranks.gather(1, drawn.T) < 5).all()


def test_harder_samplers_give_harder_triplets():
    """The order that was published for CUB: random, semihard, softhard, then distance close to hard."""
    distances, labels = crowd(noise=1.0)
    hardness = {}
    for name in SAMPLERS:
        generator = seeded(6)
        drawn = [getattr(mining, name)(distances, labels, 0.2, generator) for _ in range(50)]
        d = [distances[t.anchor, t.positive] - distances[t.anchor, t.negative] for t in drawn]
        hardness[name] = torch.stack(d).mean().item()
    assert hardness["random"] < hardness["semihard"] < hardness["softhard"] < hardness["distance"]
    assert hardness["distance"] == pytest.approx(hardness["hard"], abs=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_generator_is_the_only_randomness(name):
    distances, labels = batch(6)
    torch.manual_seed(0)
    first = getattr(mining, name)(distances, labels, 0.2, seeded(1))
    torch.manual_seed(1)
    second = getattr(mining, name)(distances, labels, 0.2, seeded(1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_of_one_class_is_an_error(name):
    with pytest.raises(ValueError, match="at least two classes"):
        getattr(mining, name)(torch.rand(4, 4), torch.zeros(4, dtype=torch.int64), 0.2, seeded())


@pytest.mark.parametrize(
    ("n_images", "n_classes", "steps"),
    [(5864, 100, (105, 53, 27)), (8054, 98, (144, 72, 36)), (59551, 11318, (1064, 532, 266))],
    ids=["CUB", "CARS", "SOP"],
)
def test_steps_per_epoch_are_the_published_ones(n_images, n_classes, steps):
    """RobRank's checkpoints: 3,975 steps = 75 x 53 on CUB, 39,900 = 75 x 532 on SOP, both on two GPUs."""
    labels = torch.arange(n_images) % n_classes
    for world, expected in zip((1, 2, 4), steps, strict=True):
        assert {sum(1 for _ in mining.spc2_epoch(labels, 56, seeded(), rank, world)) for rank in range(world)} == {
            expected
        }


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n_images", [40, 47, 5])
def test_the_shards_of_all_ranks_are_the_epoch(n_images, world):
    labels = torch.arange(n_images) % 3
    shards = [torch.cat(list(mining.spc2_epoch(labels, 4, seeded(), rank, world))) for rank in range(world)]
    anchors = torch.cat([shard[0::2] for shard in shards]).bincount(minlength=n_images)
    assert anchors.min() == 1 and anchors.sum() == math.ceil(n_images / world) * world
    assert anchors.max() <= (1 if n_images % world == 0 else 2)
    assert len({len(shard) for shard in shards}) == 1


def test_an_epoch_shows_each_image_once_and_a_partner_of_its_class():
    labels = torch.randint(0, 7, (101,), generator=seeded())
    batches = list(mining.spc2_epoch(labels, 8, seeded(1)))
    assert [len(part) for part in batches] == [16] * 12 + [10]
    both = torch.cat(batches)
    assert sorted(both[0::2].tolist()) == list(range(101))
    assert torch.equal(labels[both[0::2]], labels[both[1::2]])
    assert both[0::2].tolist() != list(range(101))
    again, other = (torch.cat(list(mining.spc2_epoch(labels, 8, seeded(seed)))) for seed in (1, 2))
    assert torch.equal(both, again) and not torch.equal(both, other)


def test_partners_are_uniform_over_the_class_itself_included():
    labels = torch.tensor([4, 0, 4, 2, 4, 0, 4, 4])  # classes without images in between
    epochs = torch.stack([torch.cat(list(mining.spc2_epoch(labels, 3, seeded(seed)))) for seed in range(1500)])
    anchors, partners = epochs[:, 0::2].flatten(), epochs[:, 1::2].flatten()
    for image, label in enumerate(labels.tolist()):
        counts = partners[anchors == image].bincount(minlength=8)
        assert not counts[labels != label].any()
        assert label == 2 or chisquare(counts[labels == label]).pvalue > 1e-4
    position = (epochs[:, 0::2] == 0).int().argmax(1).bincount(minlength=8)
    assert chisquare(position).pvalue > 1e-4


def test_the_share_of_images_that_meet_themselves():
    """Classes / images: 1.7 % on CUB."""
    labels = torch.arange(5864) % 100
    both = torch.cat(list(mining.spc2_epoch(labels, 56, seeded())))
    share = (both[0::2] == both[1::2]).double().mean().item()
    assert share == pytest.approx(100 / 5864, abs=0.005)


def test_a_shuffled_epoch_shows_each_image_once():
    batches = list(mining.shuffled_epoch(37, 8, seeded(1)))
    assert [len(part) for part in batches] == [8, 8, 8, 8, 5]
    order = torch.cat(batches).tolist()
    assert sorted(order) == list(range(37)) and order != sorted(order)
    again, other = (torch.cat(list(mining.shuffled_epoch(37, 8, seeded(seed)))).tolist() for seed in (1, 2))
    assert again == order != other


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n_images", [40, 47, 5])
def test_the_shards_of_all_ranks_are_a_shuffled_epoch(n_images, world):
    shards = [list(mining.shuffled_epoch(n_images, 4, seeded(), rank, world)) for rank in range(world)]
    assert len({tuple(map(len, shard)) for shard in shards}) == 1  # processes wait for each other at every batch
    shown = torch.cat([part for shard in shards for part in shard]).bincount(minlength=n_images)
    assert shown.min() == 1 and shown.sum() == math.ceil(n_images / world) * world
    assert (shown > 1).sum() == -n_images % world


def test_every_place_in_a_shuffled_epoch_is_anyones():
    epochs = torch.stack([torch.cat(list(mining.shuffled_epoch(8, 3, seeded(seed)))) for seed in range(1500)])
    for place in (0, 4, 7):
        assert chisquare(epochs[:, place].bincount(minlength=8)).pvalue > 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_on_a_gpu_draw_what_they_may(name):
    sampler, positive_of, negative_of = SAMPLERS[name]
    distances, labels = batch(1, spread=0.3)
    triplets = sampler(distances.cuda(), labels.cuda(), 0.2, torch.Generator("cuda").manual_seed(0))
    d, y = distances.tolist(), labels.tolist()
    for anchor, positive, negative in torch.stack(triplets).T.tolist():
        assert positive in positive_of(d, y, anchor, "fixed") and negative in negative_of(d, y, anchor, "fixed")
