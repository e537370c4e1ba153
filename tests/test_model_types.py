"""Models of any floating type, in any default type, in any wrapper: the same attacks, metrics and checks."""

import copy

import pytest
import torch
import torchvision
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from robret_lib import attacks, checks, recipes
from robret_lib.attacks import AutoPGD, Averaged, Gallery, Transfer, embedding
from robret_lib.attacks.search.passes import NanWatch, losses_and_gradient
from robret_lib.data import RetrievalData
from robret_lib.metrics import recall_at_k
from robret_lib.models import EmbeddingModel, distance_of, embed, embeddings_of
from robret_lib.scores import robust_recall
from tests.small_retrieval import SIZE, searched_in_itself, seeded, small_model, some_split, trained_model
from tests.test_attack_matrix import ATTACKS

TYPES = [torch.float64, torch.float16, torch.bfloat16]
OWN = torch.arange(0, SIZE, 13)


@pytest.fixture(params=TYPES, ids=str)
def default_type(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def retyped(model, kind):
    return copy.deepcopy(model).to(kind)


def attacked(name, model, searched, labels, search, generator):
    gallery = Gallery.of(model, searched, labels)
    return attacks.run(ATTACKS[name], model, searched[OWN], gallery, search, OWN, generator=generator)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_a_model_of_another_type_finds_what_it_finds_in_float32(name, kind, models, searched_split):
    """The digits of half precision cost some strength, but no attack stands still."""
    arguments = searched_split.images, searched_split.labels, AutoPGD(0.1, 8)
    expected = attacked(name, models["N"], *arguments, seeded())
    found = attacked(name, retyped(models["N"], kind), *arguments, seeded())
    assert found.images.dtype == torch.float32
    assert (found.images - searched_split.images[OWN]).abs().max() <= 0.1 + 1e-6
    for measure, values in expected.measured.items():
        won = (values - expected.benign[measure]).mean()
        won_here = (found.measured[measure] - found.benign[measure]).mean()
        tolerance = {torch.float64: 0.1, torch.float16: 0.3, torch.bfloat16: 0.5}[kind]
        assert abs(won_here - won) <= tolerance * abs(won) + 2, measure


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_under_another_default_type_is_the_same(name, default_type, models, searched_split):
    search = Averaged(AutoPGD(0.1, 3, restarts=2), 2)
    found = attacked(name, models["N"], searched_split.images, searched_split.labels, search, seeded())
    torch.set_default_dtype(torch.float32)
    expected = attacked(name, models["N"], searched_split.images, searched_split.labels, search, seeded())
    assert torch.equal(found.images, expected.images)
    assert all(torch.equal(found.measured[name], values) for name, values in expected.measured.items())


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_surrogate_of_another_type(kind, models, searched_split):
    search = Transfer(retyped(models["E"], kind), AutoPGD(0.1, 4))
    found = attacked("soft margin", models["N"], searched_split.images, searched_split.labels, search, seeded())
    assert found.measured["recall_at_1"].mean() < found.benign["recall_at_1"].mean()


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_scores_and_metrics_of_a_model_of_another_type(kind, models):
    data = searched_in_itself(120)
    outcome = robust_recall(retyped(models["N"], kind), data, 0.05, queries=40, effort="quick")
    assert outcome.recall_at_1 < outcome.benign
    embeddings = embed(retyped(models["N"], kind), data.query.images).to(kind)
    found, expected = (
        recall_at_k(e, e, data.query.labels, data.query.labels, self_excluded=True)[1]
        for e in (embeddings, embed(models["N"], data.query.images))
    )
    assert found == pytest.approx(expected, abs=5 if kind == torch.bfloat16 else 1)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_the_checks_take_models_of_another_type(kind, models, searched):
    report = checks.inspect(retyped(models["N"], kind).eval(), searched[:32])
    assert report.ok, report


def test_a_float64_model_is_trained_in_float64():
    model = trained_model(steps=3, model=small_model().double())
    assert all(weight.dtype == torch.float64 for weight in model.parameters())


def test_recipes_train_the_same_model_under_another_default_type(default_type, tmp_path, monkeypatch):
    recipe = recipes.Recipe("c2f2_half", embedding_dim=8, steps=2, pairs=4)
    images = torch.randint(256, (40, 1, 28, 28), generator=seeded(), dtype=torch.uint8)
    split = type(some_split(1, 0))(images, torch.arange(40) % 4)
    data = RetrievalData("toy", split, split, split, tuple("abcd"), searched_in_itself().protocol)
    found = {}
    for kind in (default_type, torch.float32):
        torch.set_default_dtype(kind)
        monkeypatch.setenv("ROBRET_DATA", str(tmp_path / str(kind)))
        found[kind] = recipes.trained(recipe, data, torch.device("cpu")).model.state_dict()
    for name, weight in found[torch.float32].items():
        assert torch.equal(weight, found[default_type][name]) and weight.dtype == torch.float32


def test_half_precision_neither_loses_a_small_gradient_nor_overflows_at_a_large_one(models, searched):
    model, nan = retyped(models["N"], torch.float16), NanWatch(searched.device)
    _, expected = losses_and_gradient(model, searched[:4], lambda e: e[:, 0], nan)
    for scale in (1e-9, 1e9):
        loss, gradient = losses_and_gradient(model, searched[:4], lambda e, scale=scale: scale * e[:, 0], nan)
        torch.testing.assert_close(gradient / scale, expected, rtol=2e-2, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_images_of_half_precision_are_refused_by_a_search(kind, models, searched):
    """A step of 1/255 is lost in them; a model of that type is given its own."""
    with pytest.raises(ValueError, match="float32 or float64 also for a model of half precision"):
        AutoPGD(0.1, 2)(models["N"], searched[:4].to(kind), lambda e: e[:, 0])


def test_a_model_built_under_inference_mode_is_named(searched):
    with torch.inference_mode():
        model = small_model()
    with pytest.raises(RuntimeError, match="built under torch.inference_mode"):
        AutoPGD(0.1, 2)(model, searched[:4], lambda e: e[:, 0])


class Keeps(nn.Module):
    """A network whose answer a library packs into something."""

    def __init__(self, network, pack):
        super().__init__()
        self.network, self.pack = network, pack

    def forward(self, images):
        return self.pack(self.network(images))


@pytest.mark.parametrize(
    ("message", "pack"),
    [
        ("Keeps returned a tuple: expected a tensor", lambda e: (e, e)),
        ("Keeps returned a dict: expected a tensor", lambda e: {"embedding": e}),
        (r"Keeps returned shape \(4, 16, 1, 1\): expected embeddings \[4, D\]", lambda e: e[:, :, None, None]),
        (r"Keeps returned shape \(16,\): expected embeddings \[4, D\]", lambda e: e[0]),
    ],
)
def test_what_is_no_embedding_is_named(message, pack, models, searched):
    backbone = Keeps(models["N"].backbone, pack)
    for use in (
        lambda: EmbeddingModel(backbone)(searched[:4]),
        lambda: embed(backbone, searched[:4]),
        lambda: Gallery.of(EmbeddingModel(backbone), searched[:4]),
        lambda: checks.inspect(EmbeddingModel(backbone), searched[:4]),
        lambda: AutoPGD(0.1, 2)(backbone, searched[:4], lambda e: e[:, 0]),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            use()


def test_a_model_in_a_wrapper_is_the_model(models, searched_split):
    expected = attacked("QA+", models["N"], searched_split.images, None, AutoPGD(0.1, 3), seeded())
    for wrapper in (nn.DataParallel, torch.optim.swa_utils.AveragedModel):
        wrapped = wrapper(models["N"])
        assert distance_of(wrapped) == "N"
        found = attacked("QA+", wrapped, searched_split.images, None, AutoPGD(0.1, 3), seeded())
        assert torch.equal(found.images, expected.images)
        assert robust_recall(wrapped, searched_in_itself(40), 0.05, effort="quick").benign > 50
        assert checks.inspect(wrapped.eval(), searched_split.images[:16]).ok
    long = Keeps(models["E"].eval(), lambda e: e)
    long.distance = "N"
    for model in (long, nn.DataParallel(long)):
        assert not checks.inspect(model, searched_split.images[:16]).ok


def test_a_model_without_a_distance_is_refused_by_name(searched):
    with pytest.raises(TypeError, match=r"of type Flatten has no distance: wrap it in models\.EmbeddingModel"):
        Gallery.of(nn.Flatten(), searched)


def test_under_inference_mode_everything_works_as_outside(models, searched_split):
    def everything():
        images = searched_split.images.clone()
        gallery = Gallery.of(models["N"], images, searched_split.labels)
        for attack in (embedding.EmbeddingShift(), embedding.Margin(), *ATTACKS.values()):
            yield attacks.run(
                attack, models["N"], images[OWN], gallery, AutoPGD(0.1, 2), OWN, generator=seeded()
            ).images
            yield attacks.run(
                attack, models["N"], images[OWN], gallery, attacks.PGD(0.1, 0.1, 2), OWN, generator=seeded()
            ).images
        yield AutoPGD(0.1, 2)(models["N"], images[:4], lambda e: e[:, 0])
        assert checks.inspect(models["N"].eval(), images[:16]).ok

    expected = list(everything())
    with torch.inference_mode():
        found = list(everything())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_gradients_an_attack_works_and_leaves_them_off(model, gallery, searched):
    with torch.no_grad():
        attacks.run(ATTACKS["QA+"], model, searched[OWN], gallery, AutoPGD(0.1, 2), OWN)
        embed(model, searched)
        checks.inspect(model, searched[:4])
        assert not torch.is_grad_enabled()


BATCH_NORMS = {
    "1d": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)),
    "2d": lambda: nn.BatchNorm2d(3),
    "synchronized": lambda: nn.SyncBatchNorm(3),
    "converted": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3))),
    "instance norm that remembers": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "timm's": lambda: BatchNormAct2d(3),
    "timm's EvoNorm": lambda: EvoNorm2dB0(3),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_every_batch_norm_is_frozen(kind):
    layer = BATCH_NORMS[kind]()
    model = EmbeddingModel(nn.Sequential(layer, nn.Flatten(), nn.Dropout(0.5)), "E").train()
    assert [module.training for module in model.modules() if isinstance(module, nn.Dropout)] == [True]
    images, before = torch.rand(4, 3, 8, 8, generator=seeded()), copy.deepcopy(layer.state_dict())
    embeddings_of(layer if kind == "1d" else nn.Sequential(layer, nn.Flatten()), images)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    live = EmbeddingModel(nn.Sequential(copy.deepcopy(layer), nn.Flatten()), "E", frozen_batchnorm=False).train()
    assert any(module.training for module in live.backbone[0].modules())


