"""What a chapter's outputs depend on, as one digest: when it changes, the chapter has to run again."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import nbformat

LIBRARY = "robret_lib"
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "faiss-cpu", "matplotlib", "timm")


def fingerprint(chapter: Path, root: Path) -> str:
    """Digest of a chapter's sources, its library files, the result files it may read and the packages.

    Args:
        chapter: the notebook; its stored outputs do not count.
        root: the checkout, with `robret_lib/` and `workflow/`.

    Returns:
        A sha256 in hexadecimal.
    """
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in nbformat.read(chapter, as_version=4).cells]
    code = "\n".join(source for kind, source, _ in cells if kind == "code")
    files = library_files(code, root)
    files |= set((root / LIBRARY).rglob("*.mplstyle")) | set((root / "workflow").rglob("*.json"))
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    for path in sorted(files):
        digest.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    digest.update("\n".join([sys.version, *versions]).encode())
    return digest.hexdigest()


def library_files(code: str, root: Path) -> set[Path]:
    """Files of the library that `code` imports, directly or through other files of the library."""
    files: set[Path] = set()
    todo = imported(code, "")
    while todo:
        parts = todo.pop().split(".")
        if parts[0] != LIBRARY:
            continue
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        for depth in range(1, len(parts) + 1):
            stem = root.joinpath(*parts[:depth])
            init, module = stem / "__init__.py", stem.with_suffix(".py")
            for file, package in ((init, parts[:depth]), (module, parts[: depth - 1])):
                if file.is_file() and file not in files:
                    files.add(file)
                    todo |= imported(file.read_text(encoding="utf-8"), ".".join(package))
    return files


def imported(code: str, package: str) -> set[str]:
    """Dotted names that code inside `package` may import, relative ones resolved; magics are passed over."""
    code = "\n".join("pass" if line.startswith(("%", "!")) else line for line in code.splitlines())
    names: set[str] = set()
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return names  # running it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names
