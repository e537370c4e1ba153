"""Searches that see values only: the budget, the loop, and each of the five against a slow obvious version."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import NES, PSO, SPSA, AutoPGD, Benign, Beta, RandomSearch, embedding, ranking
from robret_lib.attacks.search.draws import Draws, seeds_for
from robret_lib.attacks.search.parts import Parts
from robret_lib.attacks.search.space import Space
from robret_lib.models import embed
from tests.small_retrieval import DEVICES, SIZE, gallery_on, seeded, some_split

EPS = 0.1
ERS = {
    "CA+": ranking.CandidateAttack("raise"),
    "CA-": ranking.CandidateAttack("lower"),
    "QA+": ranking.QueryAttack("raise"),
    "QA-": ranking.QueryAttack("lower"),
    "TMA": embedding.TargetedMismatch(),
    "ES": embedding.EmbeddingShift(),
    "LTM": embedding.LearningToMisrank(),
    "GTM": embedding.GreedyTop1Misrank(),
    "GTT": embedding.GreedyTop1Translocation(),
    "margin": embedding.Margin(),
}
SEARCHES = {"Rand": RandomSearch, "Beta": Beta, "PSO": PSO, "NES": NES, "SPSA": SPSA}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


def some_images(count=6, *shape, seed=0, dtype=torch.float32):
    return torch.rand(count, *(shape or (1, 5, 4)), generator=seeded(seed), dtype=dtype)


class Counting:
    """A loss for each image, linear in its pixels, in float64, and how often each was asked for."""

    def __init__(self, images, seed=1):
        self.slopes = torch.randn(images.shape, generator=seeded(seed), dtype=torch.float64)
        self.asked = torch.zeros(len(images), dtype=torch.int64)
        self.seen = []

    def __call__(self, images, rows):
        self.asked += torch.bincount(rows, minlength=len(self.asked))
        self.seen.append((images, rows))
        return (images * self.slopes[rows]).flatten(1).sum(1)


# The budget


@every_search
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 40, 41, 42, 43, 51, 52, 53, 101, 137])
def test_the_budget_is_used_and_never_exceeded(search, queries):
    images = some_images()
    values = Counting(images)
    search(EPS, queries).minimize(images, values, seeded())
    spent = queries - (search in (NES, SPSA) and queries > 2 and queries % 2)  # of pairs, one look cannot be half
    assert values.asked.tolist() == [spent] * len(images)


@every_search
def test_the_first_look_is_at_the_image_and_the_best_one_is_returned(search):
    images = some_images()
    values = Counting(images)
    found = search(EPS, 120).minimize(images, values, seeded())
    first_images, first_rows = values.seen[0]
    assert torch.equal(first_images, images[: len(first_rows)])
    everything, rows = (torch.cat(parts) for parts in zip(*values.seen, strict=True))
    for row, image in enumerate(found):
        looked_at = everything[rows == row]
        losses = Counting(images)(looked_at, torch.full((len(looked_at),), row))
        assert torch.equal(image, looked_at[losses.argmin()])
    assert torch.equal(search(EPS, 1).minimize(images, values, seeded()), images)


@every_search
def test_an_image_that_is_good_enough_is_not_asked_for_again(search):
    """And what becomes of the others does not depend on it."""
    images = some_images()
    goals = Counting(images)
    all_of_them = search(EPS, 300).minimize(images, goals, seeded())
    reached = goals(all_of_them, torch.arange(len(images)))
    stop = (reached.sort().values[2] + 1e-3).item()
    values = Counting(images)
    stopped = search(EPS, 300, stop_below=stop).minimize(images, values, seeded())
    done = reached <= stop
    assert 0 < done.sum() < len(images)
    assert (values.asked[~done] >= 299).all() and (values.asked[done] < 299).any()
    assert torch.equal(stopped[~done], all_of_them[~done])
    assert (values(stopped, torch.arange(len(images)))[done] <= stop).all()
    at_once = Counting(images)
    assert torch.equal(search(EPS, 300, stop_below=1e9).minimize(images, at_once, seeded()), images)
    assert at_once.asked.tolist() == [1] * len(images)


@every_search
def test_more_queries_are_never_weaker(search):
    """The same draws come first: a longer search has seen all that a shorter one saw, but where it stood at its end."""
    images = some_images()
    rows = torch.arange(len(images))
    short, long, longest = (
        Counting(images)(search(EPS, queries).minimize(images, Counting(images), seeded()), rows)
        for queries in (101, 1001, 2001)
    )
    assert longest.mean() <= long.mean() < short.mean()
    if search not in (NES, SPSA):
        assert (long <= short).all() and (longest <= long).all()


# The ball


@every_search
@pytest.mark.parametrize("grid", ["auto", None, (2, 3), (1, 1), (9, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_asked_for_is_in_the_ball(search, grid, dtype):
    images = some_images(4, 2, 5, 7, dtype=dtype).round()  # black or white: half of the ball is outside of [0, 1]
    values = Counting(images)
    found = search(EPS, 150, grid=grid).minimize(images, values, seeded())
    assert found.dtype == dtype
    for looked_at, rows in [*values.seen, (found, torch.arange(4))]:
        assert (looked_at - images[rows]).abs().max() <= EPS + 1e-6
        assert looked_at.min() >= 0 and looked_at.max() <= 1


@every_search
def test_a_radius_of_zero_returns_the_images_unasked(search):
    images = some_images()
    values = Counting(images)
    assert torch.equal(search(0.0).minimize(images, values, seeded()), images)
    assert not values.asked.any()


@every_search
def test_a_coarse_grid_shifts_whole_cells(search):
    """Nearest upsampling, also to sizes that do not divide; by default for large images alone."""
    images = torch.full((2, 3, 50, 45), 0.5)
    shifts = search(EPS, 60).minimize(images, Counting(images), seeded()) - images
    down, across = torch.arange(50) * 32 // 50, torch.arange(45) * 32 // 45
    for i in range(49):
        assert torch.equal(shifts[:, :, i], shifts[:, :, i + 1]) == (down[i] == down[i + 1]).item()
    for j in range(44):
        assert torch.equal(shifts[..., j], shifts[..., j + 1]) == (across[j] == across[j + 1]).item()
    for shape in ((1, 31, 31), (3, 32, 32)):  # below 1,000 numbers, and no larger than the grid
        assert not Space(torch.zeros(1, *shape), EPS, "auto").reduced
    assert Space(torch.zeros(1, 1, 40, 33), EPS, "auto").shape == (1, 32, 32)
    assert Space(torch.zeros(1, 3, 33, 32), EPS, "auto").shape == (3, 33, 32)


# Batches


@every_search
def test_batches_do_not_matter(search):
    """Images come a few at a time, and each has its own draws."""
    images = some_images(17)
    together = search(EPS, 130).minimize(images, Counting(images), seeded())
    goals, generator = Counting(images), seeded()
    one_by_one = [
        search(EPS, 130).minimize(images[i : i + 1], lambda x, rows, i=i: goals(x, rows + i), generator)
        for i in range(17)
    ]
    assert torch.equal(together, torch.cat(one_by_one))
    assert not torch.equal(together, search(EPS, 130).minimize(images, Counting(images), seeded(1)))


@every_search
def test_without_a_generator_the_global_one_draws(search):
    images = some_images()
    torch.manual_seed(3)
    first = search(EPS, 60).minimize(images, Counting(images))
    torch.manual_seed(3)
    assert torch.equal(first, search(EPS, 60).minimize(images, Counting(images)))


@every_search
@pytest.mark.parametrize("name", ["margin", "QA+"])
def test_batches_of_the_run_do_not_matter(search, name, model, gallery, searched):
    """What differs is the last bit of an embedding, and with it the winner among equals."""
    attack = {"margin": embedding.Margin(), "QA+": ranking.QueryAttack("raise", n_targets=2)}[name]
    own = torch.arange(0, 300, 25)
    results = [
        attacks.run(
            attack, model, searched[own], gallery, search(EPS, 120), own, generator=seeded(), batch_size=batch_size
        )
        for batch_size in (1, 5, 256)
    ]
    for result in results[1:]:
        assert torch.equal(result.targets, results[0].targets) if result.targets is not None else True
        same = (result.images == results[0].images).flatten(1).all(1).double().mean()
        assert same >= 0.75
    assert all(result.passes in (119, 120) and not result.backward_passes for result in results)


@every_search
def test_each_loss_belongs_to_its_own_image(search, model, gallery, searched):
    """In a population every image keeps its own, with the loss of the run and with any other."""
    own = torch.arange(0, 500, 45)

    def loss_fn(embeddings):
        """That to the image's own embedding."""
        return -(embeddings - gallery.embeddings[own]).norm(dim=1)

    found = search(EPS, 150)(model, searched[own], loss_fn, seeded())
    moved = (model(found) - gallery.embeddings[own]).norm(dim=1)
    arguments = embedding.EmbeddingShift(), model, searched[own], gallery, search(EPS, 150), own
    once = attacks.run(*arguments, generator=seeded()).measured
    assert moved.min() > 0.5 * once["shift"].mean()


