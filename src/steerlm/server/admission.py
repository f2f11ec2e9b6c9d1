"""Who is computed for now and who waits: a bounded queue, fair between keys."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from steerlm.server.refusals import RefusedError

_RATE_WINDOW_S = 60.0
_LONGEST_WAIT_S = 120.0


@dataclass(eq=False, slots=True)
class Ticket:
    """Leave to compute some sequences. Give it back, in parts or whole, as they end; more than all is the same."""

    key: str
    sequences: int
    _admission: Admission
    waited: float = 0.0
    """Seconds in the queue."""

    def leave(self, sequences: int | None = None) -> None:
        """Free the places of so many sequences, or of all that are left."""
        ended = self.sequences if sequences is None else min(sequences, self.sequences)
        self.sequences -= ended
        if ended:
            self._admission.left(self.key, ended)


@dataclass(eq=False, slots=True)
class _Waiter:
    key: str
    sequences: int
    since: float
    bounded: bool
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """Lets at most `running` sequences be computed at a time, and at most `waiting` wait. For one event loop.

    A request counts by its sequences (n, the settings of a sweep). The next in turn is of the key with the fewest
    sequences running, its oldest request first, and nobody overtakes it: a large request is not starved by small
    ones. When the queue is full, a key that has much in it gives way to one that has less.
    """

    def __init__(self, running: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_running = running
        self.most_waiting = waiting
        self._clock = clock
        self._running: dict[str, int] = {}
        self._queues: dict[str, deque[_Waiter]] = {}
        self._ended: deque[tuple[float, int]] = deque()

    @property
    def running(self) -> int:
        """Sequences that are computed now."""
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait."""
        return sum(waiter.sequences for queue in self._queues.values() for waiter in queue)

    async def enter(self, key: str, sequences: int, bounded: bool = True) -> Ticket:
        """Wait for the turn of a request. One that is not `bounded` waits however many do, and takes no place in the
        queue from others.

        Raises `RefusedError`: 400 where it has more sequences than may ever run at once, 429 where the queue is full.
        Whoever is cancelled while it waits leaves the queue.
        """
        if sequences > self.most_running:
            raise RefusedError(
                400,
                f"{sequences} answers in one request, where this server computes at most {self.most_running} at a "
                "time; ask for fewer",
                "too_many_sequences",
            )
        if not self._queues and self.running + sequences <= self.most_running:
            self._start(key, sequences)
            return Ticket(key, sequences, self)
        waiter = _Waiter(key, sequences, self._clock(), bounded)
        if bounded:
            self._make_room(waiter)
        self._queues.setdefault(key, deque()).append(waiter)
        self._advance()
        try:
            await waiter.turn
        except BaseException:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self.left(key, sequences, count=False)
            else:
                self._forget(waiter)
                self._advance()
            raise
        return Ticket(key, sequences, self, self._clock() - waiter.since)

    def left(self, key: str, sequences: int, count: bool = True) -> None:
        """Sequences have ended; with `count` they tell how fast this goes."""
        self._running[key] -= sequences
        if not self._running[key]:
            del self._running[key]
        if count:
            self._ended.append((self._clock(), sequences))
        self._advance()

    def retry_after(self, sequences: int) -> float:
        """Seconds after which so many sequences might find room, by how many ended in the last minute."""
        now = self._clock()
        while self._ended and self._ended[0][0] < now - _RATE_WINDOW_S:
            self._ended.popleft()
        ended = sum(count for _, count in self._ended)
        if not ended:
            return _RATE_WINDOW_S / 2
        rate = ended / max(1.0, now - self._ended[0][0])
        return min(_LONGEST_WAIT_S, max(1.0, sequences / rate))

    def _bounded(self, key: str) -> list[_Waiter]:
        return [waiter for waiter in self._queues.get(key, ()) if waiter.bounded]

    def _start(self, key: str, sequences: int) -> None:
        self._running[key] = self._running.get(key, 0) + sequences

    def _advance(self) -> None:
        while self._queues:
            key = min(self._queues, key=lambda key: (self._running.get(key, 0), self._queues[key][0].since))
            waiter = self._queues[key][0]
            if self.running + waiter.sequences > self.most_running:
                return
            self._forget(waiter)
            if not waiter.turn.done():
                self._start(key, waiter.sequences)
                waiter.turn.set_result(None)

    def _forget(self, waiter: _Waiter) -> None:
        queue = self._queues.get(waiter.key)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.key]

    def _make_room(self, newcomer: _Waiter) -> None:
        """Refuse the last in the queue of whoever has most in it, until the newcomer fits; else refuse the newcomer."""
        held = {key: sum(waiter.sequences for waiter in self._bounded(key)) for key in self._queues}
        over = sum(held.values()) + newcomer.sequences - self.most_waiting
        mine = held.get(newcomer.key, 0) + newcomer.sequences
        leaving: list[_Waiter] = []
        while over > 0:
            most = max(held, key=lambda key: held[key], default=None)
            if most is None or most == newcomer.key or held[most] <= mine:
                raise self._full(newcomer.sequences)
            queue = self._bounded(most)
            last = queue[len(queue) - 1 - sum(waiter.key == most for waiter in leaving)]
            leaving.append(last)
            held[most] -= last.sequences
            over -= last.sequences
        for waiter in leaving:
            self._forget(waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(self._full(waiter.sequences))

    def _full(self, sequences: int) -> RefusedError:
        after = self.retry_after(sequences)
        return RefusedError(
            429,
            f"the server is busy: {self.running} answers are computed and {self.waiting} wait; try again in "
            f"{after:.0f} seconds",
            "server_busy",
            retry_after=after,
        )
