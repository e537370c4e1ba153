"""Attacks on image-text retrieval: slow twins of their losses, what they look at, and what they leave of an engine."""

from dataclasses import replace
from math import exp, log

import pytest
import torch

from robret_lib import attacks, models
from robret_lib.attacks import AutoPGD, Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.codes import CenterCode, OwnCode
from robret_lib.attacks.cross_modal import PairwiseReversal, TripletReversal, pairwise_reversal
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.attacks.search.upwards import Upwards
from robret_lib.hamming import codes_of, hamming_distance
from tests.small_cross_modal import BITS, random_codes, seeded, small_engine, some_pairs

QUERIES, ITEMS = 7, 40
EPS = 0.1
KINDS = ["images", "texts"]


def relaxed(count=QUERIES, seed=5):
    return torch.tanh(torch.randn(count, BITS, generator=seeded(seed), dtype=torch.float64))


def product(one, other):
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def benign_of(own=None, labels=True, items=ITEMS):
    """Queries and a gallery with codes, and labels, by chance; in float64."""
    hot = torch.rand(items + QUERIES, 3, generator=seeded(1)) < 0.4
    given = random_codes(items, seed=2).double() * 3, "H", hot[QUERIES:].int() if labels else None
    return Benign(Gallery(*given), 2 * relaxed(seed=6), own, hot[:QUERIES].int() if labels else None)


# --- losses ----------------------------------------------------------------------------------------


def slow_triplets(code, near, far, margin, weight):
    """The mean of ``max(0, D(h, N) - D(h, P) + beta)`` over all pairs, and the distance to the sign."""
    total = 0.0
    for positive in near:
        for negative in far:
            to_far, to_near = ((BITS - product(code, item)) / 2 for item in (negative, positive))
            total += max(0.0, to_far - to_near + margin * BITS)
    return total / (len(near) * len(far)) + weight * sum((bit - (1 if bit > 0 else -1)) ** 2 for bit in code.tolist())


@pytest.mark.parametrize(("margin", "weight"), [(0.5, 1e-3), (0.0, 0.0), (1.0, 2.0)])
@pytest.mark.parametrize("items", [1, 4])
def test_the_loss_of_reversed_triplets_is_the_slow_one(items, margin, weight):
    attack, codes = TripletReversal(items=items, margin=margin, quantization=weight), relaxed()
    near, far = (random_codes(QUERIES * items, seed=seed).view(QUERIES, items, BITS).double() for seed in (3, 4))
    expected = [slow_triplets(*each, margin, weight) for each in zip(codes, near, far, strict=True)]
    assert attack.losses(codes, near, far).tolist() == pytest.approx(expected, abs=1e-12)
    assert max(expected) > 0


def test_the_loss_of_reversed_triplets_has_the_right_slope():
    near, far = (random_codes(QUERIES * 3, seed=seed).view(QUERIES, 3, BITS).double() for seed in (3, 4))
    codes = relaxed().requires_grad_()
    assert torch.autograd.gradcheck(lambda moved: TripletReversal(quantization=0.1).losses(moved, near, far), codes)


def test_what_has_its_near_items_as_far_as_wanted_pays_nothing():
    """The worst is a code that is one of the near ones and has nothing of the far."""
    code, attack = random_codes(1).double(), TripletReversal(items=1, quantization=0.0)
    assert attack.losses(code, -code[:, None], code[:, None]) == 0
    assert attack.losses(code, code[:, None], -code[:, None]) == BITS + BITS / 2


def slow_pairwise(code, items, similar, sign):
    """The mean of ``log(1 + e^(sign t)) - S sign t``, t the product."""
    total = 0.0
    for item, shared in zip(items, similar.tolist(), strict=True):
        t = sign * product(code, item)
        total += log(1 + exp(t)) - shared * t
    return total / len(items)


@pytest.mark.parametrize("with_own", [True, False])
def test_the_loss_of_reversed_pairs_is_the_slow_one(with_own):
    codes = relaxed()
    sides = [
        (
            random_codes(QUERIES * 9, seed=seed).view(QUERIES, 9, BITS).double(),
            torch.randint(2, (QUERIES, 9), generator=seeded(seed)).double(),
        )
        for seed in (3, 4)
    ]
    given = sides if with_own else sides[:1]
    expected = [
        sum(
            slow_pairwise(code, items[row], similar[row], sign)
            for (items, similar), sign in zip(given, (-1, 1), strict=False)
        )
        for row, code in enumerate(codes)
    ]
    assert pairwise_reversal(codes, *given).tolist() == pytest.approx(expected, abs=1e-12)
    moved = codes.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: pairwise_reversal(each, *given), moved)


