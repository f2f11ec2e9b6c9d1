"""What a run tells: `metrics.jsonl` for programs, a progress bar for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steerlm.files import json_line, replacing


class MetricsLog:
    """One JSON object a line. On resuming, lines past the checkpoint are taken back: each step is there once."""

    def __init__(self, path: Path, resume_at: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if resume_at is not None and path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    if json.loads(line).get("step", 0) <= resume_at:
                        kept.append(line)
                except ValueError:  # the last line of a killed run may be torn
                    continue
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self._stream = path.open("ab")

    def write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(json_line(record))
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class Display:
    """A live progress bar on a terminal; elsewhere (a log file) one line now and then."""

    def __init__(self, title: str, total: int, start: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.title = title
        self.total = total
        self._live = self.console.is_terminal
        self._every = max(1, total // 20)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
        )
        self._bar = self._progress.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, done: int, note: str) -> None:
        """Show that `done` of the steps are through."""
        self._progress.update(self._bar, completed=done, note=note)
        if not self._live and (done % self._every == 0 or done == self.total):
            self.say(f"{self.title}: {done}/{self.total}  {note}")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
