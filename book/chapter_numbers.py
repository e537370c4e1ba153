"""A Sphinx extension: figures, definitions and theorems carry the number of their chapter, such as "Fig. 4.2".

Sphinx counts through the whole book, and would count the ninth chapter as the eighth while there is no eighth.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

AFTER_SPHINX = 900  # whose own numbers come at priority 500


def number_by_chapter(_app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Give what Sphinx has numbered in ``chapters/NN_topic`` the numbers (NN, 1), (NN, 2), ..., kind by kind."""
    for page, kinds in env.toc_fignumbers.items():
        chapter = re.match(r"chapters/(\d+)_", page)
        for numbers in kinds.values() if chapter else ():
            numbers.update({label: (int(chapter[1]), place) for place, label in enumerate(numbers, 1)})
    return []  # no page must be written again for it


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("env-get-updated", number_by_chapter, priority=AFTER_SPHINX)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
