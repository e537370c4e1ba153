"""What a check found, and the report of many: the form that all checks share."""

import re
import textwrap
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Finding(NamedTuple):
    """The outcome of one check.

    Args:
        name: Of the check, in words.
        ok: Nothing found.
        message: What was seen; if not ok also why it matters, what to do, and where the book says more.
    """

    name: str
    ok: bool
    message: str


@dataclass(frozen=True, repr=False)
class Report:
    """What a number of checks found; prints as a table."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No check found anything."""
        return not self.warnings

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings to look at."""
        return tuple(finding for finding in self.findings if not finding.ok)

    def __repr__(self) -> str:
        indent = " " * 34
        lines = [
            textwrap.fill(f"{'ok' if ok else 'LOOK':<6}{name:<28}{message}", 110, subsequent_indent=indent)
            for name, ok, message in self.findings
        ]
        return "\n".join([*lines, f"{len(self.findings)} checks, {len(self.warnings)} to look at"])


def found(name: str, ok: Tensor | bool, seen: str, trouble: str) -> Finding:
    """A finding that tells of the trouble only where there is some, and then names its paragraph in the book.

    Args:
        name: See `Finding`; the paragraph of the page "Warnings" has it as its title.
        ok: See `Finding`.
        seen: What was seen.
        trouble: Why it matters and what to do.
    """
    anchor = re.sub("[^a-z0-9]+", "-", name).strip("-")  # as Sphinx makes it of a title
    return Finding(name, bool(ok), seen if ok else f"{seen}: {trouble} See warnings.html#{anchor}.")