def test_parts_of_a_plain_loss_are_those_of_the_whole():
    weights = torch.rand(5, 3, generator=seeded(2), dtype=torch.float64)

    def loss_fn(embeddings):
        assert len(embeddings) == 5
        return (embeddings * weights).sum(1)

    rows = torch.tensor([3, 3, 0, 4, 3, 0])
    embeddings = torch.rand(6, 3, generator=seeded(3), dtype=torch.float64)
    found = Parts(loss_fn, 5).of(rows)(embeddings)
    assert torch.allclose(found, (embeddings * weights[rows]).sum(1))


@pytest.mark.parametrize(
    "attack", [ranking.CandidateAttack("lower"), ranking.QueryAttack("raise"), embedding.Margin()], ids=lambda a: str(a)
)
def test_a_part_of_a_run_s_loss_is_the_loss_of_these_images(attack, model, gallery, searched):
    own, seen = torch.arange(0, 500, 50), {}

    def nothing(model, images, loss_fn, generator):
        seen["loss"] = loss_fn
        return images

    attacks.run(attack, model, searched[own], gallery, nothing, own, generator=seeded(), batch_size=6)  # rows 6 to 9
    loss_fn = seen["loss"]
    rows = torch.tensor([3, 0, 0, 2, 3])
    embeddings = torch.nn.functional.normalize(torch.randn(4, 16, generator=seeded(4)), dim=1)
    part, whole = loss_fn.part(rows), loss_fn(embeddings)
    assert torch.allclose(part(embeddings[rows]), whole[rows], atol=1e-6)
    assert torch.allclose(part.part(torch.tensor([4, 1]))(embeddings[[3, 0]]), whole[[3, 0]], atol=1e-6)
    assert part.at_once == 256


