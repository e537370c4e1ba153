"""Robust MAP: the smallest average precision of each query, attack by attack, also after an interruption."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from robret_lib import scores
from robret_lib.attacks import Gallery
from robret_lib.data import RetrievalData, Split
from robret_lib.data.retrieval_data import Protocol
from robret_lib.hamming import average_precisions, codes_of, hamming_map
from tests.small_codes import seeded, small_world

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
    assert suite[1].attack.known is known and len(suite) == len(whole.map_under) + 6


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
