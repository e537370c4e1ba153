"""Labels: which there are, and which gallery items answer which query.

One class an image is whole numbers ``[N]``; several are zeros and ones ``[N, C]`` with C of at least 2, also called
multi-hot. Any dtype will do. ``[N, 1]`` is refused: a column of class numbers, read as multi-hot, would make every item
an answer to every query, and every metric 100 %.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robret_lib.data.errors import DataError

_EXPECTED = "expected whole numbers [N], or zeros and ones [N, C] with C of at least 2"


def relevance(query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Which gallery items answer which query, bool ``[A, B]``: same class, or for multi-hot labels a shared one."""
    query_labels, gallery_labels = same_kind(query_labels, gallery_labels)
    if query_labels.ndim == 1:
        return query_labels[:, None] == gallery_labels[None, :]
    return query_labels.float() @ gallery_labels.float().T > 0


def same_kind(query_labels: Tensor, gallery_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both as int64 ``[N]``, or both as uint8 ``[N, C]``, whatever their dtypes were.

    Raises:
        DataError: if not.
    """
    for labels in (query_labels, gallery_labels):
        check_labels(labels)
    if query_labels.shape[1:] != gallery_labels.shape[1:]:
        shapes = f"{tuple(query_labels.shape)} and {tuple(gallery_labels.shape)}"
        raise DataError(f"labels of shapes {shapes}: expected both int [N], or both multi-hot [N, C] with one C")
    kind = torch.int64 if query_labels.ndim == 1 else torch.uint8
    return query_labels.to(kind), gallery_labels.to(kind)


def check_labels(labels: Tensor) -> None:
    """Checks that labels are whole numbers ``[N]``, or zeros and ones ``[N, C]`` with C of at least 2, in any dtype.

    Raises:
        DataError: if not.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"labels are a {type(labels).__name__}: expected a tensor, whole numbers [N] or [N, C]")
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] < 2):
        raise DataError(f"labels of shape {tuple(labels.shape)}: {_EXPECTED}")
    if labels.is_complex():
        raise DataError(f"labels are {labels.dtype}: {_EXPECTED}")
    if labels.ndim == 2 and not ((labels == 0) | (labels == 1)).all():
        raise DataError(f"labels of shape {tuple(labels.shape)} with other values than 0 and 1: {_EXPECTED}")
    if labels.ndim == 1 and labels.is_floating_point():
        if not labels.isfinite().all():
            raise DataError(f"{len(labels)} labels with NaN or infinity: {_EXPECTED}")
        if not (labels == labels.round()).all():
            raise DataError(f"{len(labels)} labels with fractions: {_EXPECTED}")


def multi_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels as zeros and ones, uint8 ``[N, classes]``, whether they come so or as class numbers ``[N]``.

    Raises:
        DataError: if `check_labels` does, or they are of another number of classes.
    """
    check_labels(labels)
    if labels.ndim == 1 and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"labels {int(labels.min())} to {int(labels.max())}: expected {classes} classes, from 0")
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise DataError(f"labels of shape {tuple(labels.shape)}: expected {classes} classes")
    return (one_hot(labels.long(), classes) if labels.ndim == 1 else labels).to(torch.uint8)


def kept_labels(labels: Tensor) -> Tensor:
    """Labels of any dtype as data sets keep them: int64 ``[N]``, class numbers from 0, or uint8 ``[N, C]``.

    Raises:
        DataError: if `check_labels` does, or a class number is negative.
    """
    check_labels(labels)
    kept = labels.to(torch.int64 if labels.ndim == 1 else torch.uint8)
    if kept.ndim == 1 and len(kept) and int(kept.min()) < 0:
        raise DataError(f"label {int(kept.min())} is negative; class numbers start at 0")
    return kept


def check_label_range(labels: Tensor, classes: int, where: str) -> None:
    """Checks that each label of ``[N]`` is below ``classes``, or that ``[N, classes]`` is that wide.

    Raises:
        DataError: if not; it begins with ``where``.
    """
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise DataError(f"{where}: multi-hot labels have {labels.shape[1]} columns for {classes} class names")
    if labels.ndim == 1 and len(labels) and int(labels.max()) >= classes:
        raise DataError(f"{where}: label {int(labels.max())} has no name; there are {classes} class names, from 0")
