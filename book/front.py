"""Draw the picture of the front page: the strip of chapter 1 at twice its resolution.

    python front.py     writes book/_static/front.jpg

Runs the chapter's own code cells up to the figure, so the picture is what the chapter shows, at its default parameters.
"""

import os
import tempfile
from pathlib import Path

import matplotlib
import nbformat

from checkout import settle

FIGURE = "fig-strip"  # the cell, which calls what it draws `figure`


def main() -> None:
    """Run the cells in an empty folder, where their run log is thrown away, and save the figure."""
    root = Path(__file__).resolve().parent.parent
    matplotlib.use("agg")
    chapter = nbformat.read(root / "chapters" / "01_image_retrieval.ipynb", as_version=4)
    settle(root)
    namespace = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        for cell in chapter.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, cell.id, "exec"), namespace)
            if cell.id == FIGURE:
                break
        os.chdir(root)
    options = {"dpi": 200, "bbox_inches": "tight", "pil_kwargs": {"quality": 80, "subsampling": 0}}
    namespace["figure"].savefig(root / "book" / "_static" / "front.jpg", **options)


if __name__ == "__main__":
    main()
