"""Each check passes on a sound model and finds its own fault, and only its own, on a model that has it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from robret_lib import checks, models
from robret_lib.checks import normalization
from robret_lib.checks.model import without_tanh
from robret_lib.models import IMAGENET_MEAN, IMAGENET_STD

SHARED = Path(__file__).parents[2] / "shared" / "data" / "grocery24_tiny_64px.npz"


def small(*layers, channels=3, distance="N", **options):
    """A sound little network on 12x12 pixels, with layers put in front of its last one."""
    torch.manual_seed(0)
    backbone = [
        nn.Conv2d(channels, 16, 5),
        nn.LeakyReLU(),
        nn.Conv2d(16, 16, 5),
        *layers,
        nn.Flatten(),
        nn.Linear(256, 8),
    ]
    return models.EmbeddingModel(nn.Sequential(*backbone), distance, **options).eval()


def noise(n=8, channels=3):
    return torch.rand(n, channels, 12, 12, generator=torch.Generator().manual_seed(0))


def found(model, images=None):
    """Names of the checks that found something."""
    report = checks.inspect(model, noise() if images is None else images)
    assert report.ok == all(finding.ok for finding in report.findings)
    return [finding.name for finding in report.findings if not finding.ok]


def message(model, name, images=None):
    report = checks.inspect(model, noise() if images is None else images)
    return {finding.name: finding.message for finding in report.findings}[name]


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Wrapped(nn.Module):
    """A model behind something that is done to its images in ``forward``."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.model(self.function(x))


@pytest.mark.parametrize("distance", ["N", "E", "C"])
def test_a_sound_model_passes(distance):
    model = small(distance=distance)
    assert found(model) == []
    assert found(small(distance=distance, mean=IMAGENET_MEAN, std=IMAGENET_STD)) == []


@pytest.mark.parametrize("name", ["resnet18", "mnasnet1_0", "vit_tiny_patch16_224"])
def test_the_usual_backbones_pass(name):
    torch.manual_seed(0)
    size = 64 if name in ("resnet18", "mnasnet1_0") else 224
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = models.build(name, 16).eval()
    report = checks.inspect(model, images)
    assert [
        finding.name for finding in report.findings if not finding.ok and finding.name != "different embeddings"
    ] == []
    total = normalization.entry(model, images).total
    expected = model.normalization
    torch.testing.assert_close(total.mean.float(), expected.mean.flatten(), atol=1e-4, rtol=0)
    torch.testing.assert_close(total.std.float(), expected.std.flatten(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((noise() * 255).to(torch.uint8), "as_float"),
        (noise() * 255, "to 25[45]: budgets"),
        (noise() * 2 - 1, "the model normalizes"),
        (noise() / 255, "Divided by 255 twice"),
        ((noise() * 255).long(), "torch.int64: .*as_float"),
        (torch.full((4, 3, 12, 12), torch.nan), "nan"),
    ],
)
def test_pixels_out_of_range(images, words):
    assert found(small(), images) == ["images in [0, 1]"]
    finding = checks.model.pixel_range(images)
    assert re.search(words, finding.message)


def test_one_image_or_no_batch_is_an_error():
    for images in (noise(1), noise()[0]):
        with pytest.raises(ValueError, match="B of at least 2"):
            checks.inspect(small(), images)


def test_layers_left_in_training_mode():
    model = small(nn.BatchNorm2d(16), nn.Dropout(0.5), frozen_batchnorm=False).train()
    assert found(model) == ["evaluation mode"]
    assert message(model, "evaluation mode").startswith(
        "2 layers with dropout or BatchNorm in training mode (backbone.3, backbone.4)"
    )
    assert found(small(nn.BatchNorm2d(16), nn.Dropout(0.0)).train()) == []  # frozen, and never dropping: no difference
    assert found(models.build("vit_tiny_patch16_224", 8).train(), torch.rand(2, 3, 224, 224)) == []


def test_stochastic_depth_counts_as_live():
    assert not checks.model.evaluation_mode(nn.Sequential(timm.layers.DropPath(0.1))).ok
    assert not checks.model.evaluation_mode(nn.Sequential(torchvision.ops.StochasticDepth(0.1, "row"))).ok
    assert checks.model.evaluation_mode(nn.Sequential(timm.layers.DropPath(0.1)).eval()).ok


