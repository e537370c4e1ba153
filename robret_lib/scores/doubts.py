"""What makes a score doubtful, said aloud: the findings of `checks` on a model and on what attacks did to it."""

import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from robret_lib import checks
from robret_lib.attacks import Gallery
from robret_lib.checks import Finding
from robret_lib.data import as_float
from robret_lib.models import EmbeddingModel, evaluation_mode

LIBRARY = str(Path(__file__).parents[1])

IMAGES = 32
"""Gallery images, evenly spaced, on which a model is inspected."""


def of_model(model: EmbeddingModel, gallery: Gallery) -> tuple[str, ...]:
    """What `checks.inspect` warns about, as evaluations run the model: in evaluation mode."""
    chosen = torch.linspace(0, len(gallery) - 1, min(IMAGES, len(gallery)), dtype=torch.float64).long()
    with evaluation_mode(model):
        return said(checks.inspect(model, as_float(gallery.images[chosen.to(gallery.images.device)])).findings)


def said(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The messages of the findings that are not in order, each also raised as a warning, of whoever called us."""
    messages = tuple(f"{finding.name}: {finding.message}" for finding in findings if not finding.ok)
    for message in messages:
        warnings.warn(message, stacklevel=_outside())
    return messages


def _outside() -> int:
    """How many frames above the one that calls this the first is that does not belong to this library."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARY):
        frame, level = frame.f_back, level + 1
    return level
