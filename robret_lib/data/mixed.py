"""Images that are searched, in an order that mixes their classes."""

import torch

from robret_lib.data.retrieval_data import RetrievalData, Split


def mixed(dataset: RetrievalData) -> RetrievalData:
    """The data set with query and gallery in a random order, always the same one, and train as it is.

    Files list photographs class by class, so that the first thousand are those of a few classes. Mixed, any first n
    are a random sample.

    Returns:
        Query and gallery, one object if they were one; if both have the same length, in the same order.
    """
    return dataset.with_searched(_mixed)


def _mixed(split: Split) -> Split:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    texts = None if split.texts is None else tuple(split.texts[position] for position in order)
    return Split(split.images[order], split.labels[order], texts)
