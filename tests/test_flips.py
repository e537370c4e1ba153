"""Words added and removed: never more than allowed, always words, and the best that there is where greed is enough."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robret_lib import attacks, models
from robret_lib.attacks.codes import OwnCode
from robret_lib.attacks.search import flips
from robret_lib.attacks.search.flips import WordFlips
from robret_lib.cross_modal import text_model
from tests.small_cross_modal import seeded, small_engine, some_pairs
from tests.test_pgd import (
    Linear,
    Watched,
    assert_unchanged,
    first_coordinate,
    mixed_network,
    no_slope,
    snapshot,
)


def some_bags(count=6, words=12, seed=1, share=0.4):
    return (torch.rand(count, 1, 1, words, generator=seeded(seed)) < share).float()


def small_network(words=12, seed=0):
    torch.manual_seed(seed)
    return text_model(words, 5, (16,))


def losses_of(network, bags):
    with torch.no_grad():
        return network.eval()(bags)[:, 0]


def changed(before, after):
    return (before != after).flatten(1).sum(1)


@settings(max_examples=60)
@given(
    words=st.integers(0, 20),
    tried=st.integers(1, 25),
    entries=st.integers(1, 15),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_never_more_entries_change_than_allowed_and_all_stay_zeros_and_ones(words, tried, entries, share, dtype, seed):
    network, bags = small_network(entries, seed), some_bags(4, entries, seed, share).to(dtype)
    before = bags.clone()
    found = WordFlips(words, tried)(network, bags, first_coordinate)
    assert torch.equal(bags, before) and found.dtype == dtype and found.shape == bags.shape
    assert ((found == 0) | (found == 1)).all() and not found.requires_grad
    assert changed(bags, found).max() <= words
    assert (losses_of(network, found) <= losses_of(network, bags) + 1e-6).all()


@pytest.mark.parametrize("seed", range(5))
def test_more_words_never_leave_a_larger_loss(seed):
    network, bags = small_network(seed=seed), some_bags(20, seed=seed)
    for tried in (1, 3):
        searches = [WordFlips(words, tried) for words in range(13)]
        losses = torch.stack([losses_of(network, search(network, bags, first_coordinate)) for search in searches])
        assert (losses.diff(dim=0) <= 1e-6).all()
        assert (losses[-1] < losses[0]).all()


def brute_force(network, bags, words):
    """The least loss that any choice of at most so many entries leaves."""
    best = losses_of(network, bags)
    for count in range(1, words + 1):
        for chosen in combinations(range(bags.shape[-1]), count):
            moved = bags.clone()
            moved[..., list(chosen)] = 1 - moved[..., list(chosen)]
            best = torch.minimum(best, losses_of(network, moved))
    return best


@pytest.mark.parametrize("tried", [1, 4])
@pytest.mark.parametrize("words", [1, 2, 4])
def test_of_a_linear_model_it_finds_the_best_there_is(words, tried):
    bags, network = some_bags(8, 9), Linear(torch.randn(1, 1, 9, generator=seeded(2)))
    found = losses_of(network, WordFlips(words, tried)(network, bags, first_coordinate))
    assert torch.allclose(found, brute_force(network, bags, words), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_of_one_word_it_finds_the_best_there_is_where_all_are_tried(seed):
    network, bags = small_network(seed=seed), some_bags(20, seed=seed)
    everything = bags[0].numel()
    searches = {tried: WordFlips(1, tried) for tried in (1, everything)}
    found = {tried: losses_of(network, search(network, bags, first_coordinate)) for tried, search in searches.items()}
    assert torch.allclose(found[everything], brute_force(network, bags, 1), atol=1e-6)
    assert (found[everything] <= found[1] + 1e-6).all() and (found[everything] < found[1] - 1e-6).any()


def test_how_many_go_through_the_network_together_changes_nothing(monkeypatch):
    network, bags = small_network(), some_bags(20)
    whole = WordFlips(3, tried=6)(network, bags, first_coordinate)
    monkeypatch.setattr(flips, "AT_ONCE", 13)
    assert torch.equal(WordFlips(3, tried=6)(network, bags, first_coordinate), whole)


def test_words_are_added_and_removed():
    """Each entry has a slope: what is there and costs is taken away, and what is not there and pays is added."""
    bags = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    network = Linear(torch.tensor([3.0, -3.0, 2.0, -2.0]).view(1, 1, 4))
    found = [WordFlips(words)(network, bags, first_coordinate).flatten().tolist() for words in range(5)]
    assert found == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1]]


def test_an_entry_is_flipped_once():
    """Of a loss whose sign changes with each look, the heaviest entry would be flipped to and fro."""
    network, bags = Linear(torch.tensor([5.0, 0.1, 0.2]).view(1, 1, 3)), torch.ones(1, 1, 1, 3)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten().tolist()))
    WordFlips(3, tried=1)(network, bags, lambda outputs: outputs[:, 0] * (-1) ** len(seen))
    assert len(seen) == 4 and len({tuple(bag) for bag in seen}) == 4
    assert [sum(a != b for a, b in zip(*pair, strict=True)) for pair in zip(seen, seen[1:], strict=False)] == [1] * 3


@pytest.mark.parametrize("words", [1, 5])
@pytest.mark.parametrize("tried", [1, 7])
def test_a_word_is_one_forward_one_backward_and_a_forward_for_each_that_is_tried(words, tried):
    network, bags = Watched(), some_bags(words=64)
    WordFlips(words, tried)(network, bags, first_coordinate)
    assert network.calls == {"forward": words * (1 + (tried > 1)) + 1, "backward": words}
    assert not any(network.asked)


def test_the_best_bag_is_returned_and_not_the_last():
    network, bags, seen = small_network(), some_bags(20), []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    found = WordFlips(12, tried=1)(network, bags, first_coordinate)
    handle.remove()
    losses = torch.stack([losses_of(network, bag) for bag in seen])
    assert torch.equal(found, torch.stack(seen)[losses.argmin(0), torch.arange(20)])
    assert (losses.argmin(0) < len(seen) - 1).any()


def test_without_words_the_bags_come_back():
    network, bags = Watched(), some_bags(words=64)
    found = WordFlips(0)(network, bags, first_coordinate)
    assert torch.equal(found, bags) and found.data_ptr() != bags.data_ptr()
    assert network.calls["forward"] == 0


@pytest.mark.parametrize("loss", [no_slope, first_coordinate])
def test_the_result_does_not_share_memory_with_the_bags(loss):
    """Also where no other bag was better."""
    bags = some_bags()
    before = bags.clone()
    WordFlips(2)(small_network(), bags, loss).add_(1)
    assert torch.equal(bags, before)


def test_a_batch_without_bags_is_allowed():
    assert WordFlips(3)(small_network(), some_bags(0), first_coordinate).shape == (0, 1, 1, 12)


def test_the_model_is_left_as_it_was_found():
    network, bags = mixed_network(), some_bags(words=64).view(6, 1, 8, 8)
    before = snapshot(network)
    WordFlips(3)(network, bags, first_coordinate)
    assert_unchanged(network, before)


@pytest.mark.parametrize("value", [0.5, 0.999, 1e-7])
def test_what_is_no_bag_of_words_is_refused(value):
    bags = some_bags()
    bags[2, 0, 0, 3] = value
    with pytest.raises(ValueError, match="entries other than 0 and 1: expected bags of words"):
        WordFlips(1)(small_network(), bags, first_coordinate)


def test_what_is_no_float_of_four_dimensions_is_refused():
    for bags in (some_bags().long(), some_bags().flatten(1), 2 * some_bags()):
        with pytest.raises(ValueError, match="images"):
            WordFlips(1)(small_network(), bags, first_coordinate)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordFlips(-1), "words=-1: expected a whole number of at least 0"),
        (lambda: WordFlips(1.5), "words=1.5"),
        (lambda: WordFlips(3, tried=0), "tried=0: expected a whole number of at least 1"),
    ],
)
def test_impossible_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_is_an_error():
    class Broken(nn.Module):
        def forward(self, bags):
            return bags.flatten(1) * torch.nan

    with pytest.raises(FloatingPointError, match="NaN"):
        WordFlips(1)(Broken(), some_bags(), first_coordinate)


def test_an_attack_follows_the_softer_loss_and_keeps_the_best_by_the_code():
    """A rising sharpness goes with the words that are left, and batches do not matter."""
    engine, queries = small_engine(), some_pairs(20, seed=4)
    branch = engine.branch("texts").float()
    found = [
        attacks.run(
            OwnCode("rising"), branch, queries.texts, engine.searched_by("texts"), WordFlips(5, 1), batch_size=size
        )
        for size in (256, 3)
    ]
    assert torch.equal(found[0].images, found[1].images)
    own = models.embed(branch, queries.texts)
    before, after = (
        (torch.tanh(models.embed(branch, bags)) * own.sign()).mean(1) for bags in (queries.texts, found[0].images)
    )
    assert (after <= before + 1e-6).all() and after.mean() < before.mean() - 0.1
    assert found[0].measured["flipped"].mean() > 0 and found[0].passes == 6 and found[0].backward_passes == 5


def test_of_an_attack_what_is_tried_is_judged_by_the_loss_of_its_own_query():
    """In whatever batch it is; and it finds more than the gradient's word alone."""
    engine, queries = small_engine(), some_pairs(20, seed=4)
    branch, gallery = engine.branch("texts").float(), engine.searched_by("texts")
    by = {
        (tried, size): attacks.run(OwnCode(), branch, queries.texts, gallery, WordFlips(3, tried), batch_size=size)
        for tried, size in ((24, 256), (24, 3), (1, 256))
    }
    assert torch.equal(by[24, 256].images, by[24, 3].images)
    own = models.embed(branch, queries.texts).sign()
    left = {key: (torch.tanh(models.embed(branch, one.images)) * own).mean() for key, one in by.items()}
    assert left[24, 256] < left[1, 256]
    assert by[24, 256].passes == 3 + 1 + (24 + 23 + 22)
