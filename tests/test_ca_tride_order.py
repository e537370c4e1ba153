"""CA-TRIDE takes its distances in the order of the published code, where an image is its own partner, too."""

import torch
from torch import nn

from robret_lib.attacks import PGD
from robret_lib.defenses import CollapseAwareTriplets
from tests.small_retrieval import seeded

STEP = 0.01
LABELS = torch.tensor([0, 0, 1, 1])
CANDIDATES, ANCHORS = 2, 3
"""Steps of training in which they are attacked."""


class Pixels(nn.Module):
    """Images are their own embeddings; keeps what it was shown last."""

    def forward(self, images):
        self.shown = images
        return images.flatten(1)


def left_half(value):
    image = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    image[:, :, :2] = value
    return image


def shown_roles(at, left_anchor, left_partner):
    """Anchors, positives, negatives ``[2, 1, 4, 4]`` after one step, of a gray image that is its own partner and a pair
    that differs from it in the left half."""
    images = torch.stack([left_half(value) for value in (0.5, 0.5, left_anchor, left_partner)])
    objective = CollapseAwareTriplets(PGD(0.1, STEP, 1), steps=1, sharpness=0.0, distance="E", mode="reference")
    objective.progress.done.fill_(at)
    model = Pixels()
    objective(model, images, LABELS, seeded(3))
    return model.shown.chunk(3)


def test_a_positive_that_is_its_anchor_becomes_brighter():
    """d(p, a) = |p - a + 1e-6| is made large, since the pair lies close and the gray image far from it."""
    anchors, positives, _ = shown_roles(CANDIDATES, 0.9, 0.85)
    torch.testing.assert_close(positives[0] - anchors[0], torch.full_like(anchors[0], STEP), rtol=0, atol=1e-12)


def test_an_anchor_that_is_its_positive_becomes_brighter():
    """d(p, a) is made small, since the other pair lies far apart: 1e-6 above a is nearer than a itself. In the right
    half of the image, where it is no different from its negative."""
    anchors, positives, negatives = shown_roles(ANCHORS, 0.55, 0.9)
    moved = (anchors[0] - positives[0])[..., 2:]
    assert torch.equal(negatives[0, ..., 2:], positives[0, ..., 2:])
    torch.testing.assert_close(moved, torch.full_like(moved, STEP), rtol=0, atol=1e-12)
