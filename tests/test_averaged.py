"""Averaged: for a model that draws random numbers, the search follows the mean of many draws."""

import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, OnlyAnswers, Transfer, embedding
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, SIZE, seeded

OWN = torch.arange(0, SIZE, 5)


class Noisy(nn.Module):
    """A model behind noise on the pixels, drawn anew in every call, also in evaluation mode."""

    def __init__(self, model, sigma):
        super().__init__()
        self.model, self.sigma, self.distance = model, sigma, model.distance

    def forward(self, images):
        return self.model(images + self.sigma * torch.randn_like(images))


def test_the_loss_sees_the_mean_of_fresh_draws(searched):
    """With n draws, the standard deviation of what it sees falls with the root of n; each pass draws anew."""
    noisy, seen = Noisy(IDENTITY, sigma=1.0), []

    def loss(embeddings):
        seen.append(embeddings.detach())
        return embeddings.sum(1)

    images = searched[:20]
    for n in (1, 100):
        seen.clear()
        Averaged(PGD(1e-9, 1e-9, 3), n)(noisy, images, loss, seeded())
        spread = torch.stack([x - images.flatten(1) for x in seen]).std()
        assert spread == pytest.approx(n**-0.5, rel=0.05)
        assert not torch.equal(seen[0], seen[1])


class Flat(nn.Module):
    distance = "E"

    def forward(self, images):
        return images.flatten(1)


IDENTITY = Flat()


@pytest.mark.parametrize("batch_size", [40, 7])
def test_without_randomness_it_is_the_search(batch_size, model, gallery, searched):
    """Also with restarts, whose draws it must leave where they are; but for signs lost in rounding."""
    own = torch.arange(40)
    for search in (PGD(0.1, 0.02, 5), AutoPGD(0.05, 5, restarts=3)):
        plain, averaged = (
            attacks.run(embedding.Margin(), model, searched[own], gallery, each, own, None, seeded(), batch_size)
            for each in (search, Averaged(search, 2))
        )
        assert (plain.images == averaged.images).double().mean() > 0.98


@pytest.mark.parametrize("own", [torch.arange(40), None])
def test_a_model_that_draws_random_numbers_is_attacked(own, model, searched, searched_split):
    """Its gallery is one draw, and its own images embed otherwise in the next."""
    noisy = Noisy(model, sigma=0.05)
    gallery = attacks.Gallery.of(noisy, searched, searched_split.labels)
    arguments = embedding.Margin(), noisy, searched[:40], gallery, Averaged(AutoPGD(0.1, 5), 4), own
    result = attacks.run(*arguments, searched_split.labels[:40], seeded())
    assert result.measured["recall_at_1"].mean() < result.benign["recall_at_1"].mean() - 20
    assert result.passes == 4 * 6


@pytest.mark.parametrize("device", DEVICES)
def test_many_draws_find_what_one_draw_misses(device, models, searched):
    """Measured on the mean of 64 draws, as the noise of one would hide the difference."""
    model = models["N"].to(device)
    noisy = Noisy(model, sigma=0.3).to(device)
    mean_gallery = mean_embeddings(noisy, searched.to(device))
    goal = mean_gallery[torch.arange(SIZE).roll(7)][OWN]

    def left(n):
        def distance(embeddings):
            return (embeddings - goal).norm(dim=1)

        images = Averaged(PGD(0.2, 0.04, 10), n)(noisy, searched[OWN].to(device), distance, seeded())
        return distance(mean_embeddings(noisy, images)).mean()

    one, many = left(1), left(16)
    model.cpu()
    assert many < one


def mean_embeddings(model, images, n=64):
    torch.manual_seed(0)
    return torch.stack([embed(model, images) for _ in range(n)]).mean(0)


def test_a_generator_repeats_it_and_the_global_state_stays(model, searched):
    noisy, search = Noisy(model, 0.3), Averaged(PGD(0.1, 0.02, 4), 4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (search(noisy, searched[:8], lambda e: e[:, 0], seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)
    search(noisy, searched[:8], lambda e: e[:, 0])  # without one, torch's own stream is used, and moves on
    assert not torch.equal(torch.get_rng_state(), state)


def test_what_is_not_searched_on_the_model_itself_is_not_averaged(model):
    for search, nesting in (
        (Transfer(model, NES(0.1)), r"expected Transfer\(surrogate, Averaged\(search, n\)\)"),
        (OnlyAnswers(NES(0.1)), r"expected OnlyAnswers\(search\) as it is"),
    ):
        with pytest.raises(TypeError, match=f"Averaged with a {type(search).__name__}: .*{nesting}"):
            Averaged(search, 2)


def test_what_is_no_search_is_refused(model):
    for given, name in (("x", "'x'"), (PGD, "the class PGD")):
        for make in (lambda given=given: Averaged(given, 2), lambda given=given: Transfer(model, given)):
            with pytest.raises(TypeError, match=f"(Averaged|Transfer) with {name}: expected a search, such as PGD"):
                make()


def test_a_search_that_draws_nothing_meets_the_same_draws_in_every_call(model, searched):
    """The generator is not moved, so that the draws of other searches do not depend on the batches."""
    noisy, generator = Noisy(model, 0.3), seeded()
    first, second = (Averaged(PGD(0.1, 0.02, 3), 2)(noisy, searched[:4], lambda e: e[:, 0], generator) for _ in "ab")
    assert torch.equal(first, second) and torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("n", [0, 2.5, True])
def test_an_impossible_number_of_draws_is_refused(n):
    with pytest.raises(ValueError, match="n=.*: expected a whole number of at least 1"):
        Averaged(PGD(0.1, 0.1, 1), n)
