"""Where evaluation results are kept: as JSON in the model's own directory, from which its card is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from steerlm.errors import DataError
from steerlm.files import sha256, write_json

FOLDER, REPORT, FIGURES, RADAR = "evaluation", "steering.html", "figures", "mt_bench.png"
"""The folder within a model's directory; within it the report on steering, the folder of its figures, and the plot of
MT-Bench's categories."""
ROUNDED = "rounding (bfloat16)"
"""The name of the check of an attribute model's invariance that tells what bfloat16 adds."""


def evaluation_folder(model: str | Path) -> Path:
    """The folder of a model's results."""
    return Path(model) / FOLDER


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Write a result as `name`.json, with the day (UTC); returns its path."""
    path = folder / f"{name}.json"
    write_json(path, {**record, "date": datetime.now(UTC).date().isoformat()})
    return path


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """A result, or None where there is none. Raises `DataError` for a file that is no JSON object."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON: {error}; remove it, or evaluate again") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: not a result of an evaluation; remove it, or evaluate again")
    return record


def distinct_names(paths: Sequence[Path]) -> dict[Path, str]:
    """For each file as few of the last parts of its path as no other file's path ends in; a file's whole path where it
    is the end of another's.
    """
    files = list(dict.fromkeys(paths))
    names = {}
    for path in files:
        endings = [path.parts[-count:] for count in range(1, len(path.parts) + 1)]
        others = [other.parts for other in files if other != path]
        own = (ending for ending in endings if not any(other[-len(ending) :] == ending for other in others))
        names[path] = str(Path(*next(own, path.parts)))
    return names


def data_provenance(paths: Sequence[Path], counts: Mapping[Path, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Names and digests of data files, with the counts of a file's import where there are any."""
    return [
        {"name": name, "sha256": sha256(path), **counts.get(path, {})} for path, name in distinct_names(paths).items()
    ]
