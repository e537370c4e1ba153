"""Rules for the parameters of a chapter: what each may be, and the error that says so.

A chapter's ``parameters`` cell holds plain assignments, which papermill overrides from the command line.
papermill only warns about a name it does not know, and hands over ``true`` and ``8/255`` as strings. So every
parameter has a rule here, and `checked` applies them all before a chapter computes anything.
"""

import difflib
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any


class ParameterError(ValueError):
    """A parameter that a chapter cannot run with; the message names it and says what is allowed."""


@dataclass(frozen=True)
class Rule:
    """What one parameter may be.

    Attributes:
        allowed: the permitted values in words, for error messages.
        convert: returns the checked value; raises ``ValueError``, with a hint or empty, where it is refused.
    """

    allowed: str
    convert: Callable[[Any], Any]


def choice(*options: str) -> Rule:
    """One of the given words."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError
        return value

    return Rule("one of " + ", ".join(f'"{option}"' for option in options), convert)


def text() -> Rule:
    """Any words, but not none."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError
        return value

    return Rule("a text that is not empty", convert)


def several(*options: str) -> Rule:
    """Some of the given words, at least one, with commas between them; a tuple comes out, in the order given."""

    def convert(value: Any) -> tuple[str, ...]:
        if not isinstance(value, str):
            raise ValueError
        words = tuple(word.strip() for word in value.split(","))
        if unknown := [word for word in words if word not in options]:
            raise ValueError(f"It does not know {', '.join(map(repr, unknown))}.")
        if len(set(words)) < len(words):
            raise ValueError("It names one twice.")
        return words

    return Rule("one or more of " + ", ".join(f'"{option}"' for option in options) + ", with commas between", convert)


def boolean() -> Rule:
    """``True`` or ``False``, not a word for it."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool):
            word = str(value).capitalize()
            meant = word in ("True", "False")
            raise ValueError(f"Write {word}, with a capital and without quotes." if meant else "")
        return value

    return Rule("True or False", convert)


def integer(minimum: int | None = None, maximum: int | None = None) -> Rule:
    """A whole number between the bounds, both included; ``True`` and ``5.0`` are none."""

    def convert(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            raise ValueError(f"Write {int(value)}, without point or exponent.")
        if isinstance(value, bool) or not isinstance(value, int) or not _inside(value, minimum, maximum):
            raise ValueError
        return value

    return Rule("an integer" + bounds(minimum, maximum), convert)


def fraction(minimum: float | None = None, maximum: float | None = None) -> Rule:
    """A finite number, or a string such as ``"8/255"``, computed exactly and then rounded to a float."""

    def convert(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        try:
            # Without a slash through float: Fraction("1e999999999") would take hours and all memory.
            exact = Fraction(float(value) if isinstance(value, str) and "/" not in value else value)
            number = float(exact)
        except (ArithmeticError, TypeError, ValueError):
            raise ValueError from None
        if not _inside(exact, minimum, maximum):
            raise ValueError
        return number

    return Rule('a finite number or a fraction such as "8/255"' + bounds(minimum, maximum), convert)


def folder() -> Rule:
    """A folder's path, made absolute; it is created when the run starts."""

    def convert(value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        path = Path(value).expanduser().absolute()
        if os.path.isfile(path):  # unlike Path.is_file, no error where the path may not be looked at
            raise ValueError("There is a file of this name.")
        return path

    return Rule("the path of a folder, which need not exist yet", convert)


def optional(rule: Rule) -> Rule:
    """``None``, or what ``rule`` allows."""
    return Rule(f"{rule.allowed}, or None", lambda value: None if value is None else rule.convert(value))


def either(*rules: Rule) -> Rule:
    """What one of the rules allows; the first of them that does decides what comes out."""

    def convert(value: Any) -> Any:
        for rule in rules:
            try:
                return rule.convert(value)
            except ValueError:
                continue
        raise ValueError

    return Rule(", or ".join(rule.allowed for rule in rules), convert)


def bounds(minimum: float | None, maximum: float | None) -> str:
    """The bounds in words, with a leading comma; empty where there are none."""
    limits = ((minimum, "at least"), (maximum, "at most"))
    words = " and ".join(f"{word} {limit}" for limit, word in limits if limit is not None)
    return f", {words}" if words else ""


def refused(name: str, value: object, allowed: str, hint: str = "") -> ParameterError:
    """The error for a value that is not allowed."""
    message = f"{name} = {reprlib.repr(value)} is not allowed. Allowed: {allowed}. {hint}".strip()
    return ParameterError(f"{message} Set it in the parameters cell, or with papermill: -p {name} VALUE.")


def checked(namespace: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The parameters named by ``rules``, taken from ``namespace``, checked and converted.

    Raises:
        ParameterError: where a parameter is missing or its rule refuses it.
    """
    values = {}
    for name, rule in rules.items():
        if name not in namespace:
            raise ParameterError(f"{name} is missing: assign it in the parameters cell ({rule.allowed}).")
        try:
            values[name] = rule.convert(namespace[name])
        except ValueError as hint:
            raise refused(name, namespace[name], rule.allowed, str(hint)) from None
    return values


def refuse_unknown(namespace: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse a literal in ``namespace`` that has no rule: so a misspelt ``papermill -p`` name shows.

    Names with a leading underscore, IPython's history and the paths of ``papermill --inject-paths`` pass.

    Raises:
        ParameterError: naming the unknown parameter, the closest known one, and all known ones.
    """
    ignored = {"In", "Out", "PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH", *rules}
    for name, value in namespace.items():
        if name in ignored or name.startswith("_") or not _is_literal(value):
            continue
        closest = difflib.get_close_matches(name, rules, n=1)
        question = f" Did you mean {closest[0]}?" if closest else ""
        raise ParameterError(
            f"There is no parameter {name} (given: {reprlib.repr(value)}).{question} Known parameters: "
            f"{', '.join(rules)}. A value that is no parameter belongs below the setup cell."
        )


def _is_literal(value: object) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_literal, value))
    if type(value) is dict:
        return all(map(_is_literal, value.values()))
    return type(value) in (int, float, str, bool, type(None))


def _inside(value: float | Fraction, minimum: float | None, maximum: float | None) -> bool:
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)
