"""The texts of a packed file: UTF-8 bytes, which NumPy stores without pickling."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robret_lib.data.errors import DataError

# A file name need not be UTF-8; Python lists the bytes of one that is not as lone surrogates, and takes them back.
_ERRORS_OF_FILE_NAMES = "surrogateescape"


def encoded(texts: Sequence[str], member: str, path: Path) -> np.ndarray:
    """The texts as bytes ``[len(texts)]``, from which `decoded` makes them again.

    Raises:
        DataError: naming the position, if one is no text or would come back as another.
    """
    return np.array([_bytes(text, member, f"{path}: {member!r} {i}") for i, text in enumerate(texts)], dtype=bytes)


def decoded(stored: np.ndarray, member: str, path: Path) -> tuple[str, ...]:
    """The texts of a member; bytes that are no UTF-8 are replaced, but kept in file names.

    Raises:
        DataError: if it does not hold bytes.
    """
    if stored.dtype.kind != "S" or stored.ndim != 1:
        raise DataError(f"{path}: {member!r} is {stored.dtype} {stored.shape}; expected bytes, one dimension")
    errors = _ERRORS_OF_FILE_NAMES if member == "name" else "replace"
    return tuple(text.decode(errors=errors) for text in stored)


def printable(text: str) -> str:
    """The text with what a terminal does not show, as lone surrogates and control characters, written as escapes."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _bytes(text: str, member: str, where: str) -> bytes:
    if not isinstance(text, str):
        raise DataError(f"{where} is {text!a}, a {type(text).__name__}; expected a str")
    if "\0" in text:
        raise DataError(f"{where} is {text!a}; expected a text without NUL characters, which would be lost")
    errors = _ERRORS_OF_FILE_NAMES if member == "name" else "strict"
    try:
        stored = text.encode(errors=errors)
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is {text!a}, which UTF-8 cannot hold; give it another") from error
    if stored.decode(errors=errors) != text:
        raise DataError(f"{where} is {text!a}, which would come back as {stored.decode(errors=errors)!a}")
    return stored
