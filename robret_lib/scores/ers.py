"""The empirical robustness score (ERS): the mean of ten rows of attacks, as the published tables have it."""

from collections.abc import Callable, Mapping

NORMALIZED: dict[str, Callable[[float], float]] = {
    "CA+": lambda rank: 2 * rank,
    "CA-": lambda rank: 100 - rank,
    "QA+": lambda rank: 2 * rank,
    "QA-": lambda rank: 100 - rank,
    "TMA": lambda cosine: 100 * (1 - cosine),
    "ES:D": lambda shift: 50 * (2 - shift),
    "ES:R": lambda recall: recall,
    "LTM": lambda recall: recall,
    "GTM": lambda recall: recall,
    "GTT": lambda retained: retained,
}
"""What each row counts in the score; 100 is robust, if one believes it. The keys are the names of the rows."""


def ers(rows: Mapping[str, float]) -> float:
    """The mean of the ten normalized rows (Zhou et al. 2024; RobRank, ``tools/pjswipe.py``).

    Read it with care: four rows are capped by the benign ranking, so that accuracy passes for robustness; a collapsed
    model scores near 30, since what does not move counts as robust; and a row for itself may exceed 100.
    `relative.relative_robustness` mends this.

    Args:
        rows: Of the ten rows, in the units of the tables: CA and QA percentile ranks, ES:R, LTM, GTM and GTT in
            percent; TMA a cosine; ES:D a distance of unit vectors.

    Raises:
        ValueError: Rows that are missing, or that are none of the ten.
    """
    check_rows(rows)
    return sum(normalize(rows[name]) for name, normalize in NORMALIZED.items()) / len(NORMALIZED)


def check_rows(rows: Mapping[str, object]) -> None:
    """Raise a ValueError unless these are the ten rows."""
    missing, unknown = (
        [name for name in NORMALIZED if name not in rows],
        [name for name in rows if name not in NORMALIZED],
    )
    if missing or unknown:
        wrong = [f"{' '.join(names)} {what}" for names, what in ((missing, "missing"), (unknown, "unknown")) if names]
        raise ValueError(f"rows: {', '.join(wrong)}; expected {' '.join(NORMALIZED)}")