def test_a_batch_norm_that_only_remembers_is_not_live():
    model = EmbeddingModel(nn.Sequential(torchvision.ops.FrozenBatchNorm2d(3), nn.Flatten()), "E").train()
    assert checks.model.evaluation_mode(model).ok


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_the_checks_see_every_live_batch_norm(kind):
    model = EmbeddingModel(nn.Sequential(BATCH_NORMS[kind](), nn.Flatten()), "E", frozen_batchnorm=False)
    images = torch.rand(4, 3, 8, 8, generator=seeded())
    for training in (True, False):
        assert checks.model.evaluation_mode(model.train(training)).ok != training
        assert {finding.name: finding.ok for finding in checks.inspect(model, images).findings}[
            "evaluation mode"
        ] != training


def test_a_second_normalization_is_found_before_a_synchronized_batch_norm():
    network = torchvision.models.resnet18(weights=None)
    with torch.no_grad():  # statistics as after training on normalized photographs
        network.train()
        photographs = torch.rand(64, 3, 64, 64, generator=seeded())
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        network((photographs - mean[:, None, None]) / std[:, None, None])
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    right = EmbeddingModel(network, mean=mean.tolist(), std=std.tolist()).eval()
    assert checks.model.normalized_once(right, photographs).ok
    assert not checks.model.normalized_once(EmbeddingModel(network).eval(), photographs).ok