def test_reversed_pairs_want_similar_items_far_and_others_near_and_the_opposite_of_their_own_kind():
    code, item = random_codes(1).double(), random_codes(1).double()[:, None]
    none, one, zero = (item, torch.zeros(1, 1).double()), torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    assert pairwise_reversal(code, (item, one)) > pairwise_reversal(-code, (item, one))
    assert pairwise_reversal(code, (item, zero)) < pairwise_reversal(-code, (item, zero))
    within = [
        [pairwise_reversal(sign * code, none, (item, shared)).item() for sign in (1, -1)] for shared in (one, zero)
    ]
    across = [pairwise_reversal(sign * code, none).item() for sign in (1, -1)]
    apart = [[each - other for each, other in zip(row, across, strict=True)] for row in within]
    assert apart[0][0] < apart[0][1] and apart[1][0] > apart[1][1]


def test_both_have_a_sharpness_for_galleries_of_another_network():
    assert TripletReversal().sharpness == PairwiseReversal().sharpness == "own"


@pytest.mark.parametrize("with_own", [True, False])
def test_the_code_that_an_attack_makes_for_is_where_its_loss_falls(with_own):
    """From a code of zeros, where no hinge is zero, by automatic differentiation."""
    benign, start = benign_of(), torch.zeros(QUERIES, BITS, dtype=torch.float64, requires_grad=True)
    own_kind = Gallery(random_codes(20, seed=12).double(), "H", torch.randint(2, (20, 3), generator=seeded(13)))
    for attack in (TripletReversal(quantization=0.0), PairwiseReversal(own_kind=own_kind if with_own else None)):
        plan = attack.plan(benign, attack.targets(benign, seeded(4)))
        (slope,) = torch.autograd.grad(plan.loss(start).sum(), start)
        downhill = torch.where(slope.abs() > 1e-9, -slope.sign(), 1.0)
        assert plan.reached(downhill).all() and not plan.reached(-downhill).any()


def test_the_plan_is_the_loss_of_its_targets_at_the_sharpness_of_each_query():
    """Both attacks, from outputs to losses, against the slow ones."""
    benign, outputs = benign_of(), 0.1 * relaxed(seed=8)
    codes = torch.tanh(5 / benign.embeddings.square().mean(1, keepdim=True).sqrt() * outputs)
    gallery = benign.gallery

    attack = TripletReversal("own", items=3)
    targets = attack.targets(benign, None)
    expected = [
        slow_triplets(code, gallery.codes[at[:3]], gallery.codes[at[3:]], 0.5, 1e-3)
        for code, at in zip(codes, targets, strict=True)
    ]
    assert attack.plan(benign, targets).loss(outputs).tolist() == pytest.approx(expected, abs=1e-9)

    own_kind = Gallery(random_codes(20, seed=12).double(), "H", torch.randint(2, (20, 3), generator=seeded(13)))
    attack = PairwiseReversal("own", own_kind=own_kind, items=6)
    targets = attack.targets(benign, seeded(4))
    expected = [
        sum(
            slow_pairwise(code, kind.codes[at], (kind.labels[at] * label).sum(1).clamp(max=1), sign)
            for kind, at, sign in ((gallery, chosen[:6], -1), (own_kind, chosen[6:], 1))
        )
        for code, chosen, label in zip(codes, targets, benign.labels, strict=True)
    ]
    assert attack.plan(benign, targets).loss(outputs).tolist() == pytest.approx(expected, abs=1e-9)


# --- what they look at -----------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [None, random_codes(QUERIES, seed=9)], ids=["own", "anchors"])
def test_near_and_far_items_are_those_of_the_anchors(anchors):
    """By what the surrogate says of a query, or by what the engine answered."""
    benign = benign_of()
    targets = TripletReversal(anchors=anchors, items=4).targets(benign, None)
    codes = codes_of(benign.embeddings) if anchors is None else anchors
    distances = hamming_distance(codes, benign.gallery.codes).long()
    order = distances.sort(dim=1, stable=True).indices
    assert torch.equal(targets[:, :4], order[:, :4])
    assert sorted(map(sorted, targets[:, 4:].tolist())) == sorted(map(sorted, order[:, -4:].tolist()))
    farthest = distances.gather(1, targets[:, 4:])
    assert (farthest >= distances.sort(1).values[:, -4:-3]).all()


