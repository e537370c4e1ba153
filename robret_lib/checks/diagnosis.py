"""A cheap diagnosis of a model before the long evaluation: a few dozen queries, a few short attacks, every check."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robret_lib import attacks
from robret_lib.attacks import NES, Attack, AutoPGD, Gallery, Search
from robret_lib.attacks.embedding import Margin
from robret_lib.checks import evaluation
from robret_lib.checks.findings import Finding, Report
from robret_lib.checks.model import inspect
from robret_lib.checks.overheard import Overheard
from robret_lib.data import RetrievalData, as_float
from robret_lib.metrics import relevance
from robret_lib.models import EmbeddingModel, distance_of

SHORT, LONG = 10, 50
"""Steps of a short search, which another short one is compared with, and of a long one."""

QUERIES = 200
"""What the search by values may ask, for each image."""

Trial = Callable[[Attack, Search], Tensor]
"""The outcome of an attack, bool ``[n]``: where the first answer is right."""


def diagnose(model: EmbeddingModel, data: RetrievalData, eps: float, queries: int = 64, seed: int = 0) -> Report:
    """`inspect` the model, attack it in a few ways, and judge by `evaluation` what they did.

    Takes seconds at quick scale. It says whether a number would mean anything, not what the number is; for that see
    `scores.robust_recall`.

    Args:
        model: In [0, 1] pixels.
        data: Searched as its protocol says; images of one class are right answers to each other.
        eps: Radius, the largest change of a pixel, of the evaluation to come.
        queries: So many are drawn; those whose first answer is right are attacked.
        seed: Of the draw and of the random starts.

    Raises:
        ValueError: No query drawn is right, so that there is nothing to attack.
        TypeError: A hash network, whose first answers are ties.
    """
    if distance_of(model) == "H":
        raise TypeError("diagnose looks at first answers, which are ties among hash codes: use scores.robust_map")
    chosen = torch.randperm(len(data.query), generator=torch.Generator().manual_seed(seed))[:queries]
    report = inspect(model, as_float(data.query.images[chosen]))
    if {finding.name for finding in report.warnings} & {"images in [0, 1]", "finite embeddings"}:
        return report
    gallery = Gallery.of(model, data.gallery.images, data.gallery.labels)
    benign = _trial(model, data, gallery, chosen, seed)(Margin(), AutoPGD(0, 1))
    if not benign.any():
        raise ValueError(f"none of {len(chosen)} first answers is right: expected a model that finds something")
    right = chosen[benign]
    one_for_all = relevance(data.query.labels[right], data.gallery.labels).double().mean(0).max().item()
    finds = evaluation.benign_recall(benign, evaluation.one_for_all(data))
    return Report((*report.findings, finds, *_judged(_trial(model, data, gallery, right, seed), eps, one_for_all)))


def _trial(model: EmbeddingModel, data: RetrievalData, gallery: Gallery, chosen: Tensor, seed: int) -> Trial:
    images, labels = as_float(data.query.images[chosen]), data.query.labels[chosen]
    own = chosen if data.protocol.self_excluded else None

    def outcome(attack: Attack, search: Search) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        result = attacks.run(attack, model, images, gallery, search, own, labels, generator)
        return result.measured["recall_at_1"].cpu() > 0

    return outcome


def _judged(outcome: Trial, eps: float, one_for_all: float) -> Iterator[Finding]:
    overheard = Overheard(Margin())
    short = outcome(Margin(), AutoPGD(eps, SHORT))
    long = outcome(overheard, AutoPGD(eps, LONG))
    drawn = outcome(Margin(), AutoPGD(eps, SHORT, random_start=True))
    black = outcome(Margin(temperature=0), NES(eps, QUERIES, population=20, step=eps / 4, stop_below=0.0))
    yield evaluation.more_steps(short, long)
    yield evaluation.loss_at_the_end(overheard.losses, long)
    yield evaluation.larger_radius(outcome(Margin(), AutoPGD(eps / 2, SHORT)), short)
    yield evaluation.random_start(short, drawn)
    yield evaluation.black_box(short & long & drawn, black)
    yield evaluation.unlimited_radius(outcome(Margin(), AutoPGD(0.5, LONG)), one_for_all)
