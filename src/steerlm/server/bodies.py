"""Bodies are read here, before anything parses them: bounded in size, in time and in depth."""

from __future__ import annotations

import asyncio
import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.server.logs import current
from steerlm.server.refusals import RefusedError, refuse

# Possessive, and content with a string that never ends: no body makes it look at a byte twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def check_json(body: bytes, depth: int) -> None:
    """Raise `RefusedError` for what no parser should be given: bad UTF-8, nesting beyond `depth`, half characters."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not valid UTF-8 at byte {error.start}", "invalid_utf8") from error
    # Brackets that close at once are the innermost level; each round takes one away, in C, however long the body is.
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(depth):
        if not brackets:
            break
        brackets = re.sub(rb"(?:\[\]|\{\})+", b"", brackets)
    if brackets:
        raise RefusedError(
            400, f"the body is nested more than {depth} levels deep, or its brackets do not match", "invalid_json"
        )
    if _SURROGATE.search(body):
        _check_characters(body)


def _check_characters(body: bytes) -> None:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(400, "the body has half of a surrogate pair, which is no text", "invalid_utf8") from error
    except ValueError:
        return  # whoever parses it will say what is wrong


class BodyLimits:
    """Reads the body of a request whole, or refuses it: 413 too large, 408 too slow, 400 no clean JSON.

    The size is counted as it is read, whatever the client announced. With `keep` the body goes into the log.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, seconds: float, depth: int, keep: bool) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.depth = depth
        self.keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if body is None:
                return
            if body and _may_be_json(scope):
                check_json(body, self.depth)
        except RefusedError as refusal:
            await refuse(refusal, scope, receive, send)
            return
        if self.keep:
            current().body = body.decode("utf-8", "replace")
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client left before it was complete."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced[:20]) > self.most_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.most_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            told = f"the body did not arrive within {self.seconds:g} seconds"
            raise RefusedError(408, told, "request_timeout", headers={"connection": "close"}) from error

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than the {self.most_bytes} bytes allowed", "request_too_large")


def _may_be_json(scope: Scope) -> bool:
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"json")
    return b"json" in kind.lower()
