"""Stopping on request: SIGTERM (schedulers) and SIGINT (people) let the step finish, save, and end with a message."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

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
