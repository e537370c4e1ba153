"""The types every experiment works on: images with labels, in the three roles of retrieval.

A retrieval experiment learns on ``train``, asks with ``query`` and searches in ``gallery``. Numbers of two
papers compare only if the roles were filled alike, so the way they were filled travels along as a `Protocol`.
Everything is checked when it is built: what exists is usable.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.labels import check_label_range, kept_labels


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: ``[N, C, H, W]``, uint8 in 0..255 or floating point in [0, 1].
        labels: class numbers from 0, whole numbers ``[N]``; or, where an image has several, zeros and ones
            ``[N, classes]`` of at least two classes. Given in any dtype, kept as int64 and uint8.
        texts: one text an image, or None.

    Raises:
        DataError: if a shape, type or value is none of these, or there are no images.
    """

    images: Tensor
    labels: Tensor
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_images(self.images)
        object.__setattr__(self, "labels", kept_labels(self.labels))
        if len(self.labels) != len(self.images):
            raise DataError(f"{len(self.images)} images have {len(self.labels)} labels; give one label an image")
        if self.texts is not None and len(self.texts) != len(self.images):
            raise DataError(f"{len(self.images)} images have {len(self.texts)} texts; give one text an image")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Protocol:
    """How the roles were filled.

    Attributes:
        name: a few words, e.g. ``"test against itself"``.
        description: one sentence for a table's caption.
        self_excluded: query ``i`` is gallery item ``i``, which does not count among its own results.
        class_disjoint: no class of ``train`` appears in ``query`` or ``gallery``.
    """

    name: str
    description: str
    self_excluded: bool
    class_disjoint: bool


@dataclass(frozen=True, eq=False)
class RetrievalData:
    """A data set in the three roles of retrieval, checked against its own protocol.

    Attributes:
        name: what tables call it.
        train: what a model learns on; where it learns on crops, its images may be larger than those of the others.
        query: what is asked; the same object as ``gallery`` when a set is searched in itself.
        gallery: what is searched.
        class_names: the names of all classes, indexed by label.
        protocol: how the roles were filled.

    Raises:
        DataError: if the splits do not fit together, a label has no class name, or the protocol's promise is
            broken.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    class_names: tuple[str, ...]
    protocol: Protocol

    def __post_init__(self) -> None:
        for role in ("query", "gallery"):
            self._check_same_kind_as_train(role)
        self._check_sizes()
        for role in ("train", "query", "gallery"):
            check_label_range(getattr(self, role).labels, len(self.class_names), f"{self.name}, {role}")
        if self.protocol.self_excluded and not torch.equal(self.query.labels, self.gallery.labels):
            raise DataError(f"{self.name}: self_excluded means query i is gallery item i, but their labels differ")
        if self.protocol.class_disjoint:
            self._check_class_disjoint()

    def with_searched(self, change: Callable[[Split], Split]) -> "RetrievalData":
        """The data set with query and gallery changed, one object if they were one, and train as it is."""
        query = change(self.query)
        return replace(self, query=query, gallery=query if self.gallery is self.query else change(self.gallery))

    def _check_same_kind_as_train(self, role: str) -> None:
        train, other = self.train, getattr(self, role)
        for what, expected, given in (
            ("image channels", train.images.shape[1], other.images.shape[1]),
            ("image type", train.images.dtype, other.images.dtype),
            ("label type", train.labels.dtype, other.labels.dtype),
        ):
            if given != expected:
                raise DataError(f"{self.name}: {role} has {what} {given}, train {expected}; they must agree")

    def _check_sizes(self) -> None:
        train, query, gallery = (tuple(role.images.shape[2:]) for role in (self.train, self.query, self.gallery))
        if query != gallery:
            raise DataError(f"{self.name}: query has image size {query}, gallery {gallery}; they must agree")
        if train[0] < query[0] or train[1] < query[1]:
            raise DataError(
                f"{self.name}: train has image size {train}, query {query}; expected the same, or larger ones to train "
                "on crops of"
            )

    def _check_class_disjoint(self) -> None:
        if self.train.labels.ndim != 1:
            raise DataError(f"{self.name}: class_disjoint needs one class an image, the labels are multi-hot")
        shared = torch.isin(self.train.labels, torch.cat([self.query.labels, self.gallery.labels]))
        if shared.any():
            name = self.class_names[int(self.train.labels[shared][0])]
            raise DataError(f"{self.name}: class_disjoint, but class {name!r} is trained on and searched for")


def as_float(images: Tensor) -> Tensor:
    """Images as a network takes them.

    Args:
        images: ``[..., H, W]``, uint8 in 0..255 or floating point in [0, 1].

    Returns:
        At least float32 in [0, 1], the same shape and device; float32 and float64 are returned as they are.

    Raises:
        DataError: for any other type.
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; expected uint8 in 0..255 or floating point in [0, 1]")
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(f"images have shape {tuple(images.shape)}; expected [N, channels, height, width]")
    if len(images) == 0:
        raise DataError("a split has no images; every role needs at least one")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(f"images are {images.dtype}; expected uint8 in 0..255 or floating point in [0, 1]")
    low, high = (float(bound) for bound in images.aminmax())
    if not (low >= 0 and high <= 1):  # in this direction NaN is refused too
        raise DataError(
            f"float images reach from {low:g} to {high:g}; expected [0, 1] (divide by 255, or undo a normalization)"
        )
