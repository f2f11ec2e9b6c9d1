"""How far an annotation has come: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
import zlib
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import zstandard
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from steerlm.files import Row
from steerlm.packing import Pack

_SAMPLE = 1 << 18
_QUIET_SECONDS = 30.0


class Extent:
    """The length of an input file, without reading it: in rows for Parquet, else in bytes of text.

    Of a compressed file it is an estimate, from how well its beginning is compressed.
    """

    def __init__(self, path: Path) -> None:
        self._in_rows = path.suffix == ".parquet"
        if self._in_rows:
            self.total = float(_parquet_rows(path))
        else:
            self.total = path.stat().st_size * _expansion(path)

    def of(self, row: Row) -> float:
        return 1.0 if self._in_rows else float(len(row.raw))


def _parquet_rows(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except pyarrow.ArrowInvalid:
        return 1  # reading the file will say what is wrong with it


def _expansion(path: Path) -> float:
    """Bytes of text for each byte of the file."""
    if path.suffix not in (".gz", ".zst"):
        return 1.0
    with path.open("rb") as stream:
        sample = stream.read(_SAMPLE)
    unpacker = zlib.decompressobj(wbits=31) if path.suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj()
    try:
        text = unpacker.decompress(sample)
    except (zlib.error, zstandard.ZstdError):
        return 1.0  # as above
    return len(text) / max(1, len(sample) - len(unpacker.unused_data)) or 1.0


class Watch:
    """Shows progress through an input of `total` units with rates and the time left."""

    def __init__(self, title: str, total: float, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._title = title
        self._total = max(total, 1.0)
        self._live = self.console.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(title, total=1.0, note="")
        self._from: float | None = None
        self._at = 0.0
        self._responses = self._tokens = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, at: float) -> None:
        """Work begins at this place of the input; what comes before it was done by an earlier run."""
        if self._from is None:
            self._from = self._at = at
            self._began = self._said = time.monotonic()
            self._show()

    def pack(self, pack: Pack) -> None:
        """A pack was scored."""
        self._responses += len(pack.responses)
        self._tokens += pack.size
        self._show()

    def reached(self, at: float) -> None:
        """The input is done up to this place."""
        self._at = at
        self._show()

    def _show(self) -> None:
        done, seconds = min(self._at / self._total, 1.0), time.monotonic() - self._began
        note = f"{self._responses / seconds:.1f} responses/s  {self._tokens / seconds:.0f} tokens/s" if seconds else ""
        if self._from is not None and self._at > self._from and seconds:
            left = seconds * max(self._total - self._at, 0.0) / (self._at - self._from)
            note += f"  {timedelta(seconds=round(left))} left"
        self._bar.update(self._task, completed=done, note=note)
        if not self._live and time.monotonic() - self._said >= _QUIET_SECONDS:
            self._said = time.monotonic()
            self.console.print(f"{self._title}: {done:.0%}  {note}", highlight=False, markup=False)
