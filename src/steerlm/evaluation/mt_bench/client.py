"""A client of OpenAI-compatible chat servers that tries again, and a pool of requests at a time."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx2

from steerlm.errors import ConfigError, EngineError

T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]
_BUSY = {408, 409, 425, 429}
_HOPELESS = {401, 402, 404, 405}
_REFUSED = {400, 403, 413, 414, 422}
_LONGEST_PAUSE = 60.0
_SURROGATE = re.compile("[\ud800-\udfff]")


class HopelessError(EngineError):
    """No request to this server can succeed: a wrong key, address or model. 403 is no such fault, as servers answer so
    to what a filter keeps out and to what their operator forbids.
    """


class RefusedError(EngineError):
    """The request is refused, and would be again: too long for the model's context, kept out by a filter, forbidden."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A chat server and how patiently it is asked.

    `body` holds further request fields, of which a null takes a field of ours away; `pause` is the first pause
    between tries, in seconds: each is twice the one before it, and shorter by chance, up to a minute.
    """

    url: str
    model: str
    key_variable: str | None
    body: Mapping[str, Any]
    retries: int
    pause: float
    timeout: float

    def headers(self) -> dict[str, str]:
        """Headers with the server's key. Raises `ConfigError` where its environment variable is not set."""
        if self.key_variable is None:
            return {}
        key = os.environ.get(self.key_variable)
        if not key:
            raise ConfigError(f"{self.url} needs a key: set the environment variable {self.key_variable}")
        return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a server counted; `uncounted` replies, or rows of a file, are without a count."""

    prompt: int = 0
    completion: int = 0
    uncounted: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt + other.prompt, self.completion + other.completion, self.uncounted + other.uncounted)

    def cost(self, price_prompt: float, price_completion: float) -> float:
        """What the tokens cost at prices of a million."""
        return (self.prompt * price_prompt + self.completion * price_completion) / 1e6

    def fields(self) -> dict[str, dict[str, int]]:
        """The field `usage` of a row, in the names of the protocol; none where a reply of the row is not counted."""
        if self.uncounted:
            return {}
        return {"usage": {"prompt_tokens": self.prompt, "completion_tokens": self.completion}}

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Usage:
        """The sum over rows of a file."""
        return sum((cls.from_dict(row.get("usage")) for row in rows), cls())

    @classmethod
    def from_dict(cls, found: Any) -> Usage:
        """Read the protocol's `usage`, or none."""
        if not isinstance(found, Mapping) or not isinstance(found.get("prompt_tokens"), int):
            return cls(uncounted=1)
        return cls(found["prompt_tokens"], int(found.get("completion_tokens") or 0))


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server wrote, why it ended (`stop`, `length`, ...), the tokens it took, and the fingerprint that the
    server has of itself, where it gives one.
    """

    text: str
    finish: str
    usage: Usage
    fingerprint: str | None = None


class ChatClient:
    """Asks one server for chat completions. Use it as an async context.

    Raises `ConfigError` where the environment variable of the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.model = endpoint.model
        timeout = httpx2.Timeout(endpoint.timeout, connect=min(endpoint.timeout, 30.0))
        # The pool bounds the requests; a limit on connections here would only add waiting that can time out.
        limits = httpx2.Limits(max_connections=None)
        self._http = httpx2.AsyncClient(headers=endpoint.headers(), timeout=timeout, limits=limits)
        self._random = random.Random()

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def complete(self, messages: Messages, **fields: Any) -> Reply:
        """A reply to a chat. Raises `HopelessError` where no request can succeed, `RefusedError` where this one cannot,
        `EngineError` where it fails, after all tries where it could have been the server's state.
        """
        body = _with({"model": self.model, "messages": list(messages), **fields}, self._endpoint.body)
        for attempt in range(self._endpoint.retries + 1):
            asked_pause: float | None = None
            try:
                response = await self._http.post(f"{self._endpoint.url}/chat/completions", json=body)
            except httpx2.TransportError as error:
                fault = f"{type(error).__name__} {error}".strip()
            else:
                if response.status_code == 200:
                    return self._reply(response)
                fault = f"{response.status_code} {_said(response)}"
                if response.status_code in _HOPELESS:
                    raise HopelessError(f"{self._endpoint.url}, model {self._endpoint.model}: {fault}")
                if response.status_code in _REFUSED:
                    raise RefusedError(fault)
                if response.status_code not in _BUSY and response.status_code < 500:
                    raise EngineError(f"{self._endpoint.url}: {fault}")
                asked_pause = _asked_pause(response)
            if attempt < self._endpoint.retries:
                await asyncio.sleep(self._pause(attempt) if asked_pause is None else asked_pause)
        raise EngineError(f"{self._endpoint.url}: {fault}; tried {self._endpoint.retries + 1} times")

    def _pause(self, attempt: int) -> float:
        """Random in its upper half, so that requests refused together do not come back together."""
        longest: float = min(self._endpoint.pause * 2**attempt, _LONGEST_PAUSE)
        return longest * self._random.uniform(0.5, 1)

    def _reply(self, response: httpx2.Response) -> Reply:
        try:
            record = response.json()
            choice = record["choices"][0]
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason") or ""
            fingerprint = _storable(str(record.get("system_fingerprint") or "")) or None
            usage = Usage.from_dict(record.get("usage"))
            return Reply(_storable(str(text)), _storable(str(finish)), usage, fingerprint)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineError(f"{self._endpoint.url}: not a chat completion: {_said(response)}") from error


