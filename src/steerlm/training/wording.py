"""What is wrong with settings, in our own words: which one, what it is, and what it may be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import ValidationError

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text (put it in quotes)",
    "list": "a list, such as [a, b]",
    "tuple": "a list, such as [a, b]",
    "dict": "a mapping of names to values",
    "model": "a mapping of settings",
    "path": "a path",
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def faults(error: ValidationError, known: Collection[str] = (), name: Callable[[str], str] = str) -> list[str]:
    """One line for each fault. `name` says how a setting is called where the user wrote it, given its path with dots;
    `known` are the names of settings, from which the nearest one to an unknown name is told.
    """
    return [_line(dict(item), known, name) for item in error.errors()]


def nearest(word: str, known: Collection[str]) -> str:
    """A hint at the known word that was probably meant, if any is like it."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _line(item: Mapping[str, Any], known: Collection[str], name: Callable[[str], str]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        last = str(item["loc"][-1])
        hint = nearest(last, known) if len(item["loc"]) == 1 else ""
        among = f"; there are {', '.join(known)}" if known and not hint and len(item["loc"]) == 1 else ""
        return f"{name(path)}: no such setting{hint or among}"
    says = _what(item)
    return f"{name(path)}: {says}" if path else says


def _what(item: Mapping[str, Any]) -> str:
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{_shown(given)} is unknown; choose {context['expected']}"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"must be {words} {context[key]:g}, not {float(given):g}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(given)} does not have the form {context['pattern']}"
    if kind in ("too_short", "missing"):
        return "has too few values"
    if kind in ("too_long", "unexpected_positional_argument"):
        return "has too many values"
    base = "int" if kind == "int_from_float" else kind.removesuffix("_type").removesuffix("_parsing")
    if base in _KINDS:
        return f"must be {_KINDS[base]}, not {_shown(given)}"
    return str(item["msg"])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
