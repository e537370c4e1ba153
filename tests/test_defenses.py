"""What is the same for all defenses: what the inner attack may touch, a budget, resumed trainings, and robustness."""

from copy import deepcopy

import pytest
import torch

from robret_lib import attacks, defenses, mining
from robret_lib.attacks import NES, PGD, AutoPGD, Averaged, embedding
from robret_lib.defenses import (
    CollapseAwareTriplets,
    Constant,
    DrawnRadius,
    FixedTargets,
    Gradual,
    HardnessManipulation,
    KeptNeighborhood,
    PanumTriplets,
    collapse,
)
from robret_lib.defenses.collapse import spread
from robret_lib.models import embed
from robret_lib.objectives import TripletObjective
from robret_lib.scores import robust_recall
from robret_lib.training import Schedule, train
from tests import small_hash_defenses
from tests.small_defenses import (
    BY_TRIPLETS,
    DEFENSES,
    IN_ALL_MODES,
    a_batch,
    a_defense,
    assert_resumes_bit_for_bit,
    at_the_beginning,
    exact_batch,
    shown_to,
)
from tests.small_retrieval import DEVICES, searched_in_itself, seeded, small_model, some_split, trained_model

LEFT_ALONE = PGD(0.0, 1.0, 1)
WITH_A_CLEAN_ANCHOR = ["rest", "act", "ramd", "panum", "ca_tride, candidates"]


def test_every_defense_there_is_is_tested_here_or_as_one_of_codes():
    made = {type(a_defense(name)).__name__ for name in DEFENSES}
    of_codes = {made.__name__ for made in small_hash_defenses.DEFENSES.values()} | {"AttackedCodes"}
    objectives = {name for name in defenses.__all__ if hasattr(getattr(defenses, name), "forward")}
    assert made | of_codes == objectives and not made & of_codes


@pytest.mark.parametrize("name", DEFENSES)
def test_without_a_budget_every_image_is_shown_as_it_is_bit_for_bit(name, searches):
    images, labels = a_batch()
    shown = shown_to(small_model(), a_defense(name, LEFT_ALONE), images, labels)
    assert (shown.flatten(1)[:, None] == images.flatten(1)).all(2).any(1).all()
    assert all(torch.equal(given, found) for given, found in searches) and searches


@pytest.mark.parametrize("name", [*BY_TRIPLETS])
def test_without_a_budget_it_is_the_plain_objective(name):
    """But for the shift of SES between equals, which is PyTorch's 1e-6 in each of 16 coordinates."""
    images, labels = a_batch()
    model = small_model()
    defended = a_defense(name, LEFT_ALONE, mining.hard)  # which draws nothing: what else is drawn does not matter
    plain = TripletObjective(mining.hard)(model, images, labels, seeded(3))
    torch.testing.assert_close(defended(model, images, labels, seeded(3)), plain, rtol=0, atol=5e-6)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_images_stay_in_the_budget_and_in_the_range_of_pixels(name, mode, random_start, searches):
    """Of images that touch both ends of that range."""
    images, labels = a_batch()
    images = (2 * images - 0.5).clamp(0, 1)
    assert (images == 0).any() and (images == 1).any()
    search = PGD(0.1, 0.04, 5, random_start=random_start)
    shown = shown_to(small_model(), a_defense(name, search, mode=mode), images, labels)
    ((given, moved),) = searches
    assert not torch.equal(moved, given)
    assert (moved - given).abs().max() <= 0.1 + 1e-6
    assert shown.min() >= 0 and shown.max() <= 1
    distances = (shown.flatten(1)[:, None] - images.flatten(1)).abs().amax(2)
    assert distances.amin(1).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("name", DEFENSES)
