"""What PyTorch's own allocator hands out on the CPU, as its profiler records it."""

from __future__ import annotations

import gc
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time while `work` ran, over those that were before.

    The profiler sees one thread. What another frees is known to be free once its place is handed out again, and makes
    the figure too large until then.
    """
    gc.collect()  # what is left of earlier work would be freed while this is measured
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    live = _Live()
    most = 0
    results = profiler.profiler.kineto_results
    for _, place, size in sorted(_allocations(results.experimental_event_tree())):
        if size > 0:
            live.add(place, size)
        else:
            live.remove(place)
        most = max(most, live.bytes)
    return most


def _allocations(events: list[Any]) -> Iterator[tuple[int, int, int]]:
    """Time in nanoseconds, address and bytes (negative when freed) of each."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.typed[1].ptr, event.typed[1].alloc_size
        yield from _allocations(event.children)


class _Live:
    """Blocks of memory in use, none of which overlaps another."""

    def __init__(self) -> None:
        self.bytes = 0
        self._places: list[int] = []
        self._sizes: dict[int, int] = {}

    def add(self, place: int, size: int) -> None:
        first = at = bisect_left(self._places, place)
        while at < len(self._places) and self._places[at] < place + size:
            at += 1
        if first and self._places[first - 1] + self._sizes[self._places[first - 1]] > place:
            first -= 1
        for gone in self._places[first:at]:
            self.remove(gone)
        insort(self._places, place)
        self._sizes[place] = size
        self.bytes += size

    def remove(self, place: int) -> None:
        """Frees what is there; does nothing where that was allocated before the first block or by another thread."""
        if place in self._sizes:
            self.bytes -= self._sizes.pop(place)
            del self._places[bisect_left(self._places, place)]