def test_dropout_that_never_sleeps():
    model = small(Function(lambda x: nn.functional.dropout(x, 0.1, training=True)))
    assert found(model) == ["repeatable embeddings", "independent of the batch"]


def test_noise_in_the_forward():
    model = Wrapped(small(), lambda x: x + 0.05 * torch.randn(x.shape))
    assert "repeatable embeddings" in found(model)


def test_batchnorm_without_running_statistics():
    assert found(small(nn.BatchNorm2d(16, track_running_stats=False))) == ["independent of the batch"]


def test_nan_and_infinity():
    for value in (torch.nan, torch.inf):
        model = small(distance="E")
        with torch.no_grad():
            model.backbone[-1].bias[0] = value
        assert found(model) == ["finite embeddings"]
    broken = small(Function(lambda x: torch.where(x.mean((1, 2, 3), keepdim=True) == x[0].mean(), torch.nan, x)))
    assert message(broken, "finite embeddings").startswith("1 of 8")


def test_lengths_that_do_not_suit_the_distance():
    model = Wrapped(small(distance="E"), lambda x: x)
    for distance, expected in (("E", []), ("N", ["length of embeddings"]), ("C", ["length of embeddings"])):
        model.distance = distance
        assert found(model) == expected


def test_collapsed_embeddings():
    model = small(distance="E")
    with torch.no_grad():
        model.backbone[-1].weight.mul_(1e-3)
    assert found(model) == ["different embeddings"]
    assert found(small(), noise(1).expand(4, -1, -1, -1)) == ["different embeddings"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Function(lambda x: torch.round(10 * x)), "zero for 8 .*rounding"),
        (Function(lambda x: x.detach()), "zero for 8 .*no_grad"),
        (Function(lambda x: torch.from_numpy(x.detach().numpy().copy())), "no_grad"),
        (
            Function(lambda x: torch.where(x.mean((1, 2, 3), keepdim=True) > x.mean(), x, x.detach())),
            r"zero for [1-7] ",
        ),
        (Function(lambda x: (x - x.detach()).abs().sqrt() + x), "not finite for 8 of 8"),
    ],
)
def test_gradients_lost_on_the_way(layer, words):
    model = small(layer)
    assert found(model) == ["gradient to the pixels"]
    assert re.search(words, message(model, "gradient to the pixels"))


def normalize_imagenet(images):
    return torchvision.transforms.functional.normalize(images, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    "model",
    [
        Wrapped(small(mean=IMAGENET_MEAN, std=IMAGENET_STD), normalize_imagenet),
        Wrapped(Wrapped(small(), normalize_imagenet), normalize_imagenet),
        Wrapped(small(mean=(0.5,) * 3, std=(0.5,) * 3), models.Normalize((0.5,) * 3, (0.5,) * 3)),
        nn.Sequential(models.Normalize(IMAGENET_MEAN, IMAGENET_STD), small(mean=IMAGENET_MEAN, std=IMAGENET_STD)),
        Wrapped(small(), lambda x: normalize_imagenet(normalize_imagenet(x))),
        Wrapped(small(channels=1, mean=(0.286,), std=(0.353,)), lambda x: (x - 0.286) / 0.353),
    ],
)
def test_normalizing_twice_is_found_wherever_it_is_written(model):
    images = noise(channels=next(model.parameters()).shape[1])
    assert found(model, images) == ["normalization inside"]
    assert "normalized twice" in message(model, "normalization inside", images)


@pytest.mark.parametrize(
    "model",
    [
        small(),
        small(mean=(0.5,) * 3, std=(0.5,) * 3),
        Wrapped(small(), normalize_imagenet),
        Wrapped(Wrapped(small(), lambda x: x - 123), lambda x: 255 * x),
        Wrapped(Wrapped(small(), lambda x: x - 1), lambda x: 2 * x),
        Wrapped(Wrapped(small(), lambda x: 127.5 * x), lambda x: 2 * x - 1),
        Wrapped(small(), lambda x: x.flip(1)),
        Wrapped(small(), lambda x: nn.functional.interpolate(x[:, :, ::2, ::2], size=12)),
    ],
)
def test_no_false_alarm_about_normalization(model):
    assert found(model) == []


def test_what_normalization_is_seen():
    said = message(Wrapped(small(), normalize_imagenet), "normalization inside")
    assert said == "the first layer sees pixels with mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)"
    assert message(small(), "normalization inside") == "the first layer sees pixels as they are"
    assert message(Wrapped(small(), lambda x: x.flip(1)), "normalization inside").startswith("not judged")


