"""One line of JSON for each request: who, what, how long, which steering; of contents only where that is asked for."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

# What a client calls a request is shown where it cannot do harm: in JSON, short, without anything that needs escapes.
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/-]{1,64}", re.ASCII)


CLIENT_CLOSED = 499
"""Status of answers that nobody waits for any more, as nginx counts them."""


@dataclass(slots=True)
class Entry:
    """What is known of a request; filled in as it goes along. Times are seconds, `started` since 1970."""

    id: str
    method: str
    client_id: str | None = None
    route: str | None = None
    status: int = 0
    key: str | None = None
    salt: str = ""
    """Of what the engine computes for the request; see `steerlm.engines.base.Request`."""
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    left: bool = False
    """The client went away before it had the answer."""
    failed: bool = False
    """Something broke after the answer had begun, so that its status does not show it."""
    code: str | None = None
    """Code of the error that was answered."""
    sequences: int = 0
    waited: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    scored_tokens: int = 0
    """Tokens that the attribute model read."""
    first_token: list[float] = field(default_factory=list)
    """Of each sequence, the time from its submission to its first token."""
    per_token: list[float] = field(default_factory=list)
    """Of each sequence, the time between its tokens."""
    values: list[Mapping[str, int]] = field(default_factory=list)
    """Steering values of each setting asked for."""
    body: str | None = None
    error: str | None = None
    """Where an unexpected error was raised; its message may quote contents and is not kept."""

    @property
    def broken(self) -> bool:
        """The server, not the client, is why there is no whole answer."""
        return self.failed or self.status >= 500


CURRENT: ContextVar[Entry | None] = ContextVar("CURRENT", default=None)
"""The entry of the request that is being answered."""


def current() -> Entry:
    """The entry of the request that is being answered; one that goes nowhere, where requests are not logged."""
    return CURRENT.get() or Entry("", "")


def safe_client_id(value: str | None) -> str | None:
    """A client's name for its request, or None where it is not fit to be shown."""
    return value if value is not None and _CLIENT_ID.fullmatch(value) else None


def place_of(error: BaseException) -> str:
    """Type and stack of an error, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return f"{type(error).__name__} at " + " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))


class RequestLog:
    """Writes entries, a line each."""

    def __init__(self, stream: TextIO | None = None, contents: bool = False) -> None:
        self._stream = stream or sys.stderr
        self.contents = contents

    def request(self, entry: Entry) -> None:
        """The line of a request that has ended."""
        line: dict[str, Any] = {
            "event": "request",
            "request_id": entry.id,
            "client_request_id": entry.client_id,
            "key": entry.key,
            "method": entry.method,
            "route": entry.route,
            "status": entry.status,
            "seconds": round(entry.seconds, 6),
            "client_left": entry.left or None,
            "failed": entry.failed or None,
            "code": entry.code,
            "error": entry.error,
        }
        if entry.sequences:
            line |= {
                "sequences": entry.sequences,
                "queue_seconds": round(entry.waited, 6),
                "prompt_tokens": entry.prompt_tokens,
                "cached_tokens": entry.cached_tokens,
                "completion_tokens": entry.completion_tokens,
                "first_token_seconds": round(min(entry.first_token), 6) if entry.first_token else None,
                "token_seconds": round(sum(entry.per_token) / len(entry.per_token), 6) if entry.per_token else None,
            }
        if entry.scored_tokens:
            line["scored_tokens"] = entry.scored_tokens
        if entry.values:
            line["attributes"] = _shared(entry.values)
        if self.contents:
            line["body"] = entry.body
        self._write(entry.started, line)

    def event(self, event: str, **fields: Any) -> None:
        """The line of something that is no request: started, ready, stopping, stopped."""
        self._write(time.time(), {"event": event, **fields})

    def _write(self, when: float, line: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in line.items() if value is not None}
        at = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
        self._stream.write(json.dumps({"time": at, **shown}) + "\n")
        self._stream.flush()


def _shared(values: Sequence[Mapping[str, int]]) -> Mapping[str, int] | Sequence[Mapping[str, int]]:
    return values[0] if all(item == values[0] for item in values) else values


class LogHandler(logging.Handler):
    """What libraries log, as lines of the same log; of errors their place, since a message may quote contents."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        try:
            told = {"message": record.getMessage()} if error is None else {"error": place_of(error)}
        except Exception as unfit:  # whoever logs values that do not fit their message must not fail for it
            told = {"error": f"{type(unfit).__name__} at {record.pathname}:{record.lineno}"}
        self._log.event("log", level=record.levelname.lower(), logger=record.name, **told)
