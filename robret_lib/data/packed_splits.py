"""How a packed file fills the roles train, query and gallery.

Three rules, the first that applies:

1. the file says it, in its ``split`` member;
2. it is one of a pair of files named ``..._train...`` and ``..._test...``: each is what its name says;
3. neither: the first half of its classes trains, the second half is searched in itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.packed import PackedFile, read_packed
from robret_lib.data.retrieval_data import Protocol, RetrievalData, Split

_SIDE = re.compile(r"_(train|test)(?=[_.])")


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a packed file, by their positions."""

    file: PackedFile
    positions: np.ndarray

    @property
    def labels(self) -> Tensor:
        return self.file.labels[self.positions]

    @property
    def texts(self) -> tuple[str, ...] | None:
        texts = self.file.texts
        return None if texts is None else tuple(texts[position] for position in self.positions)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images fill which role, before any is decoded."""

    train: Part
    query: Part
    gallery: Part
    protocol: Protocol


def load_packed(path: Path, limit: int | None = None, size: int | None = None, progress: bool = False) -> RetrievalData:
    """A packed file, or the pair of files it belongs to, in the three roles.

    Args:
        path: the .npz.
        limit: keep at most so many queries and gallery images, see `first_in_turn`; None keeps all. Train
            stays whole.
        size: side in pixels of the squares that come out; None takes the smallest side in the file or pair.
        progress: show a bar while decoding (about a millisecond an image).

    Raises:
        DataError: if a file is damaged, contradicts itself, or leaves a role without images.
    """
    plan = plan_of(path)
    if size is None:
        size = min(file.smallest_side() for file in {plan.train.file, plan.gallery.file})
    train = _decode(plan.train, size, progress)
    gallery = _decode(_limited(plan.gallery, limit), size, progress)
    same = plan.query is plan.gallery
    return RetrievalData(
        name=_SIDE.sub("", path.name).removesuffix(".npz"),
        train=train,
        query=gallery if same else _decode(_limited(plan.query, limit), size, progress),
        gallery=gallery,
        class_names=plan.train.file.class_names,
        protocol=plan.protocol,
    )


def first_in_turn(labels: Tensor, limit: int) -> np.ndarray:
    """Positions of at most ``limit`` images, spread over the classes so that each still finds a match.

    Every class in turn gives its first two images, then every class its next two, and so on; classes of one
    image come last. Multi-hot labels have no such turns: there the first ``limit`` images are taken.

    Args:
        labels: int64 ``[N]`` or multi-hot ``[N, classes]``.
        limit: at least 1; an odd one may cut a pair.

    Returns:
        int64 ``[min(N, limit)]``, rising.
    """
    if len(labels) <= limit or labels.ndim == 2:
        return np.arange(min(len(labels), limit))
    order = np.argsort(labels.numpy(), kind="stable")
    classes, starts, counts = np.unique(labels.numpy()[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    alone = np.repeat(counts == 1, counts)
    turns = np.lexsort((rank, np.repeat(classes, counts), rank // 2, alone))  # the last key counts first
    return np.sort(order[turns[:limit]])


def plan_of(path: Path) -> Plan:
    """Who fills the roles, for a packed file or the pair of files it belongs to.

    Raises:
        DataError: if a file is damaged or contradicts itself, or has one class only and no split.
    """
    file = read_packed(path)
    if file.split is not None:
        return _plan_by_member(file, file.split)
    sides = {side: path.with_name(_SIDE.sub(f"_{side}", path.name)) for side in ("train", "test")}
    if sides["train"] != sides["test"] and all(side.exists() for side in sides.values()):
        return _plan_by_pair(read_packed(sides["train"]), read_packed(sides["test"]))
    return _plan_by_classes(file)


def _plan_by_member(file: PackedFile, split: np.ndarray) -> Plan:
    train = Part(file, np.flatnonzero(split == "train"))
    if "test" in split:
        test = Part(file, np.flatnonzero(split == "test"))
        return Plan(train, test, test, _test_against_itself(train, test, "the split stored in the file"))
    protocol = Protocol(
        name="queries against the rest",
        description="Queries search all other images, also those of train (the split stored in the file).",
        self_excluded=False,
        class_disjoint=False,
    )
    query, rest = np.flatnonzero(split == "query"), np.flatnonzero(split != "query")
    return Plan(train, Part(file, query), Part(file, rest), protocol)


def _plan_by_pair(train_file: PackedFile, test_file: PackedFile) -> Plan:
    if train_file.class_names != test_file.class_names:
        raise DataError(
            f"{train_file.path} and {test_file.path} have different class names; prepare both from one source"
        )
    train, test = (Part(file, np.arange(len(file))) for file in (train_file, test_file))
    return Plan(train, test, test, _test_against_itself(train, test, "one file each for train and test"))


def _plan_by_classes(file: PackedFile) -> Plan:
    present = np.unique(file.labels.numpy())
    if file.labels.ndim == 2 or len(present) < 2:
        raise DataError(
            f"{file.path} cannot be halved by class (multi-hot labels or one class); give it a 'split' member"
        )
    in_train = np.isin(file.labels.numpy(), present[: len(present) // 2])
    train, test = Part(file, np.flatnonzero(in_train)), Part(file, np.flatnonzero(~in_train))
    return Plan(train, test, test, _test_against_itself(train, test, "the first half of the classes trains"))


def _test_against_itself(train: Part, test: Part, source: str) -> Protocol:
    disjoint = train.labels.ndim == 1 and not np.intersect1d(train.labels, test.labels).size
    classes = "classes never trained on" if disjoint else "classes that were trained on"
    return Protocol(
        name="test against itself",
        description=f"Every test image searches all other test images, of {classes} ({source}).",
        self_excluded=True,
        class_disjoint=disjoint,
    )


def _limited(part: Part, limit: int | None) -> Part:
    return part if limit is None else Part(part.file, part.positions[first_in_turn(part.labels, limit)])


def _decode(part: Part, size: int, progress: bool) -> Split:
    return Split(part.file.decode(part.positions, size, progress), part.labels, part.texts)
