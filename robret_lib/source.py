"""What code says, apart from how it is worded: for files that must not be taken for those of other code."""

import ast
import hashlib
from collections.abc import Iterable


def digest(sources: Iterable[str]) -> str:
    """Of the syntax trees of modules, without comments and docstrings: 64 hexadecimal digits."""
    return hashlib.sha256("".join(map(_tree, sources)).encode()).hexdigest()


def _tree(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.dump(tree)
