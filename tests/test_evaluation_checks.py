"""The laws of a sound evaluation: each alarm where its law is broken by more than chance, and nowhere else."""

import pytest
import torch
from scipy.stats import binom

from robret_lib import attacks, checks
from robret_lib.attacks import NES, PGD, AutoPGD, OnlyAnswers, OrderAttack
from robret_lib.attacks.embedding import EmbeddingShift, Margin
from robret_lib.checks import evaluation
from robret_lib.data import Protocol, RetrievalData, Split
from robret_lib.models import embed
from tests.planted_defenses import Purified

NO_FEWER = {
    "more steps": lambda weak, strong: evaluation.more_steps(few=weak, more=strong),
    "larger radius": lambda weak, strong: evaluation.larger_radius(small=weak, large=strong),
    "random start": lambda weak, strong: evaluation.random_start(image=strong, draw=weak),
}
OWN = torch.arange(60)


def outcomes(both, first_only, second_only, neither):
    """Two outcomes, of queries that are broken by both, by the first alone, by the second alone, by neither."""
    broken = [(True, True)] * both + [(True, False)] * first_only + [(False, True)] * second_only
    return ~torch.tensor(broken + [(False, False)] * neither).T


@pytest.mark.parametrize("check", NO_FEWER)
@pytest.mark.parametrize("disagree", [1, 6, 7, 40, 500])
def test_where_two_attacks_disagree_the_weaker_may_not_win_more_often_than_a_coin(check, disagree):
    """The exact sign test: the least number of wins that a coin reaches in at most one case of a hundred."""
    allowed = int(binom.isf(0.01, disagree, 0.5))
    for wins in {0, max(0, allowed - 1), allowed, min(disagree, allowed + 1), min(disagree, allowed + 2), disagree}:
        finding = NO_FEWER[check](*outcomes(30, wins, disagree - wins, 11))
        assert finding.name == check
        assert finding.ok == (binom.sf(wins - 1, disagree, 0.5) > 0.01)
    finding = NO_FEWER[check](*outcomes(30, 0, 20, 11))
    assert finding.ok and "0 of 61 broken by" in finding.message and "20 by" in finding.message


