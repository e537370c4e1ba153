"""Can what attacks have done be believed? A sound evaluation obeys a few laws; whatever breaks one hides something.

Outcomes are bool ``[n]``, whether the first answer of each of n queries stayed right; the queries of two outcomes are
the same, and were right before. A finding needs more than chance explains on so few queries: on a sound evaluation
each of these checks is mistaken once in a hundred times. (The laws are those of Athalye et al. 2018, "Obfuscated
Gradients Give a False Sense of Security", section 3, and of Carlini et al. 2019, "On Evaluating Adversarial
Robustness", section 5.)
"""

import torch
from torch import Tensor
from torch.distributions import Binomial

from robret_lib.checks.findings import Finding, found
from robret_lib.data import RetrievalData, relevance

LEVEL = 0.01
"""How often chance may raise an alarm."""

MISSED = 0.01
"""Share of queries that a strong attack may leave to another one: no attack finds everything."""

FALLING = 0.5
"""A loss is still falling if as many steps again would, at its last rate, add this share of what it has fallen."""


ROUNDING = 1e-6
"""Average precisions in percent that are no further apart are equal."""

LOOKS = 8
"""So many losses of a search show whether they have come to rest."""


def benign_recall(right: Tensor, chance: float) -> Finding:
    """Before any attack the model finds more than one answer for all does.

    Args:
        right: bool ``[n]``, whether the first answer of each query is right without an attack.
        chance: Share of the queries that one answer for all gets right, see `one_for_all`.
    """
    check_outcomes(right)
    hits, count = int(right.sum()), len(right)
    seen = f"{hits} of {count} first answers are right, where the best answer for all is in {100 * chance:.3g} %"
    trouble = (
        "chance may do as well, and who finds nothing has nothing to lose. The labels are those of other images, the "
        "gallery is in another order, or the model finds nothing; or so few queries cannot tell."
    )
    return found("benign recall", _chance_of(hits, count, min(chance, 1.0)) <= LEVEL, seen, trouble)


def benign_precision(precisions: Tensor, chance: Tensor) -> Finding:
    """Before any attack more rankings are better than a random order than are worse: `benign_recall` of codes.

    Args:
        precisions: Average precision of each query, float ``[n]``, without an attack.
        chance: That expected of a random order of the gallery, ``[n]``.
    """
    better, worse = _lower(chance, precisions), _lower(precisions, chance)
    seen = f"{better} of {len(precisions)} rankings are better than a random order, {worse} are worse"
    trouble = (
        "who finds nothing has nothing to lose. The labels are those of other images, the gallery is in another order, "
        "or all codes are alike; or so few queries cannot tell."
    )
    return found("benign recall", _chance_of(better, better + worse, 0.5) <= LEVEL, seen, trouble)


def own_start(attack: str, benign: Tensor, attacked: Tensor) -> Finding:
    """Of rankings that an attack changes, no more get better than worse: no steps at all are no stronger than it.

    Args:
        attack: Its name.
        benign, attacked: Average precision of each query, float ``[n]``, before and after it.
    """
    against, for_it = _lower(benign, attacked), _lower(attacked, benign)
    seen = f"{attack} makes {against} of {len(benign)} rankings better and {for_it} worse"
    trouble = "it is weaker than its own start. The steps are too long, or the loss that falls is not what is measured."
    return found("more steps", _chance_of(against, against + for_it, 0.5) > LEVEL, seen, trouble)


def gray_image(gray: Tensor, left: Tensor) -> Finding:
    """An attacker who may turn every image into plain gray leaves hardly a ranking better: `unlimited_radius` of codes.

    Args:
        gray: Average precision of each query, float ``[n]``, had its image been turned gray.
        left: That under the attack at a radius of 1/2 or more.
    """
    against, for_it = _lower(gray, left), _lower(left, gray)
    seen = f"{against} of {len(gray)} rankings are better at 1/2 than of a gray image, {for_it} worse"
    trouble = "any image can be turned into any other on the way to gray. The search fails, not the attacker."
    return found("unlimited radius", _chance_of(against, against + for_it, 0.5) > LEVEL, seen, trouble)


def more_steps(few: Tensor, more: Tensor) -> Finding:
    """More steps of the same search break no fewer queries.

    Args:
        few, more: Outcomes bool ``[n]`` after few and after more steps.
    """
    trouble = "a longer search should win. The steps are too long, or the loss that falls is not what is measured."
    return _no_fewer("more steps", few, more, "fewer steps", "more", trouble)


def larger_radius(small: Tensor, large: Tensor) -> Finding:
    """A larger radius lets the same search break no fewer queries: the smaller ball lies inside.

    Args:
        small, large: Outcomes bool ``[n]`` at a small and at a larger radius.
    """
    trouble = (
        "the larger ball holds the smaller one. The search loses its way, as where a gradient fades with distance."
    )
    return _no_fewer("larger radius", small, large, "the smaller radius", "the larger", trouble)


def random_start(image: Tensor, draw: Tensor) -> Finding:
    """From a random start the same search breaks about as many queries as from the image.

    Args:
        image, draw: Outcomes bool ``[n]`` of a search from the image and of one from a random draw from the ball.
    """
    trouble = "at the images themselves something is the matter with the gradient. Start at random, several times."
    return _no_fewer("random start", draw, image, "a random start", "the image", trouble)