def test_a_wide_attack_on_a_large_gallery_is_planned_for_few_images_at_once(model, gallery, monkeypatch):
    monkeypatch.setattr(sys.modules["robret_lib.attacks.run"], "PLAN_BYTES", 2**23)
    sizes = []

    def spy(model, images, loss_fn, generator):
        planned = loss_fn.part
        loss_fn.part = lambda rows: sizes.append(len(rows)) or planned(rows)
        return RandomSearch(EPS, 101, population=100)(model, images, loss_fn, generator)

    attack = ranking.CandidateAttack("raise", n_targets=20)
    result = attacks.run(attack, model, some_split(2, seed=1).images, gallery, spy, generator=seeded())
    assert max(sizes) == 2**23 // (20 * SIZE * 40) == 20
    assert result.passes == 101


@pytest.mark.parametrize("population", [50, 300, 600])
def test_an_image_is_planned_once_for_the_first_look_and_once_for_all_steps(population, model, gallery, searched):
    planned = []

    def spy(model, images, loss_fn, generator):
        part = loss_fn.part
        loss_fn.part = lambda rows: planned.append(rows) or part(rows)
        return RandomSearch(EPS, 4 * population + 1, population)(model, images, loss_fn, generator)

    own = torch.arange(1)
    result = attacks.run(embedding.Margin(), model, searched[own], gallery, spy, own, generator=seeded())
    assert len(planned) == 2 and result.passes == 4 * population + 1