def test_anchors_of_another_code_choose_other_items():
    benign = benign_of()
    own, other = (
        TripletReversal(anchors=anchors).targets(benign, None) for anchors in (None, -codes_of(benign.embeddings))
    )
    distances = hamming_distance(codes_of(benign.embeddings), benign.gallery.codes)
    near_own, near_other = (distances.gather(1, at[:, :5]).float().mean() for at in (own, other))
    assert near_own < BITS / 2 < near_other


def test_a_query_that_is_an_item_is_neither_near_nor_far():
    """Such queries have a gallery of their own kind."""
    benign = benign_of(own=torch.arange(QUERIES))
    targets = TripletReversal(items=5).targets(benign, None)
    assert targets.shape == (QUERIES, 10) and not (targets == torch.arange(QUERIES)[:, None]).any()
    for items in (19, 20):
        attack = TripletReversal(items=items)
        if items == 19:
            assert attack.targets(benign, None).shape == (QUERIES, 38)
        else:
            with pytest.raises(ValueError, match="a gallery of 39 items: expected at least 40"):
                attack.targets(benign, None)


def test_no_labels_are_looked_at_by_reversed_triplets():
    with_labels, without = benign_of(), benign_of(labels=False)
    attack, outputs = TripletReversal(), relaxed()
    targets = [attack.targets(each, None) for each in (with_labels, without)]
    assert torch.equal(*targets)
    losses = [attack.plan(each, targets[0]).loss(outputs) for each in (with_labels, without)]
    assert torch.equal(*losses)


