"""Which kind of source a file is, told from its first record."""

from __future__ import annotations

from pathlib import Path

from steerlm.errors import DataError
from steerlm.files import read_records

# Keys that only records of a kind have together, the most particular first.
_MARKS: tuple[tuple[str, frozenset[str]], ...] = (
    ("jsonl", frozenset({"id", "messages"})),
    ("oasst", frozenset({"message_id", "text", "role"})),
    ("oasst", frozenset({"message_tree_id", "prompt"})),
    ("nemo", frozenset({"conversations"})),
    ("nemo", frozenset({"text", "label"})),
    ("responses", frozenset({"prompt", "responses"})),
    ("helpsteer", frozenset({"prompt", "response"})),
)


def detect_kind(path: str | Path) -> str:
    """The kind of `path`. Raises `DataError` where it is none that we read."""
    first = next(read_records(path), None)
    if first is None:
        raise DataError(f"{path}: the file holds no records")
    keys = set(first[1])
    for kind, marks in _MARKS:
        if marks <= keys:
            return kind
    raise DataError(
        f"{path}: cannot tell what kind of data this is from the keys {', '.join(sorted(keys))}; "
        "bring it into our own form, which README.md shows, or that of HelpSteer (prompt, response, ratings)"
    )
