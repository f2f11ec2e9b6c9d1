"""Reading and writing conversation files: streamed in, and whole or not at all out."""

from __future__ import annotations

import codecs
import errno
import gzip
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation, record_faults
from steerlm.errors import DataError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a JSONL file, or one row of a Parquet file, before anyone trusts it.

    `line` counts from 1. Exactly one of `record` and `fault` is meaningful: a fault says why there is no record.
    `raw` is the line as it stands in the (decompressed) file, from byte `offset` on; empty for Parquet.
    """

    line: int
    record: Any = None
    fault: str | None = None
    raw: bytes = b""
    offset: int = 0


def read_rows(path: str | Path) -> Iterator[Row]:
    """Stream the rows of a `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file; blank lines and a byte order mark
    are passed over.

    A line that is no JSON or no UTF-8 comes as a `Row` with a fault, so that the caller decides. Raises
    `DataError` where the file is missing, or a compressed file is torn, after yielding what could be read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: {'a directory, where a file is needed' if path.is_dir() else 'no such file'}")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    line = offset = 0
    try:
        with _open_compressed(path, "rb") as stream:
            for line, raw in enumerate(stream, start=1):
                if line == 1 and raw.startswith(codecs.BOM_UTF8):  # as some editors write; it is no part of the record
                    offset, raw = len(codecs.BOM_UTF8), raw[len(codecs.BOM_UTF8) :]
                if raw.strip():
                    yield _parse_line(line, raw, offset)
                offset += len(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(
            f"{path}: the compressed file is damaged or cut short after line {line}: {error}; fetch it again"
        ) from error


def _parse_line(line: int, raw: bytes, offset: int) -> Row:
    try:
        return Row(line, record=json.loads(raw.decode("utf-8")), raw=raw, offset=offset)
    except UnicodeDecodeError as error:
        fault = f"not valid UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        fault = f"not valid JSON at column {error.colno}: {error.msg}"
    except ValueError as error:  # a whole number of thousands of digits
        fault = f"not usable JSON: {error}"
    except RecursionError:
        fault = "JSON is nested too deeply"
    return Row(line, fault=fault, raw=raw, offset=offset)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    line += 1
                    yield Row(line, record=_without_nulls(record))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every struct all its keys; in our form an absent rating has no key at all."""
    if isinstance(value, dict):
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or key in ("parent", "parent_id")
        }
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line, object)`; the first row that is not a JSON object raises `DataError` with its place."""
    for row in read_rows(path):
        if row.fault:
            raise DataError(f"{path}: line {row.line}: {row.fault}")
        if not isinstance(row.record, dict):
            raise DataError(f"{path}: line {row.line}: expected a JSON object, found {type(row.record).__name__}")
        yield row.line, row.record


def read_conversations(path: str | Path, schema: Schema = STEERLM) -> Iterator[Conversation]:
    """Stream the conversations of a file in our form; the first faulty one raises `DataError` with its place."""
    seen: dict[str, int] = {}
    for row in read_rows(path):
        yield parse_conversation(path, row, schema, seen)


def parse_conversation(path: str | Path, row: Row, schema: Schema, seen: dict[str, int] | None = None) -> Conversation:
    """The conversation of one row. Raises `DataError` with the place and all faults (see `row_faults` for `seen`)."""
    if faults := row_faults(row, schema, {} if seen is None else seen):
        raise faulty(path, row, faults)
    return Conversation.from_dict(row.record, schema)


def faulty(path: str | Path, row: Row, faults: Sequence[str]) -> DataError:
    """An error that says where a row is and what is wrong with it as a conversation."""
    name = row_id(row)
    where = f"line {row.line}: conversation {name!r}" if name else f"line {row.line}"
    return DataError(f"{path}: {where}: {'; '.join(faults)}")


def row_id(row: Row) -> Any:
    """What a row gives as the id of its conversation, which need be no valid one; None where it gives none."""
    return row.record.get("id") if isinstance(row.record, dict) else None


def row_faults(row: Row, schema: Schema, seen: dict[str, int]) -> list[str]:
    """All faults of one row as a conversation. `seen` maps the ids met so far to their lines, and is added to."""
    if row.fault:
        return [row.fault]
    faults = list(record_faults(row.record, schema))
    name = row_id(row)
    if isinstance(name, str):
        if name in seen:
            faults.append(f"id {name!r} was already used on line {seen[name]}; ids must be unique in a file")
        seen.setdefault(name, row.line)
    return faults


def load_conversations(path: str | Path, schema: Schema = STEERLM) -> list[Conversation]:
    """All conversations of a file. Raises `DataError` where there are none."""
    conversations = list(read_conversations(path, schema))
    if not conversations:
        raise DataError(f"{path}: the file holds no conversations")
    return conversations


def write_conversations(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """Write a file in our form (compressed by its suffix), whole or not at all. Returns the number written."""
    return write_jsonl(path, (conversation.to_dict() for conversation in conversations))


def write_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, compressed by the suffix, whole or not at all. Returns the number written."""
    count = 0
    with replacing(path) as temporary, _open_compressed(temporary, "wb", like=Path(path)) as stream:
        for record in records:
            stream.write(json_line(record))
            count += 1
    return count