@pytest.mark.parametrize("count", [20, 64, 1000])
def test_values_may_break_one_in_a_hundred_that_gradients_left(count):
    for new in (0, 1, 2, 3, 4, 18, 19, 20):
        white, black = outcomes(count - new, 0, new, 0) if new < count else outcomes(0, 0, new, 0)
        finding = evaluation.black_box(white, black)
        assert finding.ok == (binom.sf(new - 1, count, 0.01) > 0.01)
        assert f"breaks {new} of {count} queries" in finding.message
    assert not evaluation.black_box(*outcomes(0, 0, count // 4, count)).ok
    assert evaluation.black_box(*outcomes(0, count, 0, count)).ok


@pytest.mark.parametrize("count, chance", [(3, 0.1), (64, 0.1), (1000, 0.1), (64, 0.5), (64, 1.0)])
def test_more_first_answers_are_right_than_of_one_answer_for_all(count, chance):
    for hits in range(count + 1):
        finding = evaluation.benign_recall(torch.arange(count) < hits, chance)
        assert finding.ok == (hits > 0 and binom.sf(hits - 1, count, chance) <= 0.01)
        assert finding.message.startswith(f"{hits} of {count} first answers are right, where the best answer for all")


@pytest.mark.parametrize("self_excluded", [True, False])
@pytest.mark.parametrize("several", [False, True])
def test_one_answer_for_all_is_the_item_that_answers_most_queries(self_excluded, several):
    labels = torch.tensor([2, 0, 1, 1, 1, 2])
    labels = torch.nn.functional.one_hot(labels) if several else labels
    if several:
        labels[0, 1] = 1
    split = Split(torch.rand(6, 1, 2, 2), labels)
    data = RetrievalData("toy", split, split, split, ("a", "b", "c"), Protocol("", "", self_excluded, False))
    assert evaluation.one_for_all(data) == (3 + 2 * several - self_excluded) / 6  # the first one: by both its classes


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_gray_images_leave_what_one_answer_for_all_would_get_right(chance):
    for left in (0, 10, 17, 18, 19, 20, 61, 62, 63, 64, 100):
        survived = torch.arange(100) < left
        assert evaluation.unlimited_radius(survived, chance).ok == (binom.sf(left - 1, 100, chance) > 0.01)
    assert evaluation.unlimited_radius(torch.ones(50, dtype=torch.bool), 1.0).ok


def test_a_loss_that_falls_as_at_the_beginning_is_still_falling():
    steps = torch.linspace(0, 1, 41, dtype=torch.float64)[:, None].expand(-1, 30)
    rest, straight = 1 - (1 - (-8 * steps).exp()), 1 - steps
    for losses, falls in ((rest, False), (straight, True), (1 - steps.square(), True), (torch.ones(41, 30), False)):
        assert evaluation.loss_at_the_end(losses).ok == (not falls)
        zigzag = losses + torch.arange(41)[:, None] % 2  # the best so far counts
        assert evaluation.loss_at_the_end(zigzag).ok == (not falls)
    for standing, ok in ((2, True), (3, False)):  # of thirty queries, at one in a hundred: 3.6 and 0.3 % by chance
        finding = evaluation.loss_at_the_end(straight, torch.arange(30) < standing)
        assert finding.ok == ok and finding.message.startswith(f"{standing} of 30 queries")
    assert evaluation.loss_at_the_end(straight, torch.zeros(30, dtype=torch.bool)).ok


def precisions(better, worse, equal):
    """Before and after, of rankings that get better, get worse, and stay as they are."""
    before = torch.full((better + worse + equal,), 40.0, dtype=torch.float64)
    change = torch.tensor([2.0] * better + [-5.0] * worse + [1e-9] * equal, dtype=torch.float64)
    return before, before + change


@pytest.mark.parametrize("decided", [0, 1, 6, 7, 40, 500])
def test_rankings_get_better_and_worse_as_a_coin_may(decided):
    """An exact sign test on the rankings that differ: of the benign ones against chance, else of better ones."""
    for better in {0, decided // 2, int(decided * 0.7), decided}:
        before, after = precisions(better, decided - better, 11)
        rare = bool(binom.sf(better - 1, decided, 0.5) <= 0.01)
        finds = evaluation.benign_precision(after, before)
        assert finds.ok == rare and finds.message.startswith(f"{better} of {decided + 11} rankings are better")
        start = evaluation.own_start("own code", before, after)
        assert start.ok != rare and start.message.startswith(f"own code makes {better} of {decided + 11} rankings")
        gray = evaluation.gray_image(before, after)
        assert gray.ok != rare and f"{decided - better} worse" in gray.message


def test_impossible_outcomes_are_refused():
    good = torch.ones(4, dtype=torch.bool)
    for others in (good[:3], good.float(), good[:, None]):
        with pytest.raises(ValueError, match=r"outcomes torch.bool \(4,\), .*: expected bool \[n\], of the same"):
            evaluation.more_steps(good, others)
    with pytest.raises(ValueError, match="outcomes of 0 queries"):
        evaluation.black_box(good[:0], good[:0])
    for losses in (torch.ones(7, 3), torch.ones(9), torch.ones(9, 0)):
        with pytest.raises(ValueError, match=r"expected \[steps, n\] with at least 8 steps"):
            evaluation.loss_at_the_end(losses)
    with pytest.raises(ValueError, match="of the same queries"):
        evaluation.loss_at_the_end(torch.ones(9, 3), good)


# Of real attacks


def outcome(attack, search, model, gallery, images):
    """Of the first queries, and which of them were right before."""
    result = attacks.run(attack, model, images[OWN], gallery, search, OWN, generator=torch.Generator().manual_seed(0))
    right = result.benign["recall_at_1"] > 0
    return (result.measured["recall_at_1"] > 0)[right], right


@pytest.mark.parametrize("batch_size", [256, 25])
@pytest.mark.parametrize("attack", [Margin(), EmbeddingShift()])
def test_who_listens_hears_every_loss_and_changes_nothing(attack, batch_size, model, gallery, searched):
    overheard, search = checks.Overheard(attack), AutoPGD(0.03, steps=8)
    alone, heard = (
        attacks.run(wanted, model, searched[OWN], gallery, search, OWN, batch_size=batch_size)
        for wanted in (attack, overheard)
    )
    assert torch.equal(heard.images, alone.images)
    assert overheard.losses.shape == (9, 60)
    benign = attacks.Benign(gallery, gallery.embeddings[OWN], OWN, gallery.labels[OWN])
    losses = attack.plan(benign, None).loss
    torch.testing.assert_close(overheard.losses[0], losses(benign.embeddings), rtol=0, atol=1e-5)
    torch.testing.assert_close(overheard.losses.amin(0), losses(embed(model, heard.images)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("search", [NES(0.03, 21, 10), OnlyAnswers(NES(0.03, 21, 10)), PGD(0, 1, 1)])
def test_who_hears_nothing_or_not_all_of_it_says_so(search, model, gallery, searched):
    overheard = checks.Overheard(OrderAttack(3))
    attacks.run(overheard, model, searched[OWN], gallery, search, OWN)
    assert overheard.losses is None


def test_the_strong_search_comes_to_rest_and_one_that_is_too_short_does_not(model, gallery, searched):
    found = []
    for search in (AutoPGD(0.04, 20), PGD(0.04, 0.001, 10)):
        overheard = checks.Overheard(Margin())
        survived, right = outcome(overheard, search, model, gallery, searched)
        found.append(evaluation.loss_at_the_end(overheard.losses[:, right], survived).ok)
    assert found == [True, False]


def test_steps_that_lead_out_of_where_a_defense_lets_them_are_weaker_the_more_there_are(model, gallery, searched):
    purified = Purified(model, searched, radius=0.045)
    for network, ok in ((model, True), (purified, False)):
        few, more = (outcome(Margin(), PGD(0.1, 0.01, n), network, gallery, searched)[0] for n in (4, 10))
        assert evaluation.more_steps(few, more).ok == ok
