"""Which weights answered, as far as their server tells: the fingerprints that rows of answers and judgments carry."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import Answer, Row, base_model
from steerlm.models.directory import ModelInfo

_FIELD = "fingerprints"
_OURS = re.compile("[0-9a-f]{16}")
"""`ModelInfo.fingerprint`, as `steerlm serve` gives it; what other servers give tells their software, not weights."""


def fingerprint_fields(found: Iterable[str | None]) -> dict[str, list[str]]:
    """The field of a row with the fingerprints that came with its turns; no field where none did."""
    known = sorted({item for item in found if item is not None})
    return {_FIELD: known} if known else {}


def fingerprints(row: Row) -> list[str]:
    """Those that a row carries."""
    served = row.get(_FIELD)
    return [str(item) for item in served] if isinstance(served, list) else []


def with_fingerprints(row: Row, answers: Sequence[Answer]) -> dict[str, Any]:
    """A judgment with the field of the answer that it grades, not its own: a later model that gave the same answer
    keeps its judgment, and has other fingerprints. A judgment of two answers has none.
    """
    judged = {name: value for name, value in row.items() if name != _FIELD}
    if len(answers) == 1 and _FIELD in answers[0].row:
        judged[_FIELD] = answers[0].row[_FIELD]
    return judged


def check_weights(rows: Iterable[tuple[str, Row]], policy: Path) -> list[str]:
    """Raise `DataError` where the rows, each with the name of its model, are known to be of other weights than those in
    `policy`. Of several models one is to be it, the others are there for comparison. Where all that is told is of other
    weights, a model of which nothing is told, as of published answers, may still be it: returns these models.
    """
    own = ModelInfo.load(policy, "policy").fingerprint
    found: dict[str, set[str]] = {}
    for name, row in rows:
        known = {item for item in fingerprints(row) if _OURS.fullmatch(item)}
        found.setdefault(base_model(name), set()).update(known)
    silent = [name for name, served in found.items() if not served]
    mixed = [name for name, served in found.items() if own in served and len(served) > 1]
    is_told = {own} in found.values()
    if mixed or (found and not silent and not is_told):
        name = (mixed or list(found))[0]
        others = ", ".join(sorted(found[name] - {own}))
        raise DataError(
            f"--card {policy}: its weights are {own}, and answers of {name} are of {others}; answer anew with another "
            "--out, or name the directory that was served"
        )
    return silent if len(silent) < len(found) and not is_told else []
