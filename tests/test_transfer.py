"""Transfer: searched in the surrogate's space, measured in the model's, with the same targets."""

import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import PGD, AutoPGD, Benign, Gallery, OrderAttack, Transfer, embedding, ranking
from robret_lib.models import EmbeddingModel
from tests.small_retrieval import DEVICES, gallery_on, seeded, trained_model

OWN = torch.arange(0, 500, 5)
SEARCH = PGD(0.15, 0.03, 12)
ATTACKS = {
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
    "OA": OrderAttack(3),
}


@pytest.fixture(scope="module")
def surrogate():
    """With another dimension, another distance, and other weights."""
    torch.manual_seed(5)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 24)
    return trained_model("E", model=EmbeddingModel(nn.Sequential(*layers), "E"))


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_surrogate_that_is_the_model_gives_the_white_box_attack(attack, model, gallery, searched):
    arguments = attack, model, searched[OWN], gallery
    direct = attacks.run(*arguments, SEARCH, OWN, generator=seeded())
    transferred = attacks.run(*arguments, Transfer(model, SEARCH), OWN, generator=seeded())
    assert torch.equal(direct.images, transferred.images)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_images_are_those_of_an_attack_on_the_surrogate(attack, model, gallery, searched, surrogate):
    """With the surrogate's own gallery; targets that depend on the neighbors remain those that the model sees."""
    its_gallery = Gallery.of(surrogate, searched, gallery.labels)
    direct = attacks.run(attack, surrogate, searched[OWN], its_gallery, SEARCH, OWN, generator=seeded())
    transferred = attacks.run(
        attack, model, searched[OWN], gallery, Transfer(surrogate, SEARCH), OWN, generator=seeded()
    )
    white_box = attacks.run(attack, model, searched[OWN], gallery, SEARCH, OWN, generator=seeded())
    if transferred.targets is None or torch.equal(transferred.targets, direct.targets):
        assert torch.equal(direct.images, transferred.images)
    if transferred.targets is not None:
        assert torch.equal(transferred.targets, white_box.targets)


def test_a_gallery_that_is_given_is_not_embedded_again(model, gallery, searched, surrogate):
    its_gallery = Gallery.of(surrogate, searched, gallery.labels)
    without_images = Gallery(gallery.embeddings, gallery.distance, gallery.labels)
    arguments = embedding.Margin(), model, searched[OWN]
    embedded, given = (
        attacks.run(*arguments, there, Transfer(surrogate, SEARCH, known), OWN, generator=seeded())
        for there, known in ((gallery, None), (without_images, its_gallery))
    )
    assert torch.equal(given.images, embedded.images)
    half = Gallery.of(surrogate, searched[:250])
    with pytest.raises(ValueError, match="the surrogate's gallery has 250 items, the attacked 500"):
        attacks.run(*arguments, gallery, Transfer(surrogate, SEARCH, half), OWN)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_it_hurts_less_than_the_white_box_and_more_than_nothing(device, attack, models, galleries, searched, surrogate):
    model, gallery, surrogate = models["N"].to(device), gallery_on(device, galleries["N"]), surrogate.to(device)

    def change(search):
        result = attacks.run(attack, model, searched[OWN], gallery, search, OWN, generator=seeded())
        name = list(result.measured)[0]
        return (result.measured[name] - result.benign[name]).double().mean().abs()

    white_box, transferred = change(SEARCH), change(Transfer(surrogate, SEARCH))
    model.cpu(), surrogate.cpu()
    assert white_box > transferred > 0.05 * white_box


def test_queries_from_outside_are_embedded_by_the_surrogate_too(model, gallery, searched, surrogate):
    images = (searched[:30] + 0.05).clamp(max=1)
    result = attacks.run(
        embedding.Margin(), model, images, gallery, Transfer(surrogate, AutoPGD(0.2, 8)), labels=gallery.labels[:30]
    )
    assert result.measured["recall_at_1"].mean() < result.benign["recall_at_1"].mean()


def test_a_gallery_without_images_and_a_loss_of_one_s_own_are_refused(model, gallery, searched, surrogate):
    bare = Gallery(gallery.embeddings, labels=gallery.labels)
    with pytest.raises(
        ValueError, match="the gallery has no images to embed with the surrogate: build it by Gallery.of"
    ):
        attacks.run(embedding.Margin(), model, searched[:4], bare, Transfer(surrogate, SEARCH), torch.arange(4))
    with pytest.raises(TypeError, match="Transfer needs a loss that can be rebuilt for the surrogate"):
        Transfer(surrogate, SEARCH)(model, searched[:4], lambda embeddings: embeddings[:, 0])


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_the_preserved_set_is_that_of_the_attacked_model(direction, model, gallery, searched, surrogate):
    """What is kept on top is what its users see, not what the surrogate would show."""
    attack = ranking.SemanticsPreservingQueryAttack(direction, stiffness=300.0)
    benign = Benign(gallery, gallery.embeddings[OWN], OWN)
    targets = attack.targets(benign, seeded())
    its_gallery = Gallery.of(surrogate, searched)
    elsewhere = Benign(its_gallery, its_gallery.embeddings[OWN], OWN, attacked=benign)
    preserved = [ranking._preserved_set(each, targets, direction) for each in (benign, elsewhere)]
    assert torch.equal(*preserved)
    assert torch.equal(ranking._preserved_set(elsewhere[10:20], targets[10:20], direction), preserved[0][10:20])
    result = attacks.run(attack, model, searched[OWN], gallery, Transfer(surrogate, SEARCH), OWN, generator=seeded())
    assert torch.equal(result.targets, targets)


def test_a_surrogate_without_a_distance_is_refused():
    with pytest.raises(TypeError, match="a model of type Flatten has no distance: wrap it in models"):
        Transfer(nn.Flatten(), SEARCH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_surrogate_elsewhere_is_refused(models, galleries, searched, surrogate):
    model, gallery = models["N"].cuda(), gallery_on("cuda", galleries["N"])
    with pytest.raises(ValueError, match="the surrogate is on cpu, the gallery on cuda:0: move one of them"):
        attacks.run(embedding.Margin(), model, searched[:4], gallery, Transfer(surrogate, SEARCH), torch.arange(4))
    model.cpu()