def test_the_roles_that_stay_clean_do(name):
    images, labels = a_batch()
    shown = shown_to(small_model(), a_defense(name), images, labels)
    if name in WITH_A_CLEAN_ANCHOR:
        assert torch.equal(shown[:6], images[0::2])
    elif name == "ca_tride, anchor":
        assert not torch.equal(shown[:6], images[0::2]) and torch.equal(shown[6:12], images[1::2])
    elif name in ("ses", "neighborhood"):  # the clean batch, and then the moved one
        assert torch.equal(shown[:12], images)
    else:  # in every role some have moved
        nearest = (shown.flatten(1)[:, None] - images.flatten(1)).abs().amax(2).amin(1)
        assert all((role > 0).any() for role in nearest.split(6))


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_the_inner_attack_touches_neither_weights_nor_modes_nor_statistics(name, mode):
    """But for the statistics that EST as published takes on purpose."""
    images, labels = a_batch()
    model, defense = small_model().train(), a_defense(name, mode=mode)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 0.5)
    weights = deepcopy(list(model.parameters()))
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    given = images.clone()
    defense(model, images, labels, seeded(3))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), weights, strict=True))
    assert all((weight.grad == 0.5).all() and weight.requires_grad for weight in model.parameters())
    kept = [torch.equal(value, buffers[key]) for key, value in model.named_buffers()]
    assert not any(kept) if (name, mode) == ("est", "reference") else all(kept)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(images, given)


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_no_gradient_goes_through_the_search(name, mode, monkeypatch):
    """That of the loss is the same where what was found is read from a list."""
    images, labels = exact_batch()
    model, found, search = small_model(seed=1).double(), [], PGD.__call__

    def noted(self, *given):
        found.append(search(self, *given))
        return found[-1]

    def gradients():
        loss = a_defense(name, mode=mode)(model, images, labels, seeded(3))
        return torch.autograd.grad(loss, list(model.parameters()))

    original = small_model().double()  # of "fare", whose targets are doubles then
    monkeypatch.setattr("tests.small_defenses.small_model", lambda *_: original)
    monkeypatch.setattr(PGD, "__call__", noted)
    expected = gradients()
    assert len(found) == 1 and not found[0].requires_grad
    monkeypatch.setattr(PGD, "__call__", lambda *_: found[0])
    assert all(torch.equal(*pair) for pair in zip(gradients(), expected, strict=True))
    assert any((gradient != 0).any() for gradient in expected)


@pytest.mark.parametrize(("name", "mode"), IN_ALL_MODES)
def test_all_draws_come_from_the_generator(name, mode):
    images, labels = a_batch()
    search, losses = PGD(0.1, 0.04, 3, random_start=True), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state, model, defense = torch.get_rng_state(), small_model(), a_defense(name, search, mode=mode)
        torch.set_rng_state(state)
        losses.append(defense(model, images, labels, seeded(3)))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", [name for name in DEFENSES if name not in BY_TRIPLETS])
def test_a_search_by_values_is_refused(name):
    """By the others, too: tests/test_inner.py."""
    for search in (NES(0.1), Averaged(NES(0.1), 2)):
        with pytest.raises(TypeError, match="expected a search by gradients|expected PGD"):
            a_defense(name, search)


@pytest.mark.parametrize("wrap", [lambda search: search, DrawnRadius], ids=["AutoPGD", "drawn radius"])
@pytest.mark.parametrize("name", [name for name in DEFENSES if "ca_tride" not in name])
def test_any_search_by_gradients_will_do_as_inner_attack(name, wrap):
    """CA-TRIDE, whose steps rise, needs `PGD`."""
    images, labels = a_batch()
    model, search = small_model(), wrap(AutoPGD(0.1, 4, random_start=True))
    shown = shown_to(model, a_defense(name, search), images, labels)
    nearest = (shown.flatten(1)[:, None] - images.flatten(1)).abs().amax(2).amin(1)
    assert 0.01 < nearest.max() <= 0.1 + 1e-6


@pytest.mark.parametrize(("name", "mode"), [case for case in IN_ALL_MODES if "ca_tride" not in case[0]])
def test_a_training_that_was_stopped_ends_bit_for_bit_as_if_undisturbed(name, mode, tmp_path):
    """CA-TRIDE's is in its own tests. The attack draws, too."""
    search = PGD(0.1, 0.05, 3, random_start=True)

    def make():
        if name == "neighborhood":
            return KeptNeighborhood(search, steps=12)
        return a_defense(name, search, mode=mode)

    assert_resumes_bit_for_bit(make, tmp_path)


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("device", DEVICES)
def test_it_trains(device, name):
    """FARE from other weights than the original's, where its loss would be the smallest already."""
    model = small_model(seed=int(name == "fare")).to(device)
    defense = at_the_beginning(a_defense(name, PGD(0.02, 0.01, 3)), 24)
    history = train(model, some_split(200, seed=20), defense, Schedule(24, 8, lr=1e-2), validate_every=6)
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


# Robustness: what they are for, on a network and a data set as small as can be

STEPS = 120
JUDGED_AT = 0.02


def in_three_steps(eps, random_start=False):
    return PGD(eps, 2.5 * eps / 3, 3, random_start=random_start)


