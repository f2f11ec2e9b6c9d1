"""What a run tells: `metrics.jsonl` for programs, dashboards where asked for, a progress bar for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from steerlm.files import json_line, replacing
from steerlm.training.trackers import open_dashboards, scalars

# Seconds of which the speed is taken to tell the time left; a step of a large model takes many.
_SPEED_OVER = 3600.0


class MetricsLog:
    """One JSON object a line. On resuming, lines past the checkpoint are taken back: each step is there once.

    Without a path it writes nothing, as on all ranks but the main one. `settings` are for the dashboards in `track`.
    """

    def __init__(
        self,
        path: Path | None,
        resume_at: int | None,
        track: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._stream = None
        self._dashboards = open_dashboards(track, path.parent, resume_at, settings) if path else []
        if path is None:
            return
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
        """Add a record, with at least its `step` and `kind`."""
        if self._stream is None:
            return
        self._stream.write(json_line(record))
        self._stream.flush()
        figures = {name: value for name, value in record.items() if name not in ("step", "kind")}
        for dashboard in self._dashboards:
            dashboard.log(scalars(figures, f"{record['kind']}/"), record["step"])

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        for dashboard in self._dashboards:
            dashboard.finish()


class Display:
    """A live progress bar on a terminal; elsewhere (a log file) one line now and then.

    It counts conversations, whose number is known beforehand; how many steps they make is not. A run that is to end
    after `max_steps` is measured by these, where they come first.
    """

    def __init__(
        self, title: str, total: int, max_steps: int | None, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.title = title
        self.total = total
        self._max_steps = max_steps
        self._live = self.console.is_terminal and not quiet
        self._shown = 0
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self._live,
            speed_estimate_period=_SPEED_OVER,
        )
        self._bar = self._progress.add_task(title, total=1.0, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, conversations: int, number: int, loss: float, speed: Mapping[str, float]) -> None:
        """Show that step `number` is through, and `conversations` of all epochs with it."""
        done = min(1.0, conversations / self.total)
        if self._max_steps:
            done = max(done, number / self._max_steps)
        note = (
            f"step {number}  loss {loss:.4f}  {speed['tokens_per_second']:.0f} tokens/s  "
            f"{speed['memory_mb'] / 1024:.1f} GiB"
        )
        self._progress.update(self._bar, completed=done, note=note)
        if not self._live and int(done * 20) > self._shown:
            self._shown = int(done * 20)
            left = self._progress.tasks[self._bar].time_remaining
            when = "" if left is None else f"  {timedelta(seconds=left)} left"
            self.say(f"{self.title}: {done:.0%}  {note}{when}")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)
