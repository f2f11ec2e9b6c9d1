"""Between routes and models: work waits for its turn, frees its place when it ends, and is noted in passing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, replace

from anyio import CancelScope

from steerlm.conversation import Conversation
from steerlm.engines.base import Deliver, Engine, Piece, Request, stream_async
from steerlm.errors import SteerLMError
from steerlm.server.admission import Admission, Ticket
from steerlm.server.judge import Bound, Judge, Judged
from steerlm.server.logs import Entry, current


@dataclass(slots=True)
class _Seen:
    made: int = 0
    cached: int = 0
    first: float = 0.0
    last: float = 0.0


class _Watched:
    """An engine for one submission, whose pieces are seen as they are made, not as a client reads them."""

    def __init__(self, engine: Engine, ticket: Ticket, requests: int) -> None:
        self.context = engine.context
        self.guides = engine.guides
        self.guided_context = engine.guided_context
        self.seen = [_Seen() for _ in range(requests)]
        self._engine = engine
        self._ticket = ticket
        self._loop = asyncio.get_running_loop()

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        def watched(piece: Piece | SteerLMError) -> None:
            if not isinstance(piece, SteerLMError):
                self._see(piece)
            deliver(piece)

        return self._engine.submit(requests, watched)

    def close(self) -> None:
        self._engine.close()

    def _see(self, piece: Piece) -> None:
        seen = self.seen[piece.request]
        seen.last = time.perf_counter()
        seen.first = seen.first or seen.last
        seen.cached = seen.cached or piece.cached
        seen.made += 1 + piece.untold
        # A client that reads slowly holds no place for what is computed already.
        if piece.finish and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ticket.leave, 1)


async def admitted(
    engine: Engine, admission: Admission | None, requests: Sequence[Request]
) -> AsyncGenerator[Piece, None]:
    """The pieces of all answers as they come, once there is room for them. Closing it cancels the rest.

    Raises `RefusedError` where there is no room even to wait.
    """
    if admission is None:
        async with aclosing(stream_async(engine, requests)) as arriving:
            async for piece in arriving:
                yield piece
        return
    entry = current()
    salted = [replace(request, salt=_salt(entry.salt, request.salt)) for request in requests]
    ticket = await admission.enter(entry.key or "", len(requests))
    watched = _Watched(engine, ticket, len(requests))
    begun = time.perf_counter()
    try:
        async with aclosing(stream_async(watched, salted)) as arriving:
            async for piece in arriving:
                yield piece
    finally:
        ticket.leave()
        _note(entry, ticket.waited, begun, requests, watched.seen)


def _salt(key: str, own: str) -> str:
    """Of a request with one of its own: nobody has that of another key by choosing his own."""
    return f"{key} {own}" if own else key


async def scored(
    judge: Judge,
    scoring: Admission | None,
    conversations: Sequence[Conversation],
    bound: Bound | None,
    only: Collection[int] | None = None,
) -> Judged:
    """Scores of the answers of conversations, or of those numbered in `only`, once there is room for one more request
    for scores; notes what was read.

    Raises `RefusedError` where there is no room even to wait, `ApiError` where more would be read than `bound` allows.
    What has no bound waits all the same: answers that were generated just now are not thrown away because many wait.
    """
    entry = current()
    ticket = await scoring.enter(entry.key or "", 1, bounded=bound is not None) if scoring else None
    try:
        return await _judged(judge.submit(conversations, only, bound), entry)
    finally:
        if ticket:
            ticket.leave()


async def _judged(found: Future[Judged], entry: Entry) -> Judged:
    """What an attribute model found, once it has; notes what it read, for clients too that have left meanwhile."""
    try:
        judged = await asyncio.wrap_future(found)
    except asyncio.CancelledError:
        # What is being read is read to its end: until then the place is taken, and what it costs not known.
        if not found.cancel():
            with CancelScope(shield=True):
                entry.scored_tokens += (await asyncio.wrap_future(found)).tokens
        raise
    entry.scored_tokens += judged.tokens
    return judged


def _note(entry: Entry, waited: float, begun: float, requests: Sequence[Request], seen: Sequence[_Seen]) -> None:
    entry.sequences += len(requests)
    entry.waited += waited
    # What several answers share is read once.
    prompts = {request.prompt: item for request, item in reversed(list(zip(requests, seen, strict=True)))}
    entry.prompt_tokens += sum(map(len, prompts))
    entry.cached_tokens += sum(item.cached for item in prompts.values())
    entry.completion_tokens += sum(item.made for item in seen)
    entry.first_token += [item.first - begun for item in seen if item.made]
    entry.per_token += [(item.last - item.first) / (item.made - 1) for item in seen if item.made > 1]
