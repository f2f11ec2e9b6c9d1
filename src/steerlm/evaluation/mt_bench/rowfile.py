"""A JSONL file that grows row by row and survives a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import Row, parse_row
from steerlm.files import json_line, lock, read_records, write_jsonl


class _Numbered(Protocol):
    @property
    def question_id(self) -> int: ...


class RowFile:
    """A file of rows, held by one process at a time; a row is on the disk when `append` returns.

    A last line that a kill cut short is taken away on opening. Raises `DataError` where another process holds the
    file, or a line before the last is no row of that `kind`.
    """

    def __init__(self, path: Path, kind: Callable[[Row], _Numbered]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own for the lock: the rows are replaced as a whole when they are sorted.
        self._lock = path.with_name(f".{path.name}.lock").open("a")
        if not lock(self._lock):
            self._lock.close()
            raise DataError(f"{path}: another process is writing this file; wait for it, or choose another --out")
        try:
            self._mend()
            self.rows: list[dict[str, Any]] = []
            for line, row in read_records(path) if path.exists() else ():
                number = parse_row(path, line, row, kind).question_id
                self.rows.append({**row, "question_id": number})  # others may spell it as text
            self._stream = path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._lock.close()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
        self._stream.write(json_line(row))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.rows.append(dict(row))

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put other rows in place of all, whole or not at all; those that are the same are left as they are."""
        replaced = [dict(row) for row in rows]
        if replaced == self.rows:
            return
        self.rows = replaced
        self._stream.close()
        write_jsonl(self.path, self.rows)
        self._stream = self.path.open("ab")

    def _mend(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        if not text or text.endswith(b"\n"):
            return
        whole, _, last = text.rpartition(b"\n")
        try:
            json.loads(last)
        except ValueError:
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole) + 1 if whole else 0)
        else:
            with self.path.open("ab") as stream:  # by a program that ends no last line
                stream.write(b"\n")
