"""Which weights answered, as far as their server tells: the fingerprints that rows of answers and judgments carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import Row
from steerlm.models.directory import ModelInfo

AT = "@"
"""What stands between a model's name and the setting that it was asked at."""
_FIELD = "fingerprints"
_OURS = re.compile("[0-9a-f]{16}")
"""`ModelInfo.fingerprint`, as `steerlm serve` gives it; what other servers give tells their software, not weights."""


def fingerprint_fields(found: Iterable[str | None]) -> dict[str, list[str]]:
    """The field of a row with the fingerprints that came with its turns; no field where none did."""
    known = sorted({item for item in found if item is not None})
    return {_FIELD: known} if known else {}


def copied_fingerprints(answer: Row) -> dict[str, Any]:
    """The same field of an answer, for its judgment."""
    return {_FIELD: answer[_FIELD]} if _FIELD in answer else {}


def without_fingerprints(row: Row) -> dict[str, Any]:
    """A row without that field."""
    return {name: value for name, value in row.items() if name != _FIELD}


def check_weights(rows: Iterable[tuple[str, Row]], policy: Path) -> None:
    """Raise `DataError` where the rows, each with the name of its model, are known to be of other weights than those in
    `policy`. Of several models one is to be it, the others are there for comparison.
    """
    own = ModelInfo.load(policy, "policy").fingerprint
    found: dict[str, set[str]] = {}
    names: set[str] = set()
    for name, row in rows:
        names.add(name.partition(AT)[0])
        served = row.get(_FIELD)
        known = {item for item in served if _OURS.fullmatch(str(item))} if isinstance(served, list) else set()
        if known:
            found.setdefault(name.partition(AT)[0], set()).update(known)
    mixed = {name: served for name, served in found.items() if own in served and len(served) > 1}
    # A model whose server tells nothing may be it.
    if mixed or (found and found.keys() == names and {own} not in found.values()):
        name, served = next(iter((mixed or found).items()))
        others = ", ".join(sorted(served - {own}))
        raise DataError(
            f"--card {policy}: its weights are {own}, and answers of {name} are of {others}; answer anew with another "
            "--out, or name the directory that was served"
        )
