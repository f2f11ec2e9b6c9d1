"""The thread in which a local engine computes, and what all local engines share: text, stop strings, ends.

A `Core` makes tokens; the runner decides when an answer has ended. The thread lives while there is work.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakSet

from steerlm.dialects import Renderer
from steerlm.engines.base import Deliver, Finish, Piece, Request, TokenLogprob, check_room
from steerlm.engines.text import TextStream
from steerlm.errors import ConfigError, EngineError, SteerLMError

log = logging.getLogger(__name__)


class Token(NamedTuple):
    """A token that a core made for the request it knows as `key`; the first one brings the log-probabilities of the
    prompt's tokens, where they were asked for.
    """

    key: int
    token: int
    logprob: TokenLogprob | None = None
    cached: int = 0
    prompt: tuple[TokenLogprob, ...] = ()


class Core(Protocol):
    """What computes. It is used from one thread at a time, and makes tokens of a request until that is dropped."""

    context: int
    guided_context: int
    vocabulary: int
    """How many token ids there are."""

    def check(self, request: Request) -> None:
        """Raise `ConfigError` where it cannot do what the request asks for. May be called from any thread."""

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Take requests that were submitted together, each with its key."""

    def drop(self, key: int, keep: bool = True) -> None:
        """Forget a request and free its memory; what was computed of it may be kept for later ones, unless `keep` is
        false: after a failure nobody knows what there is. Unknown keys are ignored.
        """

    def step(self) -> Sequence[Token]:
        """Compute; returns new tokens, at most one of each request, none where all still wait for room.

        A request has none of the tokens that end an answer before its `min_tokens`.
        """

    def close(self) -> None:
        """Free the model. Nothing is called after it."""


def _note(level: int, what: str, error: BaseException) -> None:
    """Log an error. Logging itself fails where the stream it writes to is closed, which must not end the thread."""
    with suppress(Exception):
        log.log(level, what, exc_info=error)


def _fault(error: BaseException) -> EngineError:
    """What is no error of ours. Its words are about the machine and the model, and so for the operator."""
    _note(logging.DEBUG, "generation failed", error)
    what = "".join(traceback.format_exception_only(error)).strip()
    return EngineError(f"generation failed: {what}", "generation failed; try again later")


