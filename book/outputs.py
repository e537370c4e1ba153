"""What is kept of a notebook's run: its outputs, nothing else, and none that differ from run to run."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import unquote

from nbformat import NotebookNode

from robret_lib.folders import data_root

ESCAPE = re.compile(r"(\\[xuU])([0-9a-f]+)")
COLOR = re.compile(r"\x1b\[[0-9;]*m")


def with_outputs(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The source notebook with the run's outputs; no execution times, no papermill metadata."""
    source.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    source.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell, ran in zip(source.cells, executed.cells, strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = merged_streams(ran.outputs)
    return source


def merged_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighboring pieces of one stream: where a kernel cuts them is a matter of timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def objections(notebook: NotebookNode, root: Path) -> list[str]:
    """Why a notebook must not be stored: warnings, progress bars, paths of this machine."""
    found, here = [], places(root)
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        if any(output.get("name") == "stderr" for output in outputs):
            found.append(f"cell {cell.get('id')} writes to stderr (a warning or a progress bar)")
        if any(here.search(reading) for text in texts(outputs) for reading in readings(text)):
            found.append(f"cell {cell.get('id')} shows a path of this machine")
    return found


def places(root: Path) -> re.Pattern[str]:
    """Matches the folders that tell one machine from another: as they are, and as Python and JSON escape them."""
    folders = {root, data_root(), Path(sys.prefix), Path(os.path.expanduser("~"))}
    forms = set()
    for folder in folders | {folder.resolve() for folder in folders}:
        if folder.is_absolute() and folder != Path(folder.anchor):  # a home of "/" begins every path
            name = str(folder)
            quoted = (repr(name), ascii(name), json.dumps(name), json.dumps(name, ensure_ascii=False))
            forms |= {name, *(form[1:-1] for form in quoted)}
    forms |= {ESCAPE.sub(lambda digits: digits[1] + digits[2].upper(), form) for form in forms}
    forms = {unicodedata.normalize("NFC", form) for form in forms}
    # What stands before or behind a path is none of its letters: "tree/root" is no home folder.
    return re.compile(rf"(?<![\w.~-])(?:{'|'.join(map(re.escape, sorted(forms)))})(?![\w-])")


def texts(value: object, kind: str = "") -> Iterator[str]:
    """Every string within outputs, but for coded pictures, whose characters spell anything."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from texts(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part, kind)
    elif isinstance(value, str) and not (kind.startswith("image/") and kind != "image/svg+xml"):
        yield value


def readings(text: str) -> tuple[str, ...]:
    """The text without colors, its accents composed: as it is, as a link, as HTML, as a link in HTML."""
    plain = unicodedata.normalize("NFC", COLOR.sub("", text))
    return plain, unquote(plain), unescape(plain), unquote(unescape(plain))


def failure(notebook: NotebookNode, log: str) -> str:
    """The failing cell and its traceback, or the end of the log where no cell is to blame."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = COLOR.sub("", "\n".join(output.traceback))
                return f"cell {cell.get('id')}:\n\n{cell.source}\n\n{trace}"
    return f"no cell is to blame; the log ends:\n\n{COLOR.sub('', log)[-3000:]}"
