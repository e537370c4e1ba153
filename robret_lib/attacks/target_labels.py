"""The labels that attacks with a target aim at: drawn once, and the same for every attack and model that is compared.

They are kept as a list, a text file as SAAT has it (``target_label_<set>.txt``): a line of zeros and ones for each
query.
"""

import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robret_lib.data import multi_hot, relevance
from robret_lib.files import written_whole


def draw_labels(labels: Tensor, gallery_labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A target label vector for each image, drawn uniformly from those of the gallery that share no label with it.

    Args:
        labels: int ``[B]`` or multi-hot ``[B, C]``.
        gallery_labels: Likewise; a vector without labels is no target.

    Returns:
        ``[B]`` or ``[B, C]``, in the dtype of the gallery's.

    Raises:
        ValueError: An image shares a label with all.
    """
    kinds = gallery_labels.unique(dim=0)
    if kinds.ndim == 2:
        kinds = kinds[kinds.sum(1) > 0]
    possible = ~relevance(labels, kinds)
    if not possible.any(1).all():
        alone = int((~possible.any(1)).sum())
        raise ValueError(f"{alone} images share a label with every label vector of the gallery: they have no target")
    weights = possible.double().cpu()
    return kinds[torch.multinomial(weights, 1, generator=generator)[:, 0].to(kinds.device)]


def kept_labels(path: str | os.PathLike[str], labels: Tensor, gallery_labels: Tensor, seed: int = 0) -> Tensor:
    """The target labels in a file, or, where there is none, some that are drawn with a seed and written to it.

    Args:
        path: Of the list; its folder is made if need be.
        labels, gallery_labels: As in `draw_labels`.
        seed: Of the draw.

    Returns:
        As `draw_labels`.

    Raises:
        ValueError: The file is no list, or one of other queries: another number of them, or targets that share a label
            with their query or that no gallery item has.
    """
    path = Path(path)
    if not path.exists():
        drawn = draw_labels(labels, gallery_labels, torch.Generator().manual_seed(seed))
        _write(path, drawn, int(gallery_labels.max()) + 1)
        return drawn
    wanted = _read(path)
    if gallery_labels.ndim == 1:
        wanted = _numbers(path, wanted)
    wanted = wanted.to(gallery_labels)
    _check(path, wanted, labels, gallery_labels)
    return wanted


def _write(path: Path, wanted: Tensor, classes: int) -> None:
    rows = one_hot(wanted.long(), classes) if wanted.ndim == 1 else wanted
    lines = [" ".join(map(str, row)) for row in rows.int().tolist()]
    with written_whole(path) as file:
        file.write("\n".join([*lines, ""]).encode())


def _read(path: Path) -> Tensor:
    try:
        rows = torch.tensor([[int(word) for word in line.split()] for line in path.read_text().splitlines()])
        return multi_hot(rows, rows.shape[1])
    except Exception as error:
        raise ValueError(f"{path} is no list of target labels: expected lines of zeros and ones ({error})") from error


def _numbers(path: Path, rows: Tensor) -> Tensor:
    """The classes ``[B]`` of rows ``[B, C]`` with a single one each."""
    if not (rows.sum(1) == 1).all():
        raise ValueError(f"{path} has targets of no class or several, the gallery one class an image: another gallery?")
    return rows.argmax(1)


def _check(path: Path, wanted: Tensor, labels: Tensor, gallery_labels: Tensor) -> None:
    if wanted.shape[1:] != labels.shape[1:] or len(wanted) != len(labels):
        raise ValueError(f"{path} has target labels {tuple(wanted.shape)}, the queries {tuple(labels.shape)}")
    if relevance(wanted, labels.to(wanted.device)).diagonal().any():
        raise ValueError(f"{path} has targets that share a label with their query: the list of other queries?")
    numbers = torch.cat([gallery_labels, wanted]).unique(dim=0, return_inverse=True)[1]  # equal where labels are
    if not torch.isin(numbers[len(gallery_labels) :], numbers[: len(gallery_labels)]).all():
        raise ValueError(f"{path} has target labels that no gallery item has: the list of another gallery?")
