"""Networks of images and texts: what each layer gives, entry by entry, and heads on trunks that stay as they are."""

import pytest
import torch
from torch import Tensor, nn

from robret_lib import models
from robret_lib.attacks import Gallery
from robret_lib.cross_modal import (
    ImageTextModel,
    NeighboringWords,
    Semantic,
    semantic_image_model,
    semantic_text_model,
    text_model,
    with_small_head,
)
from robret_lib.cross_modal.networks import WINDOWS, SmallHead, layers
from robret_lib.models import HashModel, embed
from tests.test_pairs_objective import seeded


def some_bags(words: int, size: int = 5) -> Tensor:
    return (torch.rand(size, 1, 1, words, generator=seeded()) < 0.3).float()


def some_images(size: int = 5, channels: int = 1, side: int = 28) -> Tensor:
    return torch.rand(size, channels, side, side, generator=seeded(1))


def linear_sizes(network: nn.Module) -> list[tuple[int, int]]:
    return [(part.in_features, part.out_features) for part in network.modules() if isinstance(part, nn.Linear)]


# Both branches


def test_both_branches_say_something_of_every_pair():
    model = ImageTextModel(models.build("c2f2_half", 6, distance="H"), text_model(9, 6, (4,))).eval()
    images, texts = model(some_images(), some_bags(9))
    assert images.shape == texts.shape == (5, 6)
    assert torch.equal(images, model.images(some_images())) and torch.equal(texts, model.texts(some_bags(9)))


def test_a_branch_is_searched_as_any_hash_network():
    for branch, inputs in ((text_model(9, 6, (4,)), some_bags(9)), (semantic_text_model(9, 6, 3, 8), some_bags(9))):
        gallery = Gallery.of(branch, inputs, torch.arange(5))
        assert isinstance(branch, HashModel) and gallery.distance == "H"
        assert torch.equal(gallery.codes, torch.where(embed(branch, inputs) < 0, -1, 1))


# Texts


def test_layers_have_a_relu_between_each_two():
    assert [type(part).__name__ for part in layers(5, 4, 3, 2)] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [type(part).__name__ for part in layers(5, 2)] == ["Linear"]


