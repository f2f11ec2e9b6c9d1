"""The thread in which a local engine computes, and what all local engines share: text, stop strings, ends.

A `Core` makes tokens; the runner decides when an answer has ended. The thread lives while there is work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from steerlm.dialects import Renderer
from steerlm.engines.base import Deliver, Finish, Piece, Request, TokenLogprob, check_room
from steerlm.engines.text import TextStream
from steerlm.errors import EngineError, SteerLMError


class Token(NamedTuple):
    """A token that a core made for the request it knows as `key`."""

    key: int
    token: int
    logprob: TokenLogprob | None = None
    cached: int = 0


class Core(Protocol):
    """What computes. It is used from one thread only, and makes tokens of a request until that is dropped."""

    context: int

    def check(self, request: Request) -> None:
        """Raise `ConfigError` where it cannot do what the request asks for. May be called from any thread."""

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Take requests that were submitted together, each with its key."""

    def drop(self, key: int) -> None:
        """Forget a request and free its memory; its prefix may be kept for later ones."""

    def step(self) -> Iterable[Token]:
        """Compute; returns new tokens, at most one of each request, none where all still wait for room."""


@dataclass(slots=True)
class _Live:
    number: int
    request: Request
    text: TextStream
    deliver: Deliver
    made: int = 0


class Runner:
    """See `steerlm.engines.base.Engine`."""

    def __init__(self, core: Core, renderer: Renderer, end_ids: Iterable[int]) -> None:
        self.context = core.context
        self._core = core
        self._renderer = renderer
        self._end_ids = frozenset(end_ids)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._arrived: list[list[tuple[int, _Live]]] = []
        self._cancelled: set[int] = set()
        self._next_key = 0
        self._closed = False

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        for request in requests:
            check_room(request, self.context)
            self._core.check(request)
        with self._lock:
            if self._closed:
                raise EngineError("the engine has been closed")
            keys = range(self._next_key, self._next_key + len(requests))
            self._next_key += len(requests)
            self._arrived.append(
                [(key, self._begin(number, requests[number], deliver)) for number, key in enumerate(keys)]
            )
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="steerlm-engine", daemon=True)
                self._thread.start()

        def cancel() -> None:
            with self._lock:
                if self._thread is not None:
                    self._cancelled.update(keys)

        return cancel

    def close(self) -> None:
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _begin(self, number: int, request: Request, deliver: Deliver) -> _Live:
        stop = request.sampling.stop
        if not self._renderer.end_is_token:
            stop = (*stop, self._renderer.dialect.end)
        return _Live(number, request, TextStream(self._renderer.tokenizer, stop), deliver)

    def _work(self) -> None:
        live: dict[int, _Live] = {}
        while True:
            with self._lock:
                arrived, self._arrived = self._arrived, []
                cancelled, self._cancelled = self._cancelled, set()
                if self._closed or not (live or arrived):
                    self._thread = None
                    break
            try:
                for group in arrived:
                    live.update(group)
                    self._core.add([(key, item.request) for key, item in group if key not in cancelled])
                for key in cancelled & live.keys():
                    self._core.drop(key)
                    del live[key]
                for token in self._core.step() if live else ():
                    piece = self._piece(live[token.key], token)
                    if piece.finish is not None:
                        self._core.drop(token.key)
                    live[token.key].deliver(piece)
                    if piece.finish is not None:
                        del live[token.key]
            except Exception as error:  # whatever it was, those who wait must be told
                self._fail(live, error)
        self._fail(live | dict(pair for group in arrived for pair in group), EngineError("the engine was closed"))

    def _fail(self, live: dict[int, _Live], error: Exception) -> None:
        told = error if isinstance(error, SteerLMError) else EngineError(f"generation failed: {error}")
        for key, item in live.items():
            self._core.drop(key)
            item.deliver(told)
        live.clear()

    def _piece(self, item: _Live, made: Token) -> Piece:
        item.made += 1
        sampling = item.request.sampling
        number, token, *rest = (item.number, made.token, made.logprob, made.cached)
        if token in self._end_ids and item.made > sampling.min_tokens:
            return Piece(number, token, item.text.finish(), "stop", *rest)
        shown = item.text.push(token)
        is_last = item.made >= sampling.max_tokens
        finish: Finish | None = "stop" if item.text.stopped else "length" if is_last else None
        return Piece(number, token, shown + (item.text.finish() if finish == "length" else ""), finish, *rest)