def test_fewer_of_what_is_planned_have_the_same_loss(model, gallery, searched):
    own, seen = torch.arange(4), {}

    def nothing(model, images, loss_fn, generator):
        seen["loss"] = loss_fn
        return images

    attacks.run(ranking.QueryAttack("raise"), model, searched[own], gallery, nothing, own, generator=seeded())
    parts, rows, embeddings = Parts(seen["loss"], 4), torch.tensor([2, 2, 2, 2, 0, 0]), gallery.embeddings[100:106]
    whole = parts.of(rows)(embeddings)
    parts.loss_fn.part = None  # nothing is planned any more
    for count in (1, 4, 5):
        torch.testing.assert_close(parts.of(rows[:count])(embeddings[:count]), whole[:count])


# The five searches


def test_random_search_draws_uniformly_from_the_ball():
    images = torch.full((1, 1, 4, 4), 0.5)
    values = Counting(images)
    RandomSearch(EPS, 2001).minimize(images, values, seeded())
    shifts = (torch.cat([seen for seen, _ in values.seen[1:]]) - images).flatten() / EPS
    quantiles = shifts.quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([-0.8, 0.0, 0.8]), atol=0.02)


def by_hand(search, images, seed, queries, pairs):
    """The steps of `NES` or `SPSA` on one image in float64, the noise drawn as theirs is."""
    values, draws = Counting(images), Draws(seeds_for(1, seeded(seed)), images)
    x = images.double()
    running, place = torch.zeros_like(x[0]), x[0].clone()
    row = torch.zeros(1, dtype=torch.int64)
    for _ in range((queries - 2) // (2 * pairs)):
        noise = search.noise(draws, pairs, tuple(images.shape[1:]))[0].double()
        gradient = torch.zeros_like(running)
        for n in noise:
            ahead, behind = ((place + sign * n).clamp(x - EPS, x + EPS).clamp(0, 1) for sign in (1, -1))
            gradient += (values(ahead, row) - values(behind, row)) * n / pairs
        running = search.momentum * running + (1 - search.momentum) * gradient
        place = (place - search.step * running.sign()).clamp(x[0] - EPS, x[0] + EPS).clamp(0, 1)
    return place


@pytest.mark.parametrize("search", [NES(EPS, 322, population=20, step=0.02), SPSA(EPS, 322, population=20, step=0.02)])
def test_antithetic_steps_as_by_hand(search):
    images = some_images(1, 1, 4, 4, dtype=torch.float64)
    values = Counting(images)
    search.minimize(images, values, seeded(5))
    last, _ = values.seen[-1]
    assert len(last) == 1  # the last look is where it stands
    assert torch.allclose(last[0], by_hand(search, images, 5, 322, 10), atol=1e-9)


def test_the_estimated_gradient_of_a_linear_loss_is_its_slope():
    images = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    slope = torch.randn(16, generator=seeded(6), dtype=torch.float64)
    for search in (NES(0.1, population=20_000, sigma=0.3), SPSA(0.1, population=20_000)):
        strategy = search.start(Space(images, 0.1, None), Draws(seeds_for(1, seeded()), images))
        shifts = strategy.ask(20_000)
        strategy.tell(shifts, (shifts.flatten(2) @ slope).double() + 1e6)  # an offset costs no digits
        found = strategy.average.flatten()
        assert torch.cosine_similarity(found, slope, dim=0) > 0.99


def test_the_published_noise_is_close_to_signs():
    """Twice the radius, clipped to it: 62 % of the numbers are at the bound."""
    noise = NES(EPS).noise(Draws(seeds_for(1, seeded()), torch.zeros(1, 1)), 10_000, (1, 2, 2))
    assert (noise.abs() == np.float32(EPS)).double().mean().item() == pytest.approx(0.617, abs=0.01)
    assert SPSA(EPS).noise(Draws(seeds_for(1, seeded()), torch.zeros(1, 1)), 9, (3,)).abs().unique().tolist() == [
        pytest.approx(2 / 255)
    ]


@pytest.mark.parametrize("standardized", [True, False])
def test_beta_steps_along_the_score_function(standardized):
    """The slope of log p by PyTorch, at parameters away from where it starts."""
    images = torch.full((2, 1, 2, 3), 0.5, dtype=torch.float64)
    strategy = Beta(EPS, standardized=standardized).start(
        Space(images, EPS, None), Draws(seeds_for(2, seeded()), images)
    )
    strategy.a = 0.5 + 2 * torch.rand(strategy.a.shape, generator=seeded(1), dtype=torch.float64)
    strategy.b = 0.5 + 2 * torch.rand(strategy.a.shape, generator=seeded(2), dtype=torch.float64)
    a, b = strategy.a.clone().requires_grad_(), strategy.b.clone().requires_grad_()
    shifts = strategy.ask(4)
    losses = torch.rand(2, 4, generator=seeded(3), dtype=torch.float64)
    scores = -losses
    if standardized:
        scores = (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)
    expected = [torch.zeros_like(a), torch.zeros_like(a)]
    for member in range(4):
        log = torch.distributions.Beta(a, b).log_prob((shifts[:, member] / EPS + 1) / 2)
        for total, slope in zip(expected, torch.autograd.grad(log.sum(), (a, b)), strict=True):
            total += (scores[:, member, None, None, None] * slope).clamp(-5, 5) / 4
    strategy.tell(shifts, losses)
    assert torch.allclose(strategy.a, (a + 0.5 * expected[0]).clamp(1e-7, 1e3).detach(), atol=1e-6)
    assert torch.allclose(strategy.b, (b + 0.5 * expected[1]).clamp(1e-7, 1e3).detach(), atol=1e-6)


def test_a_beta_distribution_at_its_bounds_stays_finite():
    images = torch.full((1, 1, 2, 2), 0.5)
    strategy = Beta(EPS).start(Space(images, EPS, None), Draws(seeds_for(1, seeded()), images))
    strategy.a, strategy.b = torch.full_like(strategy.a, 1e-7), torch.full_like(strategy.b, 1e-7)
    for _ in range(5):
        shifts = strategy.ask(10)
        assert shifts.isfinite().all()
        strategy.tell(shifts, shifts.flatten(2).sum(2).double())
    assert strategy.a.isfinite().all() and strategy.b.isfinite().all()


def test_published_beta_scores_depend_on_the_offset_of_the_loss_and_ours_do_not():
    images = some_images(4)
    found = {}
    for standardized in (True, False):
        search = Beta(EPS, 300, standardized=standardized)
        for offset in (0, 64):
            values = Counting(images)
            found[standardized, offset] = search.minimize(
                images, lambda x, rows, v=values, c=offset: (64 * v(x, rows)).round() / 64 + c, seeded()
            )
    assert torch.equal(found[True, 0], found[True, 64])
    assert not torch.equal(found[False, 0], found[False, 64])


def test_a_swarm_moves_as_by_hand():
    """Particle by particle, in NumPy."""
    images = some_images(1, 1, 3, 3, dtype=torch.float64)
    search, values = PSO(EPS, 4 * 7 + 1, population=7), Counting(images)
    search.minimize(images, values, seeded(8))
    draws, shape = Draws(seeds_for(1, seeded(8)), images), (7, 1, 3, 3)
    uniform = lambda: draws.uniform(*shape)[0].numpy()  # noqa: E731
    lower = np.maximum(images[0].numpy() - EPS, 0) - images[0].numpy()
    upper = np.minimum(images[0].numpy() + EPS, 1) - images[0].numpy()
    places = np.clip(EPS * (2 * uniform() - 1), lower, upper)
    velocities = 2 * EPS * (2 * uniform() - 1)
    best, best_losses = places.copy(), np.full(7, np.inf)
    for step in range(4):
        if step:
            leader = best[best_losses.argmin()]
            own, common = uniform(), uniform()
            for i in range(7):
                pulled = 0.57 * own[i] * (best[i] - places[i]) + 0.44 * common[i] * (leader - places[i])
                velocities[i] = 1.10 * velocities[i] + pulled
                places[i] = np.clip(places[i] + velocities[i], lower, upper)
        looked_at = torch.from_numpy(places) + images
        assert torch.allclose(values.seen[1 + step][0], looked_at, atol=1e-9)
        losses = Counting(images)(looked_at, torch.zeros(7, dtype=torch.int64)).numpy()
        for i in range(7):
            if losses[i] < best_losses[i]:
                best[i], best_losses[i] = places[i], losses[i]


@pytest.mark.parametrize("search", [Beta, PSO, NES, SPSA])
def test_every_search_beats_random_search(search):
    """On a smooth loss, at the same number of queries."""
    images = some_images(12, 1, 8, 8)
    rows = torch.arange(12)
    reached = {
        kind: Counting(images)(kind(EPS, 1000).minimize(images, Counting(images), seeded()), rows).mean()
        for kind in (RandomSearch, search)
    }
    assert reached[search] < 0.9 * reached[RandomSearch]


# Attacks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attack", ERS.values(), ids=ERS)
def test_nes_on_values_beats_noise_and_loses_to_gradients(attack, device, models, galleries, searched):
    own = torch.arange(0, 500, 40)
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])

    results = [
        attacks.run(attack, model, searched[own], gallery, search, own, generator=seeded())
        for search in (RandomSearch(EPS, 1), RandomSearch(EPS, 322), NES(EPS, 322, step=EPS / 4), AutoPGD(EPS, 16))
    ]
    model, gallery = model.cpu(), galleries["N"]
    plan = attack.plan(Benign(gallery, gallery.embeddings[own], own, gallery.labels[own]), results[0].targets)
    nothing, random, nes, gradients = (plan.loss(embed(model, result.images)).mean() for result in results)
    assert nothing > random > nes > gradients