def test_gray_images_and_flat_networks_are_followed():
    gray = Wrapped(small(mean=(0.5,) * 3, std=(0.25,) * 3), lambda x: x.repeat(1, 3, 1, 1))
    assert normalization.entry(gray, noise(channels=1)).total.std.tolist() == pytest.approx([0.25] * 3, abs=1e-4)
    flat = models.EmbeddingModel(nn.Sequential(nn.Flatten(), nn.Linear(432, 8)), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert normalization.entry(flat, noise()).total.mean.tolist() == pytest.approx([0.5] * 3, abs=1e-4)


@pytest.mark.parametrize("trained_with", [None, ((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)])
def test_batchnorm_remembers_which_normalization_it_was_trained_with(trained_with):
    """Smooth images, so that neighboring pixels agree as in photos; noise averages out in the first convolution."""
    images = nn.functional.interpolate(noise(32), size=48, mode="bilinear")
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.BatchNorm2d(16, momentum=1.0), nn.LeakyReLU())
    backbone.extend([nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 8)])
    model = models.EmbeddingModel(backbone, "E", *(trained_with or ()), frozen_batchnorm=False)
    model.train()(images)  # one look is the training
    model.eval()
    assert found(model, images) == []
    for applied in [None, ((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD)]:
        model.normalization = models.Normalize(*applied) if applied else nn.Identity()
        expected = [] if applied == trained_with else ["normalization inside"]
        assert [name for name in found(model, images) if name == "normalization inside"] == expected


def photos(n, size=64):
    if not SHARED.exists():
        pytest.skip("needs the photos of ../shared/data")
    stored = np.load(SHARED)
    pixels, offsets = stored["data"], stored["offsets"]
    chosen = np.random.default_rng(0).permutation(len(offsets) - 1)[:n]
    files = [pixels[offsets[i] : offsets[i + 1]].tobytes() for i in chosen]
    arrays = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB").resize((size, size))) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def test_lite0_with_imagenet_statistics_is_found_on_photos():
    """The mistake that costs 8 points of top-1 and raises no error."""
    images, model = photos(16), models.efficientnet_lite0(64).eval()
    assert found(model, images) == []
    model.normalization = models.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    assert found(model, images) == ["normalization inside"]
    assert "mean 0.5 and std 0.5" in message(model, "normalization inside", images)
    model.normalization = nn.Identity()
    assert found(model, images) == ["normalization inside"]


def test_the_model_is_left_as_it_was_found():
    model = small(nn.BatchNorm2d(16), nn.Dropout(0.3), frozen_batchnorm=False).train()
    model.backbone[4].eval()
    model.backbone[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.random.get_rng_state()
    checks.inspect(model, noise())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [weight.requires_grad for weight in model.parameters()] == [False] + [True] * 7
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_the_report_reads_as_a_table():
    text = str(checks.inspect(small(mean=IMAGENET_MEAN, std=IMAGENET_STD), noise()))
    lines = text.splitlines()
    assert all(len(line) <= 110 for line in lines)
    assert lines[0].startswith("ok    images in [0, 1]            pixels from")
    assert lines[-1] == "10 checks, 0 to look at"
    assert "LOOK  finite embeddings" in str(checks.inspect(small(Function(lambda x: x * torch.nan)), noise()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_sound_model_passes_on_a_gpu():
    for name, size, channels in (("c2f2", 28, 1), ("resnet18", 64, 3), ("vit_tiny_patch16_224", 224, 3)):
        images = torch.rand(16, channels, size, size, generator=torch.Generator().manual_seed(0))
        assert found(models.build(name, 64).eval().cuda(), images) in ([], ["different embeddings"])


@pytest.mark.parametrize(
    ("largest", "ok"), [(0.0, True), (0.2, True), (0.89, True), (0.91, False), (1.0, False), (1.01, True), (14.0, True)]
)
def test_outputs_that_end_in_a_tanh_come_near_one_and_never_beyond(largest, ok):
    for sign in (1, -1):
        finding = without_tanh(torch.tensor([[0.1, -0.2], [sign * largest, 0.0], [0.05, 0.0]]))
        assert finding.name == "outputs without a tanh" and finding.ok == ok
        assert finding.message.startswith(f"of 3 x 2 outputs the largest is {largest:.4g}")
        assert ("do they end in a tanh?" in finding.message) == (not ok)
