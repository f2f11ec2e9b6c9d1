"""Bodies are read here, before anything parses them: bounded in size, in time, in depth and in how much they hold."""

from __future__ import annotations

import asyncio
import json
import re

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.server.logs import current
from steerlm.server.refusals import RefusedError, refuse

# Possessive, and content with a string that never ends: no body makes it look at a byte twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")  # as signed bytes: one level deeper, one level back
# Numbers are left out: a prompt of token ids has very many, and no others are as quick to read.
_NEXT_ITEM = re.compile(rb",(?!\s*+[-0-9])")
_SMALL_BODY = 64 * 1024
"""Bytes of each body for which there is always room, as in its connection's own buffer: chats pass beside floods."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def check_json(body: bytes, depth: int, items: int) -> None:
    """Raise `RefusedError` for what no parser should be given: bad UTF-8, half characters, nesting beyond `depth`, or
    more than `items` lists, objects and members of them, not counting numbers.

    Each step is one pass in C, whatever the body holds; brackets that do not match are left to the parser.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not valid UTF-8 at byte {error.start}", "invalid_utf8") from error
    if b"\0" in body:  # Python's parser would read it as UTF-16, in which brackets and quotes are other bytes
        raise RefusedError(400, "the body has a NUL byte; send JSON in UTF-8", "invalid_json")
    too_many = RefusedError(400, f"the body holds more than {items} items; send less at once", "too_many_items")
    # An item has two strings at most, its name and its value.
    strings = 2 * items + 2
    outside, found = _STRING.subn(b"", body, count=strings)
    if found == strings:
        raise too_many
    brackets = outside.translate(None, _NO_BRACKETS)
    steps = np.frombuffer(brackets.translate(_STEPS), np.int8)
    if np.cumsum(steps, dtype=np.int32).max(initial=0) > depth:
        raise RefusedError(400, f"the body is nested more than {depth} levels deep", "invalid_json")
    # Counting ends where there are too many, whatever else follows.
    opened = brackets.count(b"[") + brackets.count(b"{")
    if opened + _NEXT_ITEM.subn(b"", outside, count=items + 1)[1] > items:
        raise too_many
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
    """Reads the body of a request whole, or refuses it: 413 too large, 408 too slow, 400 no clean JSON, 429 where all
    bodies that are being read hold more than `most_held` bytes.

    The size is counted as it is read, whatever the client announced. With `keep` the body goes into the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most_bytes: int,
        seconds: float,
        most_held: int,
        depth: int,
        items: int,
        keep: bool,
    ) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.most_held = most_held
        self._held = 0
        self.depth = depth
        self.items = items
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
                check_json(body, self.depth, self.items)
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
        counted = 0
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
                    large = max(0, len(body) - _SMALL_BODY)
                    self._held += large - counted
                    counted = large
                    if self._held > self.most_held:
                        raise self._too_many()
        except TimeoutError as error:
            told = f"the body did not arrive within {self.seconds:g} seconds"
            raise RefusedError(408, told, "request_timeout", headers={"connection": "close"}) from error
        finally:
            self._held -= counted

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than the {self.most_bytes} bytes allowed", "request_too_large")

    def _too_many(self) -> RefusedError:
        told = f"the server is receiving too many large bodies; try again in {self.seconds:g} seconds, or send less"
        return RefusedError(429, told, "server_busy", retry_after=self.seconds)


def _may_be_json(scope: Scope) -> bool:
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"json")
    return b"json" in kind.lower()
