"""Stopping on request: SIGTERM (schedulers) and SIGINT (people) let the step finish, save, and end with a message."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from steerlm.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notes SIGTERM and SIGINT while the block runs. A second Ctrl-C acts as it would have without us; further SIGTERMs
    do not, as schedulers and torchrun send several.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            self._restore()
            signal.raise_signal(number)
        self.signal = self.signal or number

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


class _TerminatedInterrupt(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT: nobody takes it for an error of their own."""


@contextmanager
def stop_at_once() -> Iterator[None]:
    """While the block runs, which has nothing to save, SIGTERM ends it with `StoppedError`, as Ctrl-C does with
    `KeyboardInterrupt`; a `StopRequest` within it goes before.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise _TerminatedInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _TerminatedInterrupt:
        raise StoppedError(
            "stopped outside of the training's steps, with nothing more to save; run the same command again to go on",
            signal.SIGTERM,
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
