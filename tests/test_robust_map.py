"""Robust MAP: the smallest average precision of each query, attack by attack, also after an interruption."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import one_hot

from robret_lib import scores
from robret_lib.attacks import NES, Gallery
from robret_lib.attacks.attack import Benign
from robret_lib.attacks.codes import CenterCode, Precision
from robret_lib.data import RetrievalData, Split
from robret_lib.data.retrieval_data import Protocol
from robret_lib.hamming import average_precisions, codes_of, hamming_map
from robret_lib.hashing.center_code import center_votes
from robret_lib.scores import checkpoint as checkpoints
from robret_lib.scores.map_suite import one_label_each
from robret_lib.scores.suite import SAMPLE
from tests.planted_defenses import Detached, GradientKiller, Noisy, Quantized, Squashed
from tests.small_codes import seeded, small_world
from tests.small_retrieval import hash_model, searched_in_itself

pytestmark = pytest.mark.filterwarnings("ignore:benign recall")  # the small network is not trained
EPS = 0.1
module = import_module("robret_lib.scores.robust_map")  # whose name the function has, too


@pytest.fixture(scope="module")
def world():
    """The network, and its queries and gallery as a data set."""
    model, images, labels, gallery = small_world()
    items = Split(torch.rand(len(gallery), 3, 4, 4, generator=seeded(9)), gallery.labels)
    protocol = Protocol(
        "queries from outside", "Queries search other images.", self_excluded=False, class_disjoint=False
    )
    return model, RetrievalData("small", items, Split(images, labels), items, tuple("abcd"), protocol)


def test_it_is_the_worst_of_the_suite_query_by_query(world):
    model, data = world
    found = scores.robust_map(model, data, EPS, effort="standard")
    gallery, labels = codes_of(model(data.gallery.images)), data.gallery.labels
    before, after = (codes_of(model(images).detach()) for images in (data.query.images, found.images))
    assert found.benign == pytest.approx(hamming_map(before, gallery, data.query.labels, labels))
    reached = 100 * average_precisions(after, gallery, data.query.labels, labels)
    assert torch.allclose(found.precisions, reached)
    assert found.map == pytest.approx(reached.mean().item())
    assert found.map <= min(found.map_under.values()) and found.map < found.benign
    assert sum(found.worst_for.values()) == pytest.approx(100)
    assert (found.images - data.query.images).abs().max() <= EPS + 1e-6
    assert found.standard_error == pytest.approx(reached.std().item() / len(reached) ** 0.5)


def test_without_a_radius_nothing_gets_worse(world):
    model, data = world
    found = scores.robust_map(model, data, 0.0, effort="quick")
    assert found.map == found.benign and found.worst_for["none"] == 100
    assert torch.equal(found.images, data.query.images)


def test_more_effort_and_more_radius_leave_no_more(world):
    model, data = world
    quick, standard, far = (
        scores.robust_map(model, data, eps, effort=effort).map
        for eps, effort in ((EPS, "quick"), (EPS, "standard"), (3 * EPS, "standard"))
    )
    assert far < standard <= quick + 1


def test_depth_and_known_codes_reach_the_attacks(world):
    model, data = world
    whole, short = (scores.robust_map(model, data, EPS, effort="quick", top_k=k) for k in (None, 5))
    assert whole.benign != short.benign
    codes = codes_of(model(data.query.images)).float()
    known = Gallery(codes, "H", data.query.labels)
    suite = module.map_suite("standard", EPS, known=known)
    assert suite[1].attack.known is known and len(suite) == len(whole.map_under) + 7


def test_a_surrogate_adds_a_transferred_attack(world):
    model, data = world
    other = small_world()[0]
    found = scores.robust_map(model, data, EPS, effort="quick", surrogate=other)
    assert list(found.map_under)[-1].endswith("transferred")


def test_it_goes_on_where_it_was_interrupted(world, tmp_path, monkeypatch):
    model, data = world
    whole = scores.robust_map(model, data, EPS)
    made, attack = [], module._Evaluation.attack

    def stopping(self, block, number, seed):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(number)
        return attack(self, block, number, seed)

    monkeypatch.setattr(module._Evaluation, "attack", stopping)
    with pytest.raises(KeyboardInterrupt):
        scores.robust_map(model, data, EPS, checkpoint=tmp_path / "map")
    monkeypatch.setattr(module._Evaluation, "attack", attack)
    found = scores.robust_map(model, data, EPS, checkpoint=tmp_path / "map")
    assert torch.equal(found.precisions, whole.precisions) and torch.equal(found.images, whole.images)
    assert found.passes == pytest.approx(whole.passes)
    with pytest.raises(ValueError, match="was written with"):
        scores.robust_map(model, data, 2 * EPS, checkpoint=tmp_path / "map")


def test_queries_without_labels_count_as_zero(world):
    model, data = world
    labels = data.query.labels.clone()
    labels[[0, 3]] = 0
    found = scores.robust_map(model, replace(data, query=Split(data.query.images, labels)), EPS, effort="quick")
    assert found.precisions[[0, 3]].tolist() == [0, 0] and torch.equal(found.images[:4:3], data.query.images[:4:3])
    rest = torch.tensor([row for row in range(len(labels)) if row not in (0, 3)])
    assert (found.precisions[rest] > 0).all()


@pytest.mark.parametrize("effort", ["standard", "high"])
def test_where_items_have_one_label_each_the_mainstay_code_makes_room_for_a_second_start(effort):
    several, single = (module.map_suite(effort, EPS, one_label=one) for one in (False, True))
    assert sum(stage.passes for stage in several) == sum(stage.passes for stage in single)
    assert len({stage.name for stage in single}) == len(single) == len(several)
    assert [stage.attack.weights for stage in several if isinstance(stage.attack, CenterCode)].count("cosine") == 1
    centers = [(stage.attack, stage.search) for stage in single if isinstance(stage.attack, CenterCode)]
    assert {attack.weights for attack, _ in centers} == {"binary"}
    assert any(search.random_start for _, search in centers)


def test_who_has_one_label_each():
    single, several = torch.eye(3), torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert one_label_each(torch.arange(4)) and one_label_each(single) and one_label_each(0 * single.long())
    assert not one_label_each(several) and not one_label_each(several.bool())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weights=st.sampled_from(["cosine", "jaccard"]))
def test_of_items_with_one_label_each_all_center_codes_are_one(seed, weights):
    """However many labels the image has; but for bits that are even, which rounding decides."""
    generator = seeded(seed)
    codes = 2 * torch.randint(0, 2, (30, 8), generator=generator) - 1
    items = one_hot(torch.randint(0, 5, (30,), generator=generator), 5)
    items[:3] = 0
    asked = (torch.rand(6, 5, generator=generator) < 0.4).long()
    votes, others = (center_votes(asked, codes, items, kind) for kind in ("binary", weights))
    torch.testing.assert_close(votes, others)
    items[3:20] |= one_hot(torch.randint(0, 5, (17,), generator=generator), 5)
    assert not torch.allclose(*(center_votes(torch.ones(1, 5), codes, items, kind) for kind in ("binary", weights)))


# What the center codes would leave


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_bound_is_the_map_of_the_negative_center_codes(world, top_k, monkeypatch):
    """Of the known items; measured as deep as the rest, and in whatever chunks."""
    model, data = world
    items, labels = codes_of(model(data.gallery.images)), data.gallery.labels
    codes, known = (torch.randn(shape, generator=seeded(4)) for shape in ((20, items.shape[1]), (20, 4)))
    training = Gallery(codes, "H", (known > 0).long())
    monkeypatch.setattr(module, "CHUNK", 5)
    for items_known in (None, training):
        found = scores.robust_map(model, data, EPS, effort="quick", top_k=top_k, known=items_known)
        benign = Benign(
            Gallery(model(data.gallery.images).detach(), "H", labels), torch.ones(12, 16), None, data.query.labels
        )
        negative = CenterCode(known=items_known).bound(benign)
        assert found.bound == pytest.approx(hamming_map(negative, items, data.query.labels, labels, top_k))
        assert f"{found.bound:.1f} % by negative center codes" in repr(found)


def test_of_the_bound_a_query_from_the_gallery_is_left_out(world):
    model, data = world
    inside = replace(data, protocol=replace(data.protocol, self_excluded=True), query=data.gallery)
    found = scores.robust_map(model, inside, EPS, effort="quick", queries=10)
    outputs, labels = model(data.gallery.images).detach(), data.gallery.labels
    gallery = Gallery(outputs, "H", labels)
    negative = CenterCode().bound(Benign(gallery, outputs[:10], torch.arange(10), labels[:10]))
    given = negative, gallery.codes, labels[:10], labels
    assert found.bound == pytest.approx(hamming_map(*given, own=torch.arange(10)))
    assert found.bound != pytest.approx(hamming_map(*given))


# What is known


def test_a_checkpoint_made_with_other_known_labels_is_refused(world, tmp_path):
    """They decide the center codes as the codes do."""
    model, data = world
    codes, labels = codes_of(model(data.query.images)).float(), data.query.labels
    given = model, data, EPS
    named = {"effort": "quick", "checkpoint": tmp_path / "map"}
    first = scores.robust_map(*given, **named, known=Gallery(codes, "H", labels))
    again = scores.robust_map(*given, **named, known=Gallery(codes, "H", labels))
    assert again.bound == first.bound and torch.equal(again.precisions, first.precisions)
    with pytest.raises(ValueError, match="was written with other known labels: move it"):
        scores.robust_map(*given, **named, known=Gallery(codes, "H", labels.roll(1, 0)))


def test_known_items_that_are_none_are_refused(world):
    model, data = world
    codes = codes_of(model(data.query.images)).float()
    for known, error, message in (
        (codes, TypeError, "known of type Tensor: expected a Gallery"),
        (Gallery(codes, "H"), ValueError, "known items without labels"),
        (Gallery(codes[:, :8], "H", data.query.labels), ValueError, "codes of 8 bits: expected 16"),
    ):
        with pytest.raises(error, match=message):
            scores.robust_map(model, data, EPS, effort="quick", known=known)


# What makes it doubtful


@pytest.fixture(scope="module")
def trained():
    return hash_model()


def test_a_sound_evaluation_warns_of_nothing(trained, recwarn):
    for effort, eps in (("quick", 0.05), ("standard", 0.05), ("standard", 0.5)):
        found = scores.robust_map(trained, searched_in_itself(), eps, queries=100, effort=effort)
        assert found.warnings == ()
        assert found.map < found.benign and "MAP of 100 queries" in repr(found)
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


class Scaled(nn.Module):
    """The same codes; but where they are relaxed, tanh is flat in float32, if the factor is large."""

    distance = "H"

    def __init__(self, network, factor=1e4):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images):
        return self.factor * self.network(images)


@pytest.mark.parametrize(
    ("defense", "suspicious"),
    [
        (Quantized, {"gradient to the pixels", "black box"}),
        (Detached, {"gradient is the slope", "black box"}),
        (lambda network: GradientKiller(network, "random"), {"gradient is the slope", "black box"}),
        (Scaled, {"gradient to the pixels"}),
        (Noisy, {"repeatable embeddings"}),
        (lambda network: Squashed(Scaled(network, 0.2)), {"outputs without a tanh"}),
    ],
    ids=["quantized", "detached", "random gradient", "scaled", "noisy", "squashed"],
)
def test_a_planted_defense_is_told_of(defense, suspicious, trained):
    torch.manual_seed(0)
    with pytest.warns(UserWarning) as warned:
        found = scores.robust_map(defense(trained), searched_in_itself(), 0.1, queries=60)
    assert {str(warning.message) for warning in warned} == set(found.warnings)
    assert suspicious <= {message.partition(":")[0] for message in found.warnings}


def test_of_a_tanh_at_the_end_and_of_nothing_else_small_outputs_are_not_suspected(trained, recwarn):
    """A power of two keeps every digit: from 14, the largest becomes 0.1, and so does its tanh."""
    for network in (Scaled(trained, 2**-7), Squashed(Scaled(trained, 2**-7))):
        found = scores.robust_map(network, searched_in_itself(), 0.05, queries=30, effort="quick")
        assert found.warnings == ()


@pytest.mark.filterwarnings("ignore:outputs without a tanh")
def test_behind_a_flat_tanh_more_is_left_of_the_same_codes(trained):
    """Why it is warned of; by more than the error of the difference."""
    plain, squashed = (
        scores.robust_map(network, searched_in_itself(), 0.06, effort="quick")
        for network in (trained, Squashed(Scaled(trained, 3.0)))
    )
    apart = squashed.precisions - plain.precisions
    assert plain.benign == squashed.benign and apart.mean() > 2 * apart.std() / len(apart) ** 0.5


@pytest.mark.filterwarnings("ignore:gradient to the pixels")
def test_outputs_of_another_scale_hide_nothing(trained):
    plain, scaled = (
        scores.robust_map(network, searched_in_itself(), 0.05, queries=60) for network in (trained, Scaled(trained))
    )
    assert plain.benign == scaled.benign > 2 * plain.map
    assert scaled.map == pytest.approx(plain.map, abs=3)


def test_a_gallery_in_another_order_is_told_of(trained):
    made = searched_in_itself()
    other = replace(
        made,
        gallery=Split(made.gallery.images, made.gallery.labels.roll(1)),
        protocol=replace(made.protocol, self_excluded=False),
    )
    with pytest.warns(UserWarning, match="benign recall: .* of 100 rankings are better than a random order"):
        scores.robust_map(trained, other, 0.05, effort="quick", queries=100)


def test_a_search_that_fails_where_none_can_is_told_of(trained):
    with pytest.warns(UserWarning, match="unlimited radius: "):
        found = scores.robust_map(
            GradientKiller(trained, "zero"), searched_in_itself(), 0.5, queries=50, effort="quick"
        )
    assert found.map == found.benign


def test_an_attack_that_makes_rankings_better_is_told_of(trained, monkeypatch):
    class Helpful(Precision):
        def plan(self, benign, targets):
            plan = super().plan(benign, targets)
            return plan._replace(loss=lambda outputs: -plan.loss(outputs))

    stage = module.map_suite("quick", 0.05)[0]
    monkeypatch.setattr(module, "map_suite", lambda *given: [stage._replace(attack=Helpful())])
    with pytest.warns(UserWarning, match="more steps: precision, 8 steps makes .* of .* rankings better and .* worse"):
        scores.robust_map(trained, searched_in_itself(), 0.05, effort="quick", queries=50)


def test_masked_gradients_are_looked_for_on_a_sample_of_what_stands(trained, monkeypatch, recwarn):
    monkeypatch.setattr(checkpoints, "BLOCK", 50)
    asked, sizes = [], []
    monkeypatch.setattr(module.Queries, "attacked", noting(module.Queries.attacked, asked))
    found = scores.robust_map(Quantized(trained), searched_in_itself(), 0.03, queries=100)
    for search, rows in asked:
        if isinstance(search, NES):
            sizes.append(len(rows))
        else:
            assert len(rows) == 50
    assert len(sizes) == 2 and all(0 < size <= SAMPLE for size in sizes)
    by_values = found.map_under["precision by values, 200 looks"]
    assert found.map <= by_values < found.benign
    for effort, norm in (("quick", "linf"), ("standard", "l2")):
        assert not any(isinstance(stage.search, NES) for stage in module.map_suite(effort, 0.03, norm))


def noting(attacked, asked):
    def noted(self, attack, search, generator, rows=None):
        asked.append((search, rows))
        return attacked(self, attack, search, generator, rows)

    return noted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -1}, "eps=-1"),
        ({"norm": "l1"}, "norm='l1'"),
        ({"effort": "much"}, "effort='much'"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_impossible_arguments_are_refused(world, changes, message):
    model, data = world
    with pytest.raises(ValueError, match=message):
        scores.robust_map(model, data, **({"eps": EPS, "effort": "quick"} | changes))


def test_queries_from_the_gallery_do_not_find_themselves(world):
    model, data = world
    inside = replace(data, protocol=replace(data.protocol, self_excluded=True), query=data.gallery)
    found = scores.robust_map(model, inside, EPS, effort="quick", queries=10)
    codes, labels = codes_of(model(data.gallery.images)), data.gallery.labels
    alone = [
        hamming_map(
            codes[at : at + 1],
            torch.cat([codes[:at], codes[at + 1 :]]),
            labels[at : at + 1],
            torch.cat([labels[:at], labels[at + 1 :]]),
        )
        for at in range(10)
    ]
    assert found.benign == pytest.approx(sum(alone) / 10) and found.map < found.benign