def test_the_text_network_of_dcmh_has_one_hidden_layer():
    assert linear_sizes(text_model(30, 16)) == [(30, 8192), (8192, 16)]
    model, bags = text_model(9, 6, (4,)).double(), some_bags(9).double()
    first, last = (part for part in model.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        last.bias.fill_(-4)  # without a tanh or a ReLU at its end
    hidden = (bags.flatten(1) @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(model(bags), hidden @ last.weight.T + last.bias)
    assert (model(bags) < -1).all()


def between(values: list[float], at: float) -> float:
    """Linearly between two neighbors, the first and the last one continued."""
    at = min(max(at, 0.0), len(values) - 1.0)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def slow_rows(bag: list[float], network: NeighboringWords) -> list[list[float]]:
    """A bag, and its averages over windows of 50, 30, 15, 10 and 5 words, stretched linearly to its length."""
    rows = [bag]
    for window, scale in zip(WINDOWS, network.scales, strict=True):
        window = min(window, len(bag))
        means = [sum(bag[k * window : (k + 1) * window]) / window for k in range(len(bag) // window)]
        means = [max(0.0, scale.weight.item() * mean) for mean in means]
        rows.append([between(means, (k + 0.5) * len(means) / len(bag) - 0.5) for k in range(len(bag))])
    return rows


@pytest.mark.parametrize("words", [100, 37, 7, 1])
def test_neighbors_of_a_word_are_averaged_at_five_widths(words):
    """Where there are fewer words than a window has, it is all of them."""
    network, bags = NeighboringWords(words, 3).double(), some_bags(words).double()
    linear = network.joined[1]
    with torch.no_grad():
        for scale in network.scales:
            scale.weight.fill_(1.5)
    rows = torch.tensor([slow_rows(bag.flatten().tolist(), network) for bag in bags])
    assert rows.shape == (5, 6, words)
    expected = (rows.flatten(1).double() @ linear.weight.T + linear.bias).clamp(min=0)
    torch.testing.assert_close(network(bags), expected, rtol=1e-6, atol=1e-6)


def test_texts_that_share_no_window_share_no_entry_of_the_narrow_rows():
    """With a bias in the scales all would; and no row is shut."""
    network, bags = NeighboringWords(300, 3), torch.zeros(2, 1, 1, 300)
    bags[0, ..., 3], bags[1, ..., 297] = 1, 1
    seen = []
    network.joined.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(bags)
    assert (seen[0][0] * seen[0][1] == 0).all()
    assert (seen[0].amax(2) > 0).all()


def test_the_text_network_of_ssah():
    model = semantic_text_model(10, 16, 3)
    assert linear_sizes(model) == [(60, 4096), (4096, 512), (512, 16), (512, 3)]
    assert [part.kernel_size for part in model.modules() if isinstance(part, nn.Conv1d)] == [(1,)] * 5
    assert WINDOWS == (50, 30, 15, 10, 5)


# A semantic feature


def test_code_and_labels_are_read_from_one_feature():
    network = Semantic(nn.Flatten(), 9, 6, 3, feature=5)
    features, outputs, labels = network.everything(some_bags(9))
    assert (features.shape, outputs.shape, labels.shape) == ((5, 5), (5, 6), (5, 3))
    assert (features >= 0).all() and features.any()
    assert torch.equal(network(some_bags(9)), outputs)
    torch.testing.assert_close(outputs, features @ network.code.weight.T + network.code.bias)
    torch.testing.assert_close(labels, features @ network.labels.weight.T + network.labels.bias)


@pytest.mark.parametrize(("name", "channels", "side"), [("c2f2_half", 1, 28), ("efficientnet_lite0", 3, 32)])
def test_the_last_layer_of_a_network_of_images_makes_room_for_the_feature(name, channels, side):
    """What is before it stays, and so does the normalization."""
    torch.manual_seed(0)
    plain = models.build(name, 6, distance="H").eval()
    torch.manual_seed(0)
    model = semantic_image_model(models.build(name, 6, distance="H"), 6, 4).eval()
    images, seen = some_images(3, channels, side), []
    last = [part for part in plain.modules() if isinstance(part, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    plain(images)
    features = model.backbone.everything(model.normalization(images))[0]
    hidden = model.backbone.feature[1]
    assert (hidden.in_features, hidden.out_features) == (last.in_features, 512)
    torch.testing.assert_close(features, (seen[0] @ hidden.weight.T + hidden.bias).clamp(min=0))
    assert model(images).shape == (3, 6) and isinstance(model, HashModel)
    assert last.weight.shape not in {
        part.weight.shape for part in model.backbone.feature[0].modules() if is_linear(part)
    }


def is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)


def test_a_last_layer_may_lie_deep_inside():
    """As the classifier of VGG and AlexNet."""
    inner = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.Linear(5, 6)))
    model = semantic_image_model(HashModel(nn.Sequential(nn.Flatten(), inner)), 6, 3).eval()
    assert model(torch.rand(2, 1, 2, 2)).shape == (2, 6)
    assert linear_sizes(model) == [(4, 5), (5, 512), (512, 6), (512, 3)]


# A small head


def stepped(model: HashModel, images: Tensor) -> None:
    """A step along a gradient, in training mode."""
    model.train()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.1)
    model(images).square().sum().backward()
    optimizer.step()


def test_a_head_learns_and_its_trunk_stays_as_it_is():
    """Running means and dropout, too."""
    torch.manual_seed(0)
    model = with_small_head("efficientnet_lite0", 6, (7,), pretrained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = some_images(4, 3, 32)
    stepped(model, images)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"backbone.head.{layer}.{part}" for layer in (1, 3) for part in ("weight", "bias")}
    assert model.training and model.backbone.head.training
    assert not any(part.training for part in model.backbone.trunk.modules())
    assert [weight.requires_grad for weight in model.backbone.trunk.parameters()].count(True) == 0
    assert linear_sizes(model) == [(1280, 7), (7, 6)]


def test_a_trunk_in_training_draws_nothing():
    trunk = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(4))
    part = SmallHead(trunk, nn.Linear(4, 2)).train()
    images = torch.rand(6, 1, 2, 2)
    assert torch.equal(part(images), part(images)) and part(images[:1]).shape == (1, 2)


def test_a_head_stands_on_the_features_of_the_trunk():
    torch.manual_seed(0)
    plain = models.build("efficientnet_lite0", 6, True, "H").eval()
    model, seen = with_small_head("efficientnet_lite0", 6).eval(), []
    plain.backbone.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = some_images(2, 3, 32)
    with torch.no_grad():
        plain(images)
        torch.testing.assert_close(model(images), model.backbone.head(seen[0]))
    assert linear_sizes(model) == [(1280, 1024), (1024, 6)]


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_a_head_has_as_many_layers_as_are_asked_for(hidden):
    model = with_small_head("c2f2_half", 3, hidden, pretrained=False)
    assert [sizes[1] for sizes in linear_sizes(model.backbone.head)] == [*hidden, 3]
    assert model(some_images()).shape == (5, 3)
