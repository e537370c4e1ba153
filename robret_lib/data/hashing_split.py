"""The split of papers on hashing: few images to learn on, which are searched as well, and queries from outside."""

import torch
from torch import Tensor

from robret_lib.data.errors import DataError
from robret_lib.data.mixed import mixed
from robret_lib.data.retrieval_data import Protocol, RetrievalData, Split


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
        DataError: if a class has not so many, or fewer are searched than trained.
    """
    if searched is not None and searched < trained:
        raise DataError(f"searched={searched}, trained={trained} of a class: expected at least as many searched")
    train = _first_of_each(dataset.train, trained, "train")
    gallery = dataset.train if searched is None else _first_of_each(dataset.train, searched, "train")
    query = _first_of_each(dataset.query, queries, "query")
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


def _first_of_each(split: Split, count: int, role: str) -> Split:
    chosen = [_first(split.labels, label, count, role) for label in split.labels.unique().tolist()]
    positions = torch.cat(chosen).sort().values
    return Split(split.images[positions], split.labels[positions])


def _first(labels: Tensor, label: int, count: int, role: str) -> Tensor:
    positions = (labels == label).nonzero()[:count, 0]
    if len(positions) < count:
        raise DataError(f"class {label} has {len(positions)} images of {role}: expected at least {count}")
    return positions
