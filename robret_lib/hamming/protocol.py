"""How a MAP was measured. Published ones differ in every part of it, so it travels with each number."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from torch import Tensor

from robret_lib.hamming.average_precision import Ties, average_precisions, check_depth

Unanswered = Literal["zero", "left out"]


@dataclass(frozen=True)
class MapProtocol:
    """All that decides a MAP, besides the codes.

    Args:
        data: The data set and how it was split, in words.
        top_k, ties: As in `average_precisions`.
        unanswered: What a query counts that no item of the gallery answers: "zero", as in most published codes; or
            "left out", as in DHTA's, which has fewer queries then.

    Raises:
        ValueError: No such rule, an impossible depth, or no words.
    """

    data: str
    top_k: int | None = None
    ties: Ties = "expected"
    unanswered: Unanswered = "zero"

    def __post_init__(self) -> None:
        if not isinstance(self.data, str) or not self.data:
            raise ValueError(f"data={self.data!r}: expected the data set and how it was split, in words")
        check_depth(self.top_k)
        for name, known in (("ties", Ties), ("unanswered", Unanswered)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {get_args(known)}")

    def measure(
        self,
        query_codes: Tensor,
        gallery_codes: Tensor,
        query_labels: Tensor,
        gallery_labels: Tensor,
        own: Tensor | None = None,
    ) -> "MeasuredMap":
        """The MAP of these codes. Arguments and errors as in `average_precisions`.

        Raises:
            ValueError: No query has an answer, and such queries are left out.
        """
        given = query_codes, gallery_codes, query_labels, gallery_labels
        found = average_precisions(*given, self.top_k, self.ties, own)
        if self.unanswered == "left out":
            found = found[average_precisions(*given, own=own) > 0]
            if not len(found):
                raise ValueError("no query has an answer in the gallery, and such queries are left out")
        return MeasuredMap(100 * found.mean().item(), self, found, own is not None)

    def __str__(self) -> str:
        depth = "all" if self.top_k is None else self.top_k
        return f"MAP@{depth} on {self.data}, ties {self.ties}, queries without an answer {self.unanswered}"


@dataclass(frozen=True, eq=False)
class MeasuredMap:
    """A MAP and how it was measured.

    Args:
        percent: The mean.
        protocol: How.
        by_query: The average precision of each query that counts, in [0, 1].
        without_itself: Whether queries are items of the gallery, each left out of its own ranking.
    """

    percent: float
    protocol: MapProtocol
    by_query: Tensor = field(repr=False)
    without_itself: bool = False

    @property
    def decided_by(self) -> dict[str, object]:
        """All that numbers of one table must have in common, by name."""
        counted = {"queries": len(self.by_query), "without itself": self.without_itself}
        return asdict(self.protocol) | counted


def side_by_side(found: Mapping[str, MeasuredMap]) -> str:
    """A Markdown table of several, the protocol above it.

    Raises:
        ValueError: They were measured by different protocols, so that they do not compare; or there are none.
    """
    if not found:
        raise ValueError("no MAP to put into a table")
    protocols = [one.decided_by for one in found.values()]
    differing = [name for name in protocols[0] if len({each[name] for each in protocols}) > 1]
    if differing:
        told = "; ".join(f"{label}: {one.protocol}, {len(one.by_query)} queries" for label, one in found.items())
        raise ValueError(f"MAPs of different {', '.join(differing)} in one table: {told}")
    rows = [f"| {label} | {one.percent:.1f} |" for label, one in found.items()]
    return "\n".join([f"{next(iter(found.values())).protocol}:", "", "| | MAP (%) |", "| --- | ---: |", *rows])
