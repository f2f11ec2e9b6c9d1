"""Records of a source before they are conversations: each with its place, read with checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlm.errors import DataError
from steerlm.files import Row, read_rows
from steerlm.sources import hub
from steerlm.sources.report import Report


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object of a source. `where` names its file and line (or the part of it) for messages to people."""

    where: str
    data: Mapping[str, Any]

    def fault(self, message: str) -> DataError:
        return DataError(f"{self.where}: {message}")

    def text(self, key: str, hint: str = "") -> str:
        """The string under `key`. Raises `DataError` where it is missing, no string, or no valid Unicode."""
        value = self.optional_text(key)
        if value is None:
            raise self.fault(f"{key} is missing; it must be a string{hint}")
        return value

    def optional_text(self, key: str) -> str | None:
        """The string under `key`, None where the key is absent or null."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.fault(f"{key} must be a string, found {kind_of(value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.fault(f"{key} contains an unpaired surrogate, which is not valid Unicode") from None
        return value

    def optional_flag(self, key: str) -> bool | None:
        value = self.data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fault(f"{key} must be true, false or null, found {kind_of(value)}")
        return value

    def items(self, key: str) -> list[Any]:
        """The list under `key`, empty where the key is absent or null."""
        value = self.data.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fault(f"{key} must be a list, found {kind_of(value)}")
        return value

    def part(self, where: str, data: object) -> Record:
        """A record within this one."""
        if not isinstance(data, dict):
            raise self.fault(f"{where} must be an object, found {kind_of(data)}")
        return Record(f"{self.where}: {where}", data)


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names: dict[type, str] = {str: "a string", bool: "a boolean", dict: "an object", list: "a list"}
    return names.get(type(value), "a number")


def read_sources(sources: Sequence[str | Path], report: Report) -> Iterator[Record]:
    """The records of files and hub references, one source after the other.

    Raises `DataError` for a source that cannot be read, and for a faulty line unless faulty ones are skipped.
    """
    for source in sources:
        paths = hub.fetch(str(source)) if str(source).startswith(hub.PREFIX) else [Path(source)]
        for path in paths:
            name = f"{source} ({path.name})" if len(paths) > 1 else str(source)
            for row in read_rows(path):
                report.read["records"] += 1
                record = None
                with report.tolerating("records"):
                    record = _record(row, f"{name}: line {row.line}")
                if record is not None:
                    yield record


def _record(row: Row, where: str) -> Record:
    if row.fault:
        raise DataError(f"{where}: {row.fault}")
    if not isinstance(row.record, dict):
        raise DataError(f"{where}: expected a JSON object, found {kind_of(row.record)}")
    return Record(where, row.record)
