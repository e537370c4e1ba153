"""The ten rows: those of the attacks run alone; and what both scores say of planted models, evaluated for real."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robret_lib import attacks, scores
from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, Transfer
from robret_lib.attacks.embedding import (
    EmbeddingShift,
    GreedyTop1Misrank,
    GreedyTop1Translocation,
    LearningToMisrank,
    TargetedMismatch,
)
from robret_lib.attacks.ranking import CandidateAttack, QueryAttack
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.models import embed
from robret_lib.scores import attack_rows, ers, evaluate_ers, relative_robustness
from robret_lib.scores.attack_rows import MEASURES
from robret_lib.scores.checkpoint import Checkpoint
from robret_lib.scores.ers import NORMALIZED
from robret_lib.scores.queries import Queries
from tests.planted_defenses import BatchCoupled, Noisy
from tests.small_retrieval import DEVICES, NAMES, searched_in_itself, some_split, trained_model

BUDGET = PGD(0.05, 0.02, steps=4)


def asked_from_outside():
    query, gallery = some_split(60, seed=60), some_split(200, seed=10)
    return RetrievalData("toy", some_split(40, 1), query, gallery, NAMES, Protocol("outside", "...", False, False))


def the_nine(mode, m):
    return {
        "CA+": CandidateAttack("raise", m, mode),
        "CA-": CandidateAttack("lower", m, mode),
        "QA+": QueryAttack("raise", m, mode),
        "QA-": QueryAttack("lower", m, mode),
        "TMA": TargetedMismatch(mode),
        "ES": EmbeddingShift(mode),
        "LTM": LearningToMisrank(mode),
        "GTM": GreedyTop1Misrank(mode),
        "GTT": GreedyTop1Translocation(mode),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode, m", [("fixed", 1), ("reference", 2)])
@pytest.mark.parametrize("data", [searched_in_itself(200), asked_from_outside()], ids=["itself", "outside"])
def test_each_row_is_that_of_its_attack_alone(data, mode, m, device, models):
    model = models["C"].to(device)
    result = evaluate_ers(model, data, BUDGET, mode, queries=50, seed=3, n_targets=m)
    asked = Queries(model, data, 50)
    for number, (name, attack) in enumerate(the_nine(mode, m).items()):
        alone = asked.attacked(attack, BUDGET, torch.Generator().manual_seed(2**10 * 3 + number))
        for row, measure in MEASURES[name].items():
            assert result.rows[row] == pytest.approx(alone.measured[measure].double().mean().item())
            assert result.benign[row] == pytest.approx(alone.benign[measure].double().mean().item())
            values = alone.measured[measure].double().cpu()
            assert torch.equal(result.measured[row], values)
            assert result.standard_errors[row] == pytest.approx(values.std().item() / 50**0.5)
    assert list(result.rows) == list(NORMALIZED)
    assert result.ers == ers(result.rows)
    assert result.passes == 9 * 4
    recall = 100 * asked.right(asked.embeddings).double().mean().item()
    assert result.benign["R@1"] == pytest.approx(recall)
    assert result.relative().score == pytest.approx(relative_robustness(result.rows, result.benign))
    model.cpu()


def test_what_chance_gives_is_counted(model):
    """The share of all queries that always the same item answers, at best; and how far apart items are."""
    data, rows = searched_in_itself(200), torch.arange(0, 200, 3)
    benign = attack_rows(model, data, PGD(0, 1, 1), queries=rows).benign
    labels = data.gallery.labels
    best = max(sum(labels[q] == labels[x] and q != x for q in range(200)) for x in range(200))
    assert benign["R@1 by chance"] == pytest.approx(100 * best / 200)
    assert benign["GTT by chance"] == pytest.approx(400 / 199)
    distances = torch.cdist(*2 * [embed(model, data.gallery.images).double()])
    assert benign["pair distance"] == pytest.approx(distances.sum().item() / 200 / 199, rel=1e-3)
    outside = attack_rows(model, asked_from_outside(), PGD(0, 1, 1)).benign
    counts = asked_from_outside().query.labels.bincount()
    assert outside["R@1 by chance"] == pytest.approx(100 * counts.max().item() / 60)
    assert outside["GTT by chance"] == pytest.approx(400 / 200)


def test_rows_read_well_and_compare_by_identity(model):
    result = attack_rows(model, searched_in_itself(100), PGD(0, 1, 1), queries=50)
    assert len(str(result)) < 300 and str(result).startswith(f"of 50 queries: CA+ {result.rows['CA+']:.1f}, CA- ")
    assert f"; R@1 {result.benign['R@1']:.1f} % before; 0.0 passes a query" in str(result)
    warned = replace(result, warnings=("black box: see there",))
    assert str(warned) == f"{result}\nblack box: see there" and warned != result


def test_at_radius_zero_nothing_moves(model):
    """All of what there is is left, and ERS is far from 100 all the same."""
    result = evaluate_ers(model, searched_in_itself(200), PGD(0, 1, 1))
    assert result.rows == {name: result.benign[name] for name in NORMALIZED}
    assert result.relative() == (100, 100, 100)
    assert result.ers < 95


def test_a_larger_radius_leaves_less(model):
    found = [evaluate_ers(model, searched_in_itself(200), AutoPGD(eps, 4), queries=60) for eps in (0.01, 0.03, 0.1)]
    for scale in ([result.ers for result in found], [result.relative().score for result in found]):
        assert scale[0] > scale[1] + 5 > scale[2] + 10


def test_more_targets_are_harder_to_move_together(model):
    few, many = (attack_rows(model, searched_in_itself(500), BUDGET, queries=100, n_targets=m).rows for m in (1, 5))
    assert many["CA+"] > few["CA+"] + 2 and many["QA+"] > few["QA+"] + 2


def test_distance_e_has_rows_and_no_score(models):
    data = searched_in_itself(100)
    with pytest.raises(ValueError, match='distance "E" has no ERS: ES:D .*attack_rows gives the rows'):
        evaluate_ers(models["E"], data, BUDGET)
    result = attack_rows(models["E"], data, BUDGET, queries=40)
    assert result.rows["ES:D"] > 0
    with pytest.raises(ValueError, match='distance "E" has no ERS'):
        _ = result.ers
    assert 0 < result.relative().score < 100


# What the scores say


class Planted(nn.Module):
    """A model of the world of the tests whose embedding is something else."""

    distance = "N"

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images):
        return nn.functional.normalize(self.change(self.model(images)), dim=1)


def collapsed(embeddings):
    """Alike, but for a noise that has nothing to do with the class."""
    common = torch.ones_like(embeddings)
    return common + 1e-4 * (1e4 * embeddings).sin()


def random(embeddings):
    return 0 * embeddings + torch.randn_like(embeddings)


def dead(embeddings):
    return 0 * embeddings + 1


def shrunk(embeddings):
    """The same unit vectors, a thirtieth as far apart, around a common direction."""
    return torch.cat([embeddings, torch.full_like(embeddings[:, :1], 30)], dim=1)


@pytest.mark.parametrize("change", [collapsed, random, dead])
def test_a_model_that_finds_nothing_scores_nothing(change, model):
    torch.manual_seed(0)
    data, budget = searched_in_itself(200), PGD(0.02, 0.01, steps=4)
    planted, working = (evaluate_ers(m, data, budget) for m in (Planted(model, change), model))
    assert planted.benign["R@1"] < 25 < working.benign["R@1"]
    score, low, high = planted.relative()
    assert score == 0 and high < 5
    assert planted.ers > working.ers - 25  # it passes for robust
    assert working.relative().low > 10


def test_ers_prefers_a_collapsed_model_and_ours_the_one_that_works(model):
    data, budget = searched_in_itself(200), PGD(0.05, 0.02, steps=6)
    planted, working = (evaluate_ers(m, data, budget) for m in (Planted(model, collapsed), model))
    assert planted.ers > working.ers + 5
    assert planted.relative().high < working.relative().low
    assert working.benign["R@1"] > 3 * planted.benign["R@1"]


def test_a_model_that_shrinks_its_distances_gains_nothing_in_ours(model):
    data, budget = searched_in_itself(200), PGD(0.02, 0.01, steps=4)
    as_it_is, small = (evaluate_ers(m, data, budget) for m in (Planted(model, lambda e: e), Planted(model, shrunk)))
    assert small.benign["R@1"] == pytest.approx(as_it_is.benign["R@1"])
    assert small.rows["ES:D"] == pytest.approx(as_it_is.rows["ES:D"] / 30, rel=0.1)
    assert small.relative().score == pytest.approx(as_it_is.relative().score, abs=2)


def test_the_interval_is_that_of_other_queries(model):
    """Of disjoint sets of queries, nearly all score in it; a fourth of the queries makes it twice as wide."""
    data = searched_in_itself(400)
    whole = evaluate_ers(model, data, BUDGET)
    score, low, high = whole.relative()
    assert low < score < high and whole.relative() == (score, low, high) != whole.relative(seed=1)
    parts = [evaluate_ers(model, data, BUDGET, queries=part).relative() for part in torch.arange(400).chunk(4)]
    assert sum(part.low <= score <= part.high for part in parts) >= 3
    assert sum(part.high - part.low for part in parts) / 4 == pytest.approx(2 * (high - low), rel=0.35)


def test_how_many_queries_are_asked_does_not_move_what_is_estimated(model):
    """Of a model that sees two numbers of each embedding, and finds a little with them."""
    weak = Planted(model, lambda embeddings: torch.cat([embeddings[:, :2], torch.ones_like(embeddings[:, :1])], dim=1))
    data, budget = searched_in_itself(800), PGD(0.003, 0.003, steps=1)
    score = evaluate_ers(weak, data, budget).relative().score
    parts = [evaluate_ers(weak, data, budget, queries=part).relative() for part in torch.arange(800).chunk(4)]
    assert all(part.low <= score <= part.high for part in parts)
    assert sum(part.score for part in parts) / 4 == pytest.approx(score, abs=8) and 10 < score < 90


@pytest.mark.parametrize("defense", [None, BatchCoupled, Noisy])
def test_a_planted_defense_is_told_of(defense, model, recwarn):
    data = searched_in_itself(100)
    result = evaluate_ers(defense(model) if defense else model, data, BUDGET, queries=10)
    told = [str(warning.message) for warning in recwarn if issubclass(warning.category, UserWarning)]
    assert list(result.warnings) == told and bool(told) is bool(defense)


def test_labels_of_other_images_are_told_of(model):
    data = searched_in_itself(200)
    labels = data.query.labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    split = Split(data.query.images, labels)
    with pytest.warns(UserWarning, match="benign recall: .* first answers are right, where .* labels are those of oth"):
        evaluate_ers(model, replace(data, query=split, gallery=split), BUDGET)


def test_a_search_that_is_stopped_too_early_is_told_of(model, tmp_path):
    """Of each attack on the first answer; also by whoever goes on from a checkpoint, where all the line is his."""
    arguments = model, searched_in_itself(200), PGD(0.08, 0.002, steps=8)
    for _ in range(2):
        with pytest.warns(UserWarning) as told:
            result = evaluate_ers(*arguments, checkpoint=tmp_path / "c")
        assert {message[:26] for message in result.warnings} >= {
            "loss at the last step: ES:",
            "loss at the last step: GTM",
        }
        assert {warning.filename for warning in told} == {__file__}
    for budget in (AutoPGD(0.08, 20), PGD(0.08, 0.002, 7), NES(0.08, 21, 10), Transfer(model, arguments[2])):
        assert evaluate_ers(*arguments[:2], budget, queries=60).warnings == ()


# A crash costs one attack


@pytest.mark.parametrize("interruptions", [(1,), (4, 5)])
def test_interrupted_and_started_again_it_ends_the_same(interruptions, model, tmp_path, monkeypatch):
    """After any attack; also between the two rows of the shift nothing can be lost, since they are one attack."""
    arguments = model, searched_in_itself(100), BUDGET
    save = Checkpoint.save
    for saves in interruptions:
        left = iter(range(saves - 1))

        def saved_and_interrupted(self, state, left=left):
            save(self, state)
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoint, "save", saved_and_interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_ers(*arguments, queries=40, checkpoint=tmp_path / "folder" / "c")
    monkeypatch.undo()
    resumed = evaluate_ers(*arguments, queries=40, checkpoint=tmp_path / "folder" / "c")
    whole = evaluate_ers(*arguments, queries=40)
    assert resumed.rows == whole.rows and resumed.benign == whole.benign and resumed.passes == whole.passes
    assert all(torch.equal(resumed.measured[name], whole.measured[name]) for name in NORMALIZED)


def test_nothing_is_done_twice(model, tmp_path, monkeypatch):
    arguments = model, searched_in_itself(60), BUDGET
    found = evaluate_ers(*arguments, checkpoint=tmp_path / "c")
    monkeypatch.setattr(attacks, "run", None)
    assert evaluate_ers(*arguments, checkpoint=tmp_path / "c").rows == found.rows


def test_a_checkpoint_of_something_else_is_refused(model, models, tmp_path):
    checkpoint, data, search = tmp_path / "c", searched_in_itself(60), Transfer(models["N"], BUDGET)
    evaluate_ers(model, data, search, queries=20, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="was written with .*'mode': 'fixed'.*, this .*'mode': 'reference'.*: move it"):
        evaluate_ers(model, data, search, "reference", queries=20, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="was written with .*'n_targets': 1.*'n_targets': 2.*: move it"):
        evaluate_ers(model, data, search, queries=20, checkpoint=checkpoint, n_targets=2)
    with pytest.raises(ValueError, match="was written with .*'seed': 0.*'seed': 1.*: move it"):
        evaluate_ers(model, data, search, queries=20, checkpoint=checkpoint, seed=1)
    with pytest.raises(ValueError, match=r"was written with .*steps=4.*PGD\(eps=0.06.*: move it"):
        evaluate_ers(model, data, PGD(0.06, 0.02, 4), queries=20, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="was written with other weights of model.*: move it"):
        evaluate_ers(models["C"], data, search, queries=20, checkpoint=checkpoint)
    other = Transfer(trained_model(steps=5), BUDGET)
    with pytest.raises(ValueError, match="was written with other weights of surrogate 1, .*: move it"):
        evaluate_ers(model, data, other, queries=20, checkpoint=checkpoint)


@pytest.mark.parametrize("budget", [0.03, PGD, None])
def test_a_budget_that_is_no_search_is_refused_at_once(budget, model):
    with pytest.raises(TypeError, match=r"budget=.*: expected a search, such as PGD\(8 / 255, 3 / 255, steps=32\)"):
        evaluate_ers(model, searched_in_itself(60), budget)


def test_a_search_without_a_lasting_name_has_no_checkpoint(model, tmp_path):
    def search(model, images, loss_fn, generator=None):
        return BUDGET(model, images, loss_fn, generator)

    arguments = model, searched_in_itself(60)
    for budget in (search, Averaged(search, 2)):
        with pytest.raises(TypeError, match=r"budget=.*search at 0x.* has another name .*: make it a dataclass"):
            evaluate_ers(*arguments, budget, queries=4, checkpoint=tmp_path / "c")
    assert evaluate_ers(*arguments, search, queries=4).rows == evaluate_ers(*arguments, BUDGET, queries=4).rows


def test_every_public_name_is_reachable():
    assert {"evaluate_ers", "ers", "robust_recall", "relative_robustness", "attack_rows"} <= set(scores.__all__)
    assert all(hasattr(scores, name) for name in scores.__all__)
