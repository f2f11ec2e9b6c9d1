"""Bodies are read here, before anything parses them: bounded in size, time and depth. Clients that leave are noticed."""

from __future__ import annotations

import asyncio
import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.server.logs import entry_of
from steerlm.server.refusals import RefusedError, send_refusal

# Possessive, and content with a string that never ends: no body makes it look at a byte twice.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def check_json(body: bytes, depth: int) -> None:
    """Raise `RefusedError` for what a parser should not be given: bad UTF-8, nesting beyond `depth`, half characters."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(400, f"the body is not valid UTF-8 at byte {error.start}", "invalid_utf8") from error
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(depth):
        if not brackets:
            break
        # What stands directly in each other's arms is one level; all in C, whatever the body.
        brackets = _innermost(brackets)
    if brackets:
        raise RefusedError(
            400, f"the body is nested more than {depth} levels deep, or its brackets do not match", "invalid_json"
        )
    if _SURROGATE.search(body):
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise RefusedError(400, "the body has one half of a surrogate pair, which is no text", "invalid_utf8") from error
        except ValueError:
            return  # whoever parses it will say what is wrong


def _innermost(brackets: bytes) -> bytes:
    return brackets.replace(b"[]", b"").replace(b"{}", b"")


class BodyLimits:
    """Reads the body of a request whole, or refuses it: 413 too large, 408 too slow, 400 no clean JSON.

    The size is counted as it is read, whatever the client announced. `app` finds the body ready. When the client
    leaves before the answer is complete, what computes it is cancelled.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        most_bytes: int = 4 * 1024 * 1024,
        seconds: float = 30.0,
        depth: int = 32,
        keep: bool = False,
    ) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.depth = depth
        self.keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = entry_of(scope)
        try:
            body = await self._read(scope, receive)
            if body is None:
                entry.left = True
                return
            if body and _is_json(scope):
                check_json(body, self.depth)
        except RefusedError as refusal:
            entry.refused = refusal.code
            # Some of the body may still be under way; it is not worth reading.
            refusal.headers["connection"] = "close"
            await send_refusal(send, refusal)
            return
        if self.keep:
            entry.body = body.decode("utf-8", "replace")
        await self._run(scope, body, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
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
            raise RefusedError(
                408, f"the body did not arrive within {self.seconds:g} seconds", "request_timeout"
            ) from error

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than the {self.most_bytes} bytes allowed", "request_too_large")

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()
        complete = False

        async def replay() -> Message:
            if pending:
                return pending.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                complete = True
            await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            # Servers also report a client as gone once the answer is complete; what is left to do then is ours.
            if not complete:
                entry_of(scope).left = True
                work.cancel()

        work = asyncio.ensure_future(self.app(scope, replay, watched_send))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():  # we are cancelled ourselves, by a server that stops
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise
            if not work.cancelled() or not gone.is_set():
                raise
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


def _is_json(scope: Scope) -> bool:
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return b"json" in kind.lower() or not kind