def json_line(record: object) -> bytes:
    """One record as its canonical line: UTF-8, no needless spaces, keys as given."""
    line = json.dumps(_finite(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (line + "\n").encode("utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist (a correlation without variance) is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: str | Path, data: object) -> None:
    """Write indented JSON, whole or not at all."""
    write_text(path, json_text(data) + "\n")


def json_text(data: object) -> str:
    """Indented JSON; a figure that does not exist is null."""
    return json.dumps(_finite(data), ensure_ascii=False, indent=2, allow_nan=False)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path to write to that takes the name `path` when the block ends well, and vanishes when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(path):
            yield temporary
        # mkstemp makes private files; what we publish follows the user's umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What a disk without room raises becomes an `OSError` that names `path`.

    Python's own error of a write names no file, and those of safetensors and of tokenizers are no `OSError`.
    """
    try:
        yield
    except Exception as error:
        rust = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None
        if number not in _NO_ROOM:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(path: Path) -> None:
    """Push a file's bytes to the disk, so that a rename after it never shows an empty file."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def lock(stream: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed; False where another process holds it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; going on without is no worse than not asking.
        return True
    return True


def open_locked(path: Path) -> IO[bytes] | None:
    """A file, made where there is none, to read and write and locked; None where another process holds it.

    The holder may remove the file: whoever waits for it never gets one that has lost its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            is_ours = lock(stream)
            if is_ours and path.is_file() and os.path.samestat(path.stat(), os.fstat(stream.fileno())):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()
        if not is_ours:
            return None


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _open_compressed(path: Path, mode: str, like: Path | None = None) -> IO[bytes]:
    suffix = (like or path).suffix
    if suffix == ".gz":
        return _GzipFile(path, mode)  # type: ignore[return-value]
    return _open_zstandard(path, mode) if suffix == ".zst" else path.open(mode)


def _open_zstandard(path: Path, mode: str) -> IO[bytes]:
    if "r" in mode:
        return io.BufferedReader(_ZstandardReader(path))
    stream: IO[bytes] = zstandard.open(path, mode)
    return stream


class _GzipFile(gzip.GzipFile):
    """Without a name and a time stamp in its header: equal content gives equal bytes."""

    def __init__(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)
        super().__init__(filename="", mode=mode, fileobj=self._file, mtime=0)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._file.close()


class _ZstandardReader(io.RawIOBase):
    """Reads all frames of a file. The library's own reader takes a file that ends within a frame for a whole one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._chunks = self._decompressed()
        self._chunk = memoryview(b"")

    def _decompressed(self) -> Iterator[bytes]:
        frame = None
        while data := self._file.read(1 << 14):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame:
            raise EOFError("it ends within a compressed frame")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._chunk = memoryview(chunk)
        count = min(len(buffer), len(self._chunk))
        buffer[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