def black_box(white: Tensor, black: Tensor) -> Finding:
    """A search that sees values only breaks hardly a query that stands against those that see gradients.

    Args:
        white: Outcomes bool ``[n]`` of all white-box attacks together: right under each of them.
        black: Outcomes bool ``[n]`` of the search by values; what is broken anyhow may count as it likes.
    """
    check_outcomes(white, black)
    new, count = int((white & ~black).sum()), len(white)
    trouble = "whoever sees more should do better. Gradients are masked: count what the values say, and find out why."
    seen = f"breaks {new} of {count} queries on which all gradients failed"
    return found("black box", _chance_of(new, count, MISSED) > LEVEL, seen, trouble)


def unlimited_radius(survived: Tensor, chance: float) -> Finding:
    """An attacker who may turn every image into plain gray leaves no more right answers than one can guess.

    Args:
        survived: Outcomes bool ``[n]`` at a radius of 1/2 or more (by the largest change of a pixel).
        chance: Share of the gallery that its most frequent class has, which is how often one answer for all is right.
    """
    check_outcomes(survived)
    left, count = int(survived.sum()), len(survived)
    trouble = "any image can be turned into any other on the way to gray. The search fails, not the attacker."
    seen = f"{left} of {count} still right at 1/2, where all images can be turned gray"
    return found("unlimited radius", _chance_of(left, count, min(chance, 1.0)) > LEVEL, seen, trouble)


def loss_at_the_end(losses: Tensor, survived: Tensor | None = None) -> Finding:
    """The losses of queries that were not broken have come to rest when the search ends.

    Args:
        losses: ``[steps, n]``, at each step of one run in its order, as `Overheard` gives them; at least `LOOKS`.
        survived: Outcome bool ``[n]`` of the run, since what is broken may fall as it likes; None takes all losses.

    Raises:
        ValueError: Of another shape, or too few steps.
    """
    if losses.ndim != 2 or len(losses) < LOOKS or not losses.shape[1]:
        raise ValueError(f"losses of shape {tuple(losses.shape)}: expected [steps, n] with at least {LOOKS} steps")
    everything = torch.ones(losses.shape[1], dtype=torch.bool)
    survived = everything if survived is None else survived.cpu()
    check_outcomes(everything, survived)
    best = losses.cpu().double().cummin(0).values[:, survived]
    last = len(best) // 4
    ahead = (best[-1 - last] - best[-1]) / last * (len(best) - 1)
    falling, count = int((ahead > FALLING * (best[0] - best[-1])).sum()), len(survived)
    trouble = "the search was stopped too early. Take more steps, or steps that fall, until nothing changes."
    seen = f"{falling} of {count} queries are not broken and their loss still falls"
    return found("loss at the last step", _chance_of(falling, count, MISSED) > LEVEL, seen, trouble)


def one_for_all(data: RetrievalData, chunk: int = 1024) -> float:
    """Share of all queries of a data set that always the same item answers, at best: what needs no look at an image.

    Args:
        data: ``data.query`` searches ``data.gallery``, with self left out as its protocol says.
        chunk: Queries at once; decides memory, not the result.
    """
    kinds = data.gallery.labels.cpu().unique(dim=0)
    answered = sum(relevance(part, kinds).sum(0) for part in data.query.labels.cpu().split(chunk))
    return (answered.max().item() - data.protocol.self_excluded) / len(data.query)


def check_outcomes(*outcomes: Tensor) -> None:
    """Raise a ValueError unless all are bool ``[n]`` of the same queries."""
    shapes = {tuple(outcome.shape) for outcome in outcomes}
    if len(shapes) > 1 or any(outcome.ndim != 1 or outcome.dtype != torch.bool for outcome in outcomes):
        given = ", ".join(f"{outcome.dtype} {tuple(outcome.shape)}" for outcome in outcomes)
        raise ValueError(f"outcomes {given}: expected bool [n], of the same queries")
    if not len(outcomes[0]):
        raise ValueError("outcomes of 0 queries: expected at least one")


def _lower(some: Tensor, others: Tensor) -> int:
    """How many are lower than the other of their pair, by more than rounding."""
    return int((some < others - ROUNDING).sum())


def _no_fewer(name: str, weak: Tensor, strong: Tensor, weak_words: str, strong_words: str, trouble: str) -> Finding:
    """A sign test on the queries that one of the two breaks and the other does not (McNemar, exact and one-sided)."""
    check_outcomes(weak, strong)
    against, for_it = int((strong & ~weak).sum()), int((weak & ~strong).sum())
    chance = _chance_of(against, against + for_it, 0.5)
    seen = f"{against} of {len(weak)} broken by {weak_words} alone, {for_it} by {strong_words} alone"
    return found(name, chance > LEVEL, seen, trouble)


def _chance_of(hits: int, tries: int, share: float) -> float:
    """Probability of at least so many hits, each try one with the given probability."""
    if hits == 0 or share == 1:
        return 1.0
    counts = torch.arange(hits, tries + 1, dtype=torch.float64)
    odds = torch.tensor(share, dtype=torch.float64)
    return Binomial(torch.tensor(float(tries), dtype=torch.float64), odds).log_prob(counts).exp().sum().item()