class _Submission:
    """Who is told of some requests, until their error, their cancellation or their last piece."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        # Held while delivering, so that nothing comes once `cancel` has returned; the receiver may cancel meanwhile.
        self._lock = threading.RLock()
        self._over = False

    def tell(self, piece: Piece | SteerLMError) -> bool:
        """Returns whether the receiver can be told more."""
        with self._lock:
            if self._over:
                return False
            self._over = isinstance(piece, SteerLMError)
            try:
                self._deliver(piece)
            except BaseException as error:  # it breaks its promise; those who wait for other answers have no part in it
                _note(logging.ERROR, "the receiver of an answer failed; the answer is cancelled", error)
                self._over = True
            return not self._over

    def end(self) -> None:
        with self._lock:
            self._over = True


@dataclass(slots=True)
class _Live:
    number: int
    request: Request
    text: TextStream
    submission: _Submission
    made: int = 0


class Runner:
    """See `steerlm.engines.base.Engine`."""

    guides = True

    def __init__(self, core: Core, renderer: Renderer) -> None:
        self.context = core.context
        self.guided_context = core.guided_context
        self._core = core
        self._renderer = renderer
        # Taken again by the thread that has it, where memory is collected meanwhile and an abandoned stream cancels.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        # Set once a thread has closed the core. It is not joined: a join that Ctrl-C interrupts takes it for ended.
        self._ended = threading.Event()
        self._arrived: list[dict[int, _Live]] = []
        self._cancelled: set[int] = set()
        self._next_key = 0
        self._closed = False

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        for request in requests:
            self._check(request)
        submission = _Submission(deliver)
        with self._lock:
            if self._closed:
                raise EngineError("the engine has been closed, or was at work when this process was forked")
            keys = range(self._next_key, self._next_key + len(requests))
            self._next_key += len(requests)
            if keys:
                if self._thread is None:
                    _used.add(self)
                    thread = threading.Thread(target=self._work, name="steerlm-engine", daemon=True)
                    thread.start()  # it waits for the lock
                    self._thread = thread
                begun = (self._begin(number, request, submission) for number, request in enumerate(requests))
                self._arrived.append(dict(zip(keys, begun, strict=True)))

        def cancel() -> None:
            with self._lock:
                # Nothing is under way; and in a forked child the submission may be locked for ever.
                if self._thread is None:
                    return
                self._cancelled.update(keys)
            submission.end()

        return cancel

    def close(self) -> None:
        with self._lock:
            was_closed, self._closed = self._closed, True
            thread = self._thread
        if thread is None:
            if not was_closed:
                self._core.close()
        elif thread is not threading.current_thread():
            self._ended.wait()

    @property
    def is_at_work(self) -> bool:
        """Whether its thread computes, or closes the core."""
        return self._thread is not None and not self._ended.is_set()

    def _check(self, request: Request) -> None:
        check_room(request, self.context)
        for token in (*request.prompt, *(request.guidance.prompt if request.guidance else ())):
            if not 0 <= token < self._core.vocabulary:
                raise ConfigError(f"token id {token} is outside the model's vocabulary of {self._core.vocabulary}")
        if request.sampling.min_tokens and not self._renderer.end_is_token:
            raise ConfigError(
                "min_tokens: this model spells its end signal out in several tokens, which cannot be barred"
            )
        self._core.check(request)

    def _begin(self, number: int, request: Request, submission: _Submission) -> _Live:
        stop = request.sampling.stop
        if not self._renderer.end_is_token:
            stop = (*stop, self._renderer.dialect.end)
        return _Live(number, request, TextStream(self._renderer.tokenizer, stop, request.trim), submission)

    def _work(self) -> None:
        live: dict[int, _Live] = {}
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return  # Ctrl-C came between its start and the note of it
                arrived, self._arrived = self._arrived, []
                cancelled, self._cancelled = self._cancelled, set()
                for group in arrived:
                    live |= group
                if self._closed:
                    break
                if not live:
                    self._thread = None
                    return
            try:
                self._round(live, arrived, cancelled)
            except BaseException as error:  # whatever it was, those who wait must be told
                self._fail(live, error if isinstance(error, SteerLMError) else _fault(error))
        try:
            self._fail(live, EngineError("the engine was closed"))
            self._core.close()
        finally:
            self._ended.set()

    def _round(self, live: dict[int, _Live], arrived: Sequence[dict[int, _Live]], cancelled: set[int]) -> None:
        for key in cancelled & live.keys():
            del live[key]
            self._core.drop(key)
        for group in arrived:
            if wanted := [(key, item.request) for key, item in group.items() if key in live]:
                self._core.add(wanted)
        for made in self._core.step() if live else ():
            item = live[made.key]
            piece = self._piece(item, made)
            if not item.submission.tell(piece) or piece.finish is not None:
                del live[made.key]
                self._core.drop(made.key)

    def _fail(self, live: dict[int, _Live], error: SteerLMError) -> None:
        for key, item in live.items():
            item.submission.tell(error)
            with suppress(BaseException):  # a core that failed may fail at this too
                self._core.drop(key, keep=False)
        live.clear()

    def _piece(self, item: _Live, made: Token) -> Piece:
        item.made += 1
        finish: Finish | None = None
        if made.token in self._renderer.stop_ids:
            text, finish = item.text.finish(), "stop"
        else:
            text = item.text.push(made.token)
            if item.text.stopped:
                finish = "stop"
            elif item.made >= item.request.sampling.max_tokens:
                text, finish = text + item.text.finish(), "length"
        return Piece(item.number, made.token, text, finish, made.logprob, made.cached, made.prompt)


_used: WeakSet[Runner] = WeakSet()


def _forget_threads() -> None:
    """In a forked child, which has none of its parent's threads. What was at work can be used no more, as the state
    of its core is unknown.
    """
    for runner in list(_used):
        runner._lock = threading.RLock()
        if runner._thread is not None:
            runner._thread, runner._closed = None, True
    _used.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@atexit.register
def _close_used() -> None:
    """A thread that comes back from native code to an interpreter that has ended would abort the process."""
    for runner in list(_used):
        try:
            runner.close()
        except BaseException as error:
            # Raised by the handler of a signal: nobody waits any longer.
            if runner.is_at_work or isinstance(error, KeyboardInterrupt | SystemExit):
                _leave(error)
            _note(logging.ERROR, "an engine could not be closed", error)  # the others are closed all the same


def _leave(error: BaseException) -> None:
    """End the process at once, with the exit code that the error stands for."""
    code: object = 130 if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, SystemExit):
        code = error.code or 0
    try:
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
        elif not isinstance(error, KeyboardInterrupt | SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)
