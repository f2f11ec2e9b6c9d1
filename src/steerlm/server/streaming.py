"""Answers sent as they come, and generation that ends when nobody listens any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from steerlm.errors import SteerLMError
from steerlm.server.errors import ApiError, ErrorBody, ErrorDetail, as_api_error
from steerlm.server.logs import CLIENT_CLOSED, current

Result = TypeVar("Result")
Item = TypeVar("Item")
_LONG_BODY = 32 * 1024  # bytes; rendering what such a body holds takes milliseconds
_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
_LOG = logging.getLogger(__name__)


async def prepared(request: Request, work: Callable[[], Result]) -> Result:
    """The result of `work`, which renders one prompt: in a thread where that may keep others waiting."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) < _LONG_BODY:
        return work()
    return await asyncio.to_thread(work)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client closes the connection."""

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, ending = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_end())
    try:
        await asyncio.wait({doing, ending}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ApiError("the client closed the connection", CLIENT_CLOSED, code="client_closed_request")
    finally:
        doing.cancel()
        ending.cancel()
        await asyncio.gather(doing, ending, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events. What makes them is closed when the client goes, and at the latest with the response."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def event(data: BaseModel | str, name: str | None = None) -> str:
    """One event. JSON has no raw line breaks, so that it is one line of data; what else ends lines in Unicode, at which
    many clients cut a stream, is escaped.
    """
    text = data if isinstance(data, str) else data.model_dump_json()
    return (f"event: {name}\n" if name else "") + f"data: {text.translate(_ESCAPED)}\n\n"


async def begun(request: Request, source: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """`source` with its first item at hand, so that what is wrong from the start has a status of its own."""
    first = await unless_gone(request, anext(source))

    async def rest() -> AsyncGenerator[Item, None]:
        async with aclosing(source):
            yield first
            async for item in source:
                yield item

    return rest()


def _error_event(error: ErrorDetail) -> str:
    return event(ErrorBody(error=error))


async def with_errors(
    events: AsyncGenerator[str, None],
    done: str = "data: [DONE]\n\n",
    error_event: Callable[[ErrorDetail], str] = _error_event,
) -> AsyncGenerator[str, None]:
    """Events, and at their end `done` or the error that cut them off."""
    async with aclosing(events):
        try:
            async for item in events:
                yield item
        except Exception as error:  # headers are sent, so that the client can only be told here
            if not isinstance(error, SteerLMError):
                _LOG.error("a stream failed", exc_info=error)
            told = as_api_error(error)
            current().failed, current().code = True, told.detail.code
            yield error_event(told.detail)
            return
    yield done