# What is refused


def test_what_makes_no_sense_is_refused():
    for make, message in (
        (lambda: RandomSearch(8), r"eps=8: expected pixel units, black is 0 and white is 1; 8/255 is meant\?"),
        (lambda: Beta(0.1, 0), "queries=0: expected a whole number of at least 1"),
        (lambda: PSO(0.1, population=0), "population=0: expected a whole number of at least 1"),
        (lambda: NES(0.1, population=51), "population=51: expected an even number, half of it looks the other way"),
        (lambda: SPSA(0.1, momentum=1), "momentum=1: expected at least 0 and less than 1"),
        (lambda: SPSA(0.1, step=2), "step=2: expected pixel units"),
        (lambda: RandomSearch(0.1, grid=(0, 4)), "grid=0: expected a whole number of at least 1"),
        (lambda: RandomSearch(0.1, grid=32), r"grid=32: expected height and width, such as \(32, 32\), or 'auto', or"),
        (lambda: RandomSearch(0.1, grid="fine"), "grid='fine': expected height and width"),
        (lambda: RandomSearch(0.1, grid=(32,)), r"grid=\(32,\): expected height and width"),
        (lambda: RandomSearch(0.1, stop_below=np.nan), "stop_below=nan: expected a finite number"),
        (lambda: NES(0.1, sigma=0), "sigma=0: expected a finite number above 0"),
        (lambda: NES(0.1, sigma=np.nan), "sigma=nan: expected a finite number above 0"),
        (lambda: SPSA(0.1, sigma=8), r"sigma=8: expected pixel units, black is 0 and white is 1; 8/255 is meant\?"),
        (lambda: SPSA(0.1, sigma=0), "sigma=0: expected a length above 0"),
        (lambda: SPSA(0.1, step=0), "step=0: expected a length above 0"),
        (lambda: Beta(0.1, step=-1), "step=-1: expected a finite number above 0"),
        (lambda: PSO(0.1, inertia=np.nan), "inertia=nan: expected a finite number of at least 0"),
        (lambda: PSO(0.1, own=-1), "own=-1: expected a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


class Unknown(nn.Module):
    def forward(self, images):
        return images.flatten(1) * torch.nan


@every_search
def test_normalized_images_and_nan_are_noticed(search):
    images = some_images()
    with pytest.raises(ValueError, match=r"expected \[0, 1\]; pixel normalization belongs inside the model"):
        search(EPS).minimize(images * 3 - 1, Counting(images), seeded())
    with pytest.raises(FloatingPointError, match="became NaN"):
        search(EPS, 100).minimize(images, lambda x, rows: (x.flatten(1).sum(1) - 1e9).sqrt(), seeded())
    with pytest.raises(FloatingPointError, match="the model's embedding of 6 attacked images is NaN: does it divide"):
        search(EPS, 1, population=2)(Unknown(), images, lambda embeddings: embeddings[:, 0], seeded())


@every_search
def test_the_model_is_left_as_it_was(search):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(EPS, 100)(model, some_images(), lambda embeddings: embeddings[:, 0], seeded())
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
