"""Data made ready while the step before is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Runs an iterator in a thread of its own, at most `ahead` items before its reader.

    The items and their order are those of the iterator; what it raises is raised to the reader in its place. Use it
    as a context, so that the thread ends with the reader.
    """

    def __init__(self, items: Iterable[T], ahead: int = 2) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        while not self._queue.empty():  # makes room for a worker that waits to put
            self._queue.get_nowait()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            what, value = self._queue.get()
            if what == "end":
                return
            if isinstance(value, BaseException) and what == "error":
                raise value
            yield value  # type: ignore[misc]

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:
            self._put(("error", error))

    def _put(self, entry: tuple[str, T | BaseException | None]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
