"""Who answers an image: its class in the gallery, and whether the first answer has it."""

import torch
from torch import Tensor

from robret_lib.attacks.attack import Benign
from robret_lib.metrics import hits_at_k, relevance


def has_classes(benign: Benign) -> bool:
    """Are the classes of the images known, and those of the gallery?"""
    return benign.labels is not None and benign.gallery.labels is not None


def check_classes(attack: object, benign: Benign) -> None:
    """Raise a ValueError that names the attack where classes are not known."""
    if not has_classes(benign):
        name = type(attack).__name__
        raise ValueError(f"{name} needs classes: give labels to Gallery.of, and to run for images from outside")


def answers(benign: Benign) -> tuple[Tensor, Tensor]:
    """Which items share a class with each image, and which share none, bool ``[B, N]``; itself is in neither."""
    right = relevance(benign.labels, benign.gallery.labels.to(benign.embeddings.device))
    wrong = ~right
    if benign.own is not None:
        right.scatter_(1, benign.own[:, None], False)
        wrong.scatter_(1, benign.own[:, None], False)
    return right, wrong


def first_answer_right(embeddings: Tensor, benign: Benign) -> Tensor:
    """Whether the item nearest to each embedding ``[B, D]``, itself left out, shares a class with it: bool ``[B]``."""
    own = False if benign.own is None else benign.own
    return hits_at_k(embeddings, benign.gallery.embeddings, benign.labels, benign.gallery.labels, (1,), own)[1]


def recall_at_1(embeddings: Tensor, benign: Benign) -> dict[str, Tensor]:
    """The measure ``recall_at_1`` ``[B]``: 100 where the first answer is right, else 0; nothing without classes."""
    if not has_classes(benign):
        return {}
    return {"recall_at_1": 100 * first_answer_right(embeddings, benign).to(torch.float64)}
