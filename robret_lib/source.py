"""What code says, apart from how it is worded: for files that must not be taken for those of other code."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).parent


def digest(sources: Iterable[str]) -> str:
    """Of the syntax trees of modules, without comments and docstrings: 64 hexadecimal digits."""
    return hashlib.sha256("".join(map(_tree, sources)).encode()).hexdigest()


@cache
def of_evaluation() -> str:
    """The digest of all modules of attacks and scores, which judge a network."""
    files = (file for package in ("attacks", "scores") for file in sorted((LIBRARY / package).rglob("*.py")))
    return digest(file.read_text() for file in files)


def _tree(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)
