"""The attribute model behind the server: scores of concurrent requests, computed together in one thread."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from steerlm.annotation.scorer import Fitted, Scorer, on_scale
from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import EngineError
from steerlm.server.errors import ApiError

Scores = dict[int, dict[str, float]]
"""Scores of responses by the number of their message; a response too long for the attribute model is absent."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores of conversations, the responses of each that were read without their oldest turns, and how many tokens
    were read.
    """

    scores: list[Scores]
    cut: list[set[int]]
    tokens: int


@dataclass(frozen=True, slots=True)
class Bound:
    """Most tokens to read for what a request calls `field`."""

    tokens: int
    field: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    conversations: Sequence[Conversation]
    only: Collection[int] | None
    bound: Bound | None
    result: Future[Judged]


class Judge:
    """Scores conversations. What arrives while it computes is scored together afterwards."""

    def __init__(self, scorer: Scorer, name: str = "attribute-model") -> None:
        self.name = name
        self._scorer = scorer
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steerlm-judge")

    @property
    def schema(self) -> Schema:
        return self._scorer.model.schema

    def submit(
        self, conversations: Sequence[Conversation], only: Collection[int] | None = None, bound: Bound | None = None
    ) -> Future[Judged]:
        """Scores on each attribute's scale of every response, for each conversation, or of those numbered in `only`.

        Once they are being computed they cannot be cancelled; `ApiError` where more would be read than `bound` allows.
        """
        item = _Waiting(conversations, only, bound, Future())
        with self._lock:
            self._waiting.append(item)
        self._thread.submit(self._work)
        return item.result

    def stop(self) -> None:
        """Compute nothing more: what is not done gets an error, after the pack that is being computed."""
        self._stopped.set()

    def close(self) -> None:
        """End the thread, once what waits is done."""
        self._thread.shutdown()

    def _work(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        # A client that has gone has cancelled its future.
        batch = [
            (item, fitted)
            for item in taken
            if item.result.set_running_or_notify_cancel() and (fitted := self._fitted(item)) is not None
        ]
        try:
            found = self._score([fitted for _, fitted in batch])
        except Exception:  # only those that cannot be scored are to fail
            for item, fitted in batch:
                try:
                    item.result.set_result(*self._score([fitted]))
                except Exception as error:
                    item.result.set_exception(error)
            return
        for (item, _), judged in zip(batch, found, strict=True):
            item.result.set_result(judged)

    def _fitted(self, item: _Waiting) -> list[Fitted] | None:
        """What is to be read, or None where that failed, which the client has been told."""
        fitted: list[Fitted] = []
        tokens = 0
        try:
            for conversation in item.conversations:
                fitted.append(self._scorer.fit(conversation, item.only))
                tokens += fitted[-1].report.tokens
                if item.bound and tokens > item.bound.tokens:
                    raise ApiError(
                        f"{item.bound.field}: more than {item.bound.tokens} tokens would be read for these scores, "
                        "which is the most of a request; send fewer or shorter conversations at a time",
                        param=item.bound.field,
                        code="too_many_tokens",
                    )
        except Exception as error:
            item.result.set_exception(error)
            return None
        return fitted

    def _score(self, parts: Sequence[list[Fitted]]) -> list[Judged]:
        """What is found of the conversations of each part, all computed together."""
        if not parts:
            return []
        self._go_on()
        together = [fitted for part in parts for fitted in part]
        values = self._scorer.score_fitted(together, lambda _: self._go_on()).values
        found = []
        for part in parts:
            own, values = values[: len(part)], values[len(part) :]
            scores = [{message: on_scale(self.schema, raw) for message, raw in item.items()} for item in own]
            cut = [fitted.cut & item.keys() for fitted, item in zip(part, scores, strict=True)]
            found.append(Judged(scores, cut, sum(fitted.report.tokens for fitted in part)))
        return found

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise EngineError("the server is stopping")
