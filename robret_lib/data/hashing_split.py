"""The split of papers on hashing: few images to learn on, which are searched as well, and queries from outside."""

import torch
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.mixed import mixed
from robret_lib.data.retrieval_data import Protocol, RetrievalData, Split
from robret_lib.fields import check_count


def hashing_split(
    dataset: RetrievalData, trained: int = 500, queries: int = 100, searched: int | None = None
) -> RetrievalData:
    """A classification set divided as CIFAR-10 is for hashing, by so many images of each class, the first ones.

    DeepHash-pytorch calls it "cifar10-1": the images that are trained on lie in the gallery, which flatters every
    method. Query and gallery are `mixed`.

    Args:
        dataset: one class an image; queries and gallery of other images than train.
        trained: of each class, how many images of train are learned on.
        queries: of each class, how many images of query ask.
        searched: of each class, how many images of train are the gallery, at least ``trained``; None is all.

    Raises:
        DataError: if a class has not so many, fewer are searched than trained, or images have several labels.
        ValueError: if a number is none of at least 1.
    """
    if dataset.train.labels.ndim != 1:
        shape = tuple(dataset.train.labels.shape)
        raise DataError(f"{dataset.name}: labels of shape {shape}: expected one class an image")
    for name, count in (("trained", trained), ("queries", queries), ("searched", searched or trained)):
        check_count(name, count)
    if searched is not None and searched < trained:
        raise DataError(f"searched={searched}, trained={trained} of a class: expected at least as many searched")
    classes = len(dataset.class_names)
    train = _first_of_each(dataset.train, classes, trained, "train")
    gallery = dataset.train if searched is None else _first_of_each(dataset.train, classes, searched, "train")
    query = _first_of_each(dataset.query, classes, queries, "query")
    protocol = Protocol(
        name="hashing split",
        description=(
            f"{len(query):,} queries search {len(gallery):,} other images, among them the {len(train):,} that were "
            "trained on."
        ),
        self_excluded=False,
        class_disjoint=False,
    )
    return mixed(RetrievalData(dataset.name, train, query, gallery, dataset.class_names, protocol))


def _first_of_each(split: Split, classes: int, count: int, role: str) -> Split:
    chosen = [_first(split.labels, label, count, role) for label in range(classes)]
    positions = torch.cat(chosen).sort().values
    return Split(split.images[positions], split.labels[positions])


def _first(labels: Tensor, label: int, count: int, role: str) -> Tensor:
    positions = (labels == label).nonzero()[:count, 0]
    if len(positions) < count:
        raise DataError(f"class {label} has {len(positions)} images of {role}: expected at least {count}")
    return positions
