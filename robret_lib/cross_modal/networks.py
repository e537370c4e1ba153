"""Networks of two branches, which give an image and a text codes that compare.

Each branch is a `HashModel` of its own, so that attacks, galleries and scores take it for one. A text comes as the bag
of its words, a picture of one row ``[B, 1, 1, V]`` (`data.bag_of_words`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, interpolate

from robret_lib import models
from robret_lib.models import HashModel

WINDOWS = (50, 30, 15, 10, 5)
"""Words that are averaged together, in five ways (SSAH, Li et al., CVPR 2018)."""


class ImageTextModel(nn.Module):
    """Images and texts in one Hamming space.

    Args:
        images: Gives outputs ``[B, bits]`` of images ``[B, C, H, W]`` in [0, 1].
        texts: Gives outputs ``[B, bits]`` of bags of words ``[B, 1, 1, V]``.
    """

    def __init__(self, images: HashModel, texts: HashModel) -> None:
        super().__init__()
        self.images, self.texts = images, texts

    def forward(self, images: Tensor, bags: Tensor) -> tuple[Tensor, Tensor]:
        """What both branches say, ``[B, bits]`` each."""
        return self.images(images), self.texts(bags)


class Joined(nn.Module):
    """The outputs of several networks of the same inputs, one behind the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([network(inputs) for network in self.networks], dim=1)


def text_model(words: int, bits: int, hidden: tuple[int, ...] = (8192,)) -> HashModel:
    """Bags of ``words`` entries to ``bits`` outputs by layers with ReLU; one of 8,192 is DCMH's."""
    return HashModel(nn.Sequential(nn.Flatten(), *layers(words, *hidden, bits)))


def layers(*sizes: int) -> list[nn.Module]:
    """Linear layers of these sizes, a ReLU between each two."""
    pairs = zip(sizes, sizes[1:], strict=False)
    return [part for pair in pairs for part in (nn.ReLU(), nn.Linear(*pair))][1:]


class Semantic(nn.Module):
    """A backbone with a semantic feature, from which both the code and the labels are read (SSAH).

    Called, it gives the outputs of the code alone, as a backbone of a `HashModel` does.

    Args:
        backbone: To ``[B, width]``.
        width: Of what it gives.
        bits: Of a code.
        classes: How many labels there are.
        feature: Length of the semantic feature, 512 in the paper.
    """

    def __init__(self, backbone: nn.Module, width: int, bits: int, classes: int, feature: int = 512) -> None:
        super().__init__()
        self.feature = nn.Sequential(backbone, nn.Linear(width, feature), nn.ReLU())
        self.code, self.labels = nn.Linear(feature, bits), nn.Linear(feature, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``[B, bits]``."""
        return self.code(self.feature(inputs))

    def everything(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``[B, feature]``, outputs ``[B, bits]`` and what it says of the labels ``[B, C]``, as logits."""
        features = self.feature(inputs)
        return features, self.code(features), self.labels(features)


class NeighboringWords(nn.Module):
    """A bag of words beside averages over its neighbors in the vocabulary, at five widths (SSAH's multi-scale net).

    A vocabulary is in no order that says anything, so this is a choice of random features; it is here since the
    published network has it, which normalizes local responses besides. Each average is scaled, without a bias, as it is
    there: a bias would put as large a number into a thousand entries of every text, beside the few words that it has.
    Scales begin above zero, since the ReLU behind a negative one stays shut. Gives ``[B, hidden]``.

    Args:
        words: Entries of a bag.
        hidden: Units of the layer that takes all six rows, 4,096 in the paper.
    """

    def __init__(self, words: int, hidden: int = 4096) -> None:
        super().__init__()
        self.windows = [min(window, words) for window in WINDOWS]
        self.scales = nn.ModuleList(nn.Conv1d(1, 1, 1, bias=False) for _ in WINDOWS)
        for scale in self.scales:
            nn.init.uniform_(scale.weight)
        self.joined = nn.Sequential(nn.Flatten(), nn.Linear((1 + len(WINDOWS)) * words, hidden), nn.ReLU())

    def forward(self, bags: Tensor) -> Tensor:
        row = bags.flatten(1)[:, None]
        pairs = zip(self.windows, self.scales, strict=True)
        rows = [torch.relu(scale(avg_pool1d(row, window))) for window, scale in pairs]
        return self.joined(
            torch.cat([row, *(interpolate(each, size=row.shape[2], mode="linear") for each in rows)], dim=1)
        )


def semantic_image_model(model: HashModel, bits: int, classes: int) -> HashModel:
    """A hash network of images with its last linear layer, which gives the code, replaced by a `Semantic` head."""
    width = _take_off_head(model.backbone)
    model.backbone = Semantic(model.backbone, width, bits, classes)
    return model


def semantic_text_model(words: int, bits: int, classes: int, hidden: int = 4096) -> HashModel:
    """SSAH's network of texts."""
    return HashModel(Semantic(NeighboringWords(words, hidden), hidden, bits, classes))


class SmallHead(nn.Module):
    """A trunk that stays as it is, and layers behind it that learn; of few examples that is all one can teach."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk.requires_grad_(False), head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def train(self, mode: bool = True) -> "SmallHead":
        super().train(mode)
        self.trunk.eval()
        return self


def with_small_head(backbone: str, bits: int, hidden: tuple[int, ...] = (1024,), pretrained: bool = True) -> HashModel:
    """A hash network of images by the name of its backbone (`models.build`), which stays as it is, with a new head."""
    model = models.build(backbone, bits, pretrained, "H")
    width = _take_off_head(model.backbone)
    head = nn.Sequential(nn.Flatten(), *layers(width, *hidden, bits))
    model.backbone = SmallHead(model.backbone, head)
    return model


def _take_off_head(backbone: nn.Module) -> int:
    """Put nothing in the place of the last linear layer, in place; returns how many inputs it had."""
    name, last = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    return last.in_features