LEARNING = {
    "est": lambda: a_defense("est", in_three_steps(0.06)),
    "ses": lambda: a_defense("ses", in_three_steps(0.02)),
    "rest": lambda: a_defense("rest", in_three_steps(0.06)),
    "act": lambda: a_defense("act", in_three_steps(0.06)),
    "ramd": lambda: a_defense("ramd", in_three_steps(0.02)),
    "panum": lambda: PanumTriplets(in_three_steps(0.02, random_start=True), mining.random),
    "hm": lambda: a_defense("hm", in_three_steps(0.04), mining.softhard),
    "hm with ics": lambda: HardnessManipulation(in_three_steps(0.04), invariance=0.5),
    "ca_tride": lambda: CollapseAwareTriplets(in_three_steps(0.02), STEPS),
    "neighborhood": lambda: KeptNeighborhood(in_three_steps(0.04, random_start=True), STEPS),
}
"""At the radii at which each gains something there; min-max and FARE have tests of their own."""


def judged(model):
    """Of each query, 1 where its first answer stays right."""
    return robust_recall(model, searched_in_itself(), JUDGED_AT, effort="quick").standing.double()


def trained_for(objective, model=None):
    model = model or small_model()
    train(model, some_split(1000, seed=20), objective, Schedule(STEPS, 32))
    return model


@pytest.fixture(scope="module")
def undefended():
    return trained_for(TripletObjective(mining.random))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_a_network_that_learns_to_resist_does(name, undefended):
    """Each by more than two standard errors of the difference, query by query."""
    gained = judged(trained_for(LEARNING[name]())) - judged(undefended)
    assert gained.mean() > 2 * gained.std() / len(gained) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["est", "ses", "rest"])
def test_what_learns_from_shifts_is_shifted_less(name, undefended):
    """In the row that it is made for, ES:D, and not by its smaller spread alone."""
    data = searched_in_itself()
    search, own = PGD(JUDGED_AT, JUDGED_AT / 4, 8), torch.arange(len(data.query))

    def shift_and_spread(model):
        gallery = attacks.Gallery.of(model, data.gallery.images, data.gallery.labels)
        found = attacks.run(embedding.EmbeddingShift(), model, data.query.images, gallery, search, own)
        return found.measured["shift"].mean(), spread(gallery.embeddings)

    before, after = map(shift_and_spread, (undefended, trained_for(LEARNING[name]())))
    assert after[0] < 0.9 * before[0]
    assert after[0] / after[1] < before[0] / before[1]


@pytest.mark.slow
def test_a_network_tuned_to_fixed_targets_resists_and_finds_what_it_found(undefended):
    """FARE."""
    objective = FixedTargets(in_three_steps(0.06, random_start=True), undefended)
    tuned = trained_for(objective, deepcopy(undefended))
    data = searched_in_itself()
    before, after = (robust_recall(model, data, JUDGED_AT, effort="quick") for model in (undefended, tuned))
    assert after.recall_at_1 > before.recall_at_1 + 2
    assert after.benign > before.benign - 5


@pytest.mark.slow
@pytest.mark.parametrize("collapses", [True, False])
def test_a_destination_of_zero_collapses_and_the_gradual_one_does_not(collapses):
    """HM[S, 0] against HM[S, g_LGA]: the history says so, and from which step on."""
    data = searched_in_itself()

    def signs(model):
        return collapse.signs(embed(model, data.gallery.images), data.gallery.labels, "N")

    defense = HardnessManipulation(in_three_steps(0.06), destination=Constant(0.0) if collapses else Gradual())
    schedule, model = Schedule(STEPS, 32, lr=3e-3), small_model()
    history = train(model, some_split(1000, seed=20), defense, schedule, validate=signs, validate_every=20)
    step = collapse.collapsed_at(history)
    assert 20 < step <= STEPS if collapses else step is None


@pytest.mark.slow
def test_min_max_collapses():
    """What was found by those who left it behind: it buys what robustness it has with the spread of its embeddings.

    On so small a network it gains no recall under attack at any radius that was tried. What it does lower is what it
    is trained for: the loss that its attacker can reach.
    """
    images, defense = some_split(300, seed=10).images, a_defense("min_max", in_three_steps(0.06))
    plain, hardened = trained_model(steps=STEPS), trained_for(defense)
    before, after = (spread(embed(model, images)) for model in (plain, hardened))
    assert after < before / 5
    batch = a_batch()
    reached = [defense(model, *batch, seeded(3)).item() for model in (plain, hardened)]
    assert reached[1] < reached[0] / 2
