"""The attribute model behind the server: scores of concurrent requests, computed together in one thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from steerlm.annotation.scorer import Scored, Scorer, on_scale
from steerlm.attributes import Schema
from steerlm.conversation import Conversation

Scores = dict[int, dict[str, float]]
"""Scores of responses by the number of their message; a response too long for the attribute model is absent."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores of conversations, and how many tokens were read for them."""

    scores: list[Scores]
    tokens: int


@dataclass(slots=True)
class _Waiting:
    conversations: Sequence[Conversation]
    result: Future[Judged]


class Judge:
    """Scores conversations. What arrives while it computes is scored together afterwards."""

    def __init__(self, scorer: Scorer, name: str = "attribute-model") -> None:
        self.name = name
        self._scorer = scorer
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steerlm-judge")

    @property
    def schema(self) -> Schema:
        return self._scorer.model.schema

    def submit(self, conversations: Sequence[Conversation]) -> Future[Judged]:
        """Scores on each attribute's scale of every response, for each conversation. Once they are being computed they
        cannot be cancelled.
        """
        item = _Waiting(conversations, Future())
        with self._lock:
            self._waiting.append(item)
        self._thread.submit(self._work)
        return item.result

    def close(self) -> None:
        """End the thread, once what waits is done."""
        self._thread.shutdown()

    def _work(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        # A client that has gone has cancelled its future.
        batch = [item for item in taken if item.result.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            scored = self._scorer.score([conversation for item in batch for conversation in item.conversations])
        except Exception:  # only those that cannot be scored are to fail
            for item in batch:
                self._answer(item)
            return
        at = 0
        for item in batch:
            end = at + len(item.conversations)
            item.result.set_result(self._judged(scored, at, end))
            at = end

    def _answer(self, item: _Waiting) -> None:
        try:
            scored = self._scorer.score(item.conversations)
            item.result.set_result(self._judged(scored, 0, len(item.conversations)))
        except Exception as error:
            item.result.set_exception(error)

    def _judged(self, scored: Scored, start: int, end: int) -> Judged:
        """What was found of the conversations from `start` to before `end`."""
        scores = [
            {message: on_scale(self.schema, values) for message, values in found.items()}
            for found in scored.values[start:end]
        ]
        return Judged(scores, sum(scored.tokens[start:end]))
