"""What an unfinished annotation keeps on disk, so that it can be killed at any moment and go on.

A text file. The first line, `#{...}`, holds the key of the run: all that its result depends on. Then come blocks,
one for each window of the input: `+` lines are results, `-` lines are rejects, and the block is closed by

    =<crc32 of the block and of the totals, in hex> <totals as JSON>

A block without its closing line, or with another checksum, was being written when the process died. It is cut off.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from steerlm.annotation.report import Totals
from steerlm.errors import DataError
from steerlm.files import json_line, open_locked

_FORMAT = 1
_NAMES = {
    "input": "the input file",
    "model": "the model",
    "schema": "the schema",
    "steerlm": "the version of steerlm",
}


class Journal:
    """The journal of the run identified by `key`, opened for going on; `totals` say how far it had come.

    With `fresh`, whatever is in the file is forgotten. Raises `DataError` where it is in use by another process or,
    without `fresh`, belongs to another run or is no journal.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = path
        self._stream = self._open()
        try:
            if fresh:
                self._restart(key)
                self.totals = Totals()
                return
            found = self._read_key(key)
            self.totals = self._recover()
            if found != key:
                self._replace_unused(found, key)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Bytes that could not be written (a full disk) must not raise once more; the journal is cut on opening.
        with suppress(OSError):
            self._stream.close()

    def append(self, results: Sequence[object], rejects: Sequence[object], totals: Totals) -> None:
        """Add the outcome of a window; on return it is on the disk."""
        block = b"".join([b"+" + json_line(item) for item in results] + [b"-" + json_line(item) for item in rejects])
        body = json_line(totals.to_dict())
        self._stream.seek(0, os.SEEK_END)
        self._stream.write(block + b"=%08x " % zlib.crc32(body, zlib.crc32(block)) + body)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.totals = totals

    def results(self) -> Iterator[Any]:
        """The results so far, in the order of the input."""
        return self._items(b"+")

    def rejects(self) -> Iterator[Any]:
        """The rejects so far, in the order of the input."""
        return self._items(b"-")

    def remove(self) -> None:
        """Delete the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _items(self, mark: bytes) -> Iterator[Any]:
        self._stream.seek(0)
        for line in self._stream:
            if line.startswith(mark):
                yield json.loads(line[1:])

    def _open(self) -> IO[bytes]:
        """The file, locked: two processes that append to one journal would mix their blocks."""
        stream = open_locked(self.path)
        if stream is None:
            raise DataError(
                f"{self.path}: another process is annotating into the same file; wait for it, or choose another --out"
            )
        return stream

    def _read_key(self, key: Mapping[str, Any]) -> Mapping[str, Any]:
        line = self._stream.readline()
        if not line.endswith(b"\n") and _header(key).startswith(line):
            # New, or the process died before the first line was through.
            self._restart(key)
            return key
        with suppress(ValueError):
            record = json.loads(line[1:]) if line[:1] == b"#" else None
            if isinstance(record, dict) and record.get("journal") == _FORMAT and isinstance(record.get("key"), dict):
                return dict(record["key"])
        raise DataError(f"{self.path}: not a journal of this version; remove it, choose another --out, or pass --fresh")

    def _restart(self, key: Mapping[str, Any]) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self._stream.write(_header(key))
        self._stream.flush()

    def _recover(self) -> Totals:
        """Totals of the last whole block; what stands after it is cut off."""
        totals, good, check = Totals(), self._stream.tell(), 0
        for line in self._stream:
            if line[:1] != b"=":
                check = zlib.crc32(line, check)
                continue
            body = line[10:]
            if line[1:10] != b"%08x " % zlib.crc32(body, check):
                break
            totals, good, check = Totals.from_dict(json.loads(body)), self._stream.tell(), 0
        self._stream.seek(good)
        self._stream.truncate()
        return totals

    def _replace_unused(self, found: Mapping[str, Any], key: Mapping[str, Any]) -> None:
        """Take over the journal of another run that had not come to anything; refuse to throw away work."""
        if self.totals.line:
            other = [_NAMES.get(name, name) for name in key if found.get(name) != key[name]]
            raise DataError(
                f"{self.path} keeps {self.totals.conversations} conversations annotated by another run; different: "
                f"{', '.join(other) or 'settings'}. Run that one to its end, choose another --out, or pass --fresh "
                "to throw its work away"
            )
        self._restart(key)


def _header(key: Mapping[str, Any]) -> bytes:
    return b"#" + json_line({"journal": _FORMAT, "key": key})