def _storable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no UTF-8 file can hold; a model cut within one sends it."""
    return _SURROGATE.sub("\ufffd", text)


def _with(fields: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields with further ones over them, objects joined key by key, nulls taken away."""
    merged = dict(fields)
    for name, value in further.items():
        known = merged.get(name)
        merged[name] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if value is not None}


def _said(response: httpx2.Response) -> str:
    """The server's message, on one line and not too long."""
    try:
        found = response.json()["error"]
        text = found["message"] if isinstance(found, Mapping) else found
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:300]


def _asked_pause(response: httpx2.Response) -> float | None:
    """Seconds that a server asks to wait for, where it says so in seconds."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_PAUSE)
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Failure(Generic[T]):
    """A piece of work that failed, and why: `refused` or otherwise."""

    what: T
    why: str
    refused: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


async def work_through(items: Iterable[T], work: Callable[[T], Awaitable[None]], concurrency: int) -> list[Failure[T]]:
    """Do `work` on every item, some at a time, and return what failed, in the order of the items.

    After a `HopelessError` no new work is begun; what is under way is finished, so that nothing paid for is lost, and
    then it is raised.
    """
    waiting = enumerate(items)
    failures: dict[int, Failure[T]] = {}
    hopeless: list[HopelessError] = []

    async def worker() -> None:
        while not hopeless:
            try:
                number, item = next(waiting)
            except StopIteration:
                return
            try:
                await work(item)
            except HopelessError as error:
                hopeless.append(error)
            except EngineError as error:
                failures[number] = Failure(item, str(error), isinstance(error, RefusedError))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    if hopeless:
        raise hopeless[0]
    return [failure for _, failure in sorted(failures.items())]


def refusals(failures: Sequence[Failure[T]], asked: int, what: str, has_any: Callable[[T], bool]) -> list[Failure[T]]:
    """The failures that are refusals, which the others are gone on without.

    Raises an `EngineError` that tells how many of the requests failed, and how the first did, where some may succeed
    another time, or where all of one model are refused: `has_any` says whether there is any result of the model that a
    request is of.
    """
    refused = [failure for failure in failures if failure.refused]
    if lost := [failure for failure in failures if not failure.refused]:
        raise EngineError(
            f"{len(lost)} of {asked} {what} failed, the first for {lost[0]}; the others are saved, "
            "run the same command again to try only these"
        )
    if wholly := [failure for failure in refused if not has_any(failure.what)]:
        raise EngineError(f"all {what} of a model or pair are refused: {len(wholly)}, the first for {wholly[0]}")
    return refused


def stamp() -> float:
    """The time that a row carries, in seconds since 1970."""
    return time.time()