def test_items_of_both_kinds_are_drawn_without_repetition_where_there_are_enough():
    benign = benign_of()
    own_kind = Gallery(random_codes(20, seed=12).double(), "H", torch.randint(2, (20, 3), generator=seeded(13)))
    alone, both = (PairwiseReversal(own_kind=kind, items=20) for kind in (None, own_kind))
    assert alone.targets(benign, seeded()).shape == (QUERIES, 20)
    targets = both.targets(benign, seeded())
    assert targets.shape == (QUERIES, 40) and targets[:, :20].max() >= 20
    for row in targets.tolist():
        assert len(set(row[:20])) == 20 and sorted(row[20:]) == list(range(20))
    assert PairwiseReversal(items=100).targets(benign, seeded()).max() < ITEMS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TripletReversal(items=0), "items=0"),
        (lambda: TripletReversal(margin=-1), "margin=-1"),
        (lambda: TripletReversal(quantization=float("nan")), "quantization=nan"),
        (lambda: TripletReversal("soft"), "sharpness='soft'"),
        (lambda: PairwiseReversal(items=1.5), "items=1.5"),
        (lambda: TripletReversal(items=21).targets(benign_of(), None), "a gallery of 40 items: expected at least 42"),
        (lambda: TripletReversal(anchors=random_codes(3)).targets(benign_of(), None), "3 anchors of 7 queries"),
        (lambda: PairwiseReversal().targets(benign_of(labels=False), None), "PairwiseReversal needs classes"),
        (
            lambda: PairwiseReversal(own_kind=Gallery(random_codes(9).double(), "H")).targets(benign_of(), seeded()),
            "known items without labels",
        ),
        (
            lambda: PairwiseReversal(own_kind=replace(benign_of().gallery, distance="E")).targets(benign_of(), None),
            "expected one of a models.HashModel",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_items_of_the_own_kind_are_a_gallery():
    with pytest.raises(TypeError, match="own_kind of type Tensor: expected a Gallery"):
        PairwiseReversal(own_kind=random_codes(9))


# --- white-box, on a small engine -------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    return small_engine()


def attacks_on(engine, kind):
    return {
        "triplets": TripletReversal("own"),
        "pairs": PairwiseReversal("own", items=64),
        "pairs, both kinds": PairwiseReversal("own", own_kind=getattr(engine, kind), items=64),
        "own code": OwnCode("own"),
        "center": CenterCode("own"),
    }


ATTACKS = ["triplets", "pairs", "pairs, both kinds", "own code", "center"]
SEARCHES = {"images": AutoPGD(EPS, 10), "texts": WordFlips(3)}


def attacked(engine, kind, attack, search, labels=True, **given):
    asked = some_pairs(QUERIES * 5, seed=9)
    branch, gallery = engine.branch(kind), engine.searched_by(kind)
    given = {"labels": asked.labels if labels else None, "generator": seeded(), **given}
    return attacks.run(attack, branch, getattr(asked, kind), gallery, search, **given)


def losses(engine, kind, attack, targets, queries):
    """Of any queries, by the plan that the attack made of the clean ones."""
    asked, branch = some_pairs(QUERIES * 5, seed=9), engine.branch(kind)
    clean = models.embed(branch, getattr(asked, kind))
    plan = attack.plan(Benign(engine.searched_by(kind), clean, labels=asked.labels), targets)
    return plan.loss(models.embed(branch, queries))


def precision_left(engine, kind, queries):
    return engine.precisions(kind, queries, some_pairs(QUERIES * 5, seed=9).labels).mean()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_query_has_a_smaller_loss_and_the_engine_answers_worse(engine, kind, name):
    """By its own measure, by the engine's, and by more than noise of the same size does.

    Who keeps the neighbors of its own kind is not free to leave those of the other, and three words by chance are many.
    """
    attack, clean = attacks_on(engine, kind)[name], getattr(some_pairs(QUERIES * 5, seed=9), kind)
    found = attacked(engine, kind, attack, SEARCHES[kind])
    draws = torch.rand(clean.shape, generator=seeded(1))
    if kind == "images":
        noise = (clean + EPS * (2 * draws.round() - 1)).clamp(0, 1)
        assert (found.images - clean).abs().max() <= EPS + 1e-6
    else:
        chosen = torch.zeros_like(clean, dtype=torch.bool).scatter(3, draws.topk(3, dim=3).indices, True)
        noise = torch.where(chosen, 1 - clean, clean)
        assert (found.images != clean).flatten(1).sum(1).max() <= 3
    its = [losses(engine, kind, attack, found.targets, queries) for queries in (clean, noise, found.images)]
    assert (its[2] <= its[0] + 1e-9).all() and (its[2] < its[0]).double().mean() > 0.8
    assert its[2].mean() < its[1].mean() and (its[2] < its[1]).double().mean() > 0.8
    before, shaken, after = (precision_left(engine, kind, queries) for queries in (clean, noise, found.images))
    assert after < before - 5 and (name == "pairs, both kinds" or after < shaken - 5)
    assert found.measured["average_precision"].mean() == pytest.approx(after.item())


@pytest.mark.parametrize("name", ["triplets", "pairs"])
def test_more_steps_and_more_words_are_no_weaker(engine, name):
    for kind, searches in (
        ("images", [AutoPGD(EPS, steps) for steps in (1, 4, 16, 64)]),
        ("texts", [WordFlips(words) for words in (0, 1, 3, 8)]),
    ):
        attack = attacks_on(engine, kind)[name]
        found = [attacked(engine, kind, attack, search) for search in searches]
        means = [losses(engine, kind, attack, each.targets, each.images).mean().item() for each in found]
        assert all(later <= earlier + 1e-3 * abs(earlier) for earlier, later in zip(means, means[1:], strict=False))
        assert means[-1] < means[0]


@pytest.mark.parametrize("name", ["triplets", "pairs"])
def test_to_make_entries_larger_alone_is_weaker_than_all(engine, name):
    """CMLA's half of the ball; it is worth something all the same."""
    attack = attacks_on(engine, "images")[name]
    both, up = (
        attacked(engine, "images", attack, search) for search in (SEARCHES["images"], Upwards(AutoPGD(EPS, 10)))
    )
    clean = some_pairs(QUERIES * 5, seed=9).images
    means = [losses(engine, "images", attack, both.targets, each).mean() for each in (clean, up.images, both.images)]
    assert means[0] > means[1] > means[2] and (up.images >= clean).all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(engine, kind, name):
    attack = attacks_on(engine, kind)[name]
    whole, parts = (attacked(engine, kind, attack, SEARCHES[kind], batch_size=size) for size in (256, 4))
    assert torch.allclose(whole.images, parts.images, atol=1e-6)
    if whole.targets is not None:
        assert torch.equal(whole.targets, parts.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_the_bits_alone_are_measured(engine, kind):
    """As of an attacker who has the answers and no more."""
    answered = Gallery(engine.searched_by(kind).codes.double(), "H")
    asked = some_pairs(QUERIES, seed=9)
    found = attacks.run(TripletReversal("own"), engine.branch(kind), getattr(asked, kind), answered, SEARCHES[kind])
    assert set(found.measured) == {"flipped"} and found.measured["flipped"].mean() > 10
