"""The outermost layer: every request gets an id, a line in the log, and an answer, whatever happens within."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.server.logs import CLIENT_CLOSED, CURRENT, Entry, RequestLog, place_of, safe_client_id
from steerlm.server.metrics import Metrics
from steerlm.server.refusals import RefusedError, refuse


class Observed:
    """Gives requests ids of our own making (a client's is only noted), logs and counts them, and answers unexpected
    errors with 500 and the id, never with what went wrong inside.
    """

    def __init__(self, app: ASGIApp, *, log: RequestLog, metrics: Metrics) -> None:
        self.app = app
        self.log = log
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        theirs = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), None)
        entry = Entry(f"req_{uuid.uuid4().hex}", scope["method"], safe_client_id(theirs))
        token = CURRENT.set(entry)
        try:
            await self._answer(entry, scope, receive, send)
        finally:
            CURRENT.reset(token)
            entry.route = getattr(scope.get("route"), "path", None)
            entry.seconds = time.perf_counter() - entry.began
            self.metrics.request(entry)
            self.log.request(entry)

    async def _answer(self, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        is_whole = False

        async def named_send(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", entry.id.encode())]}
            elif message["type"] == "http.response.body":
                is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, named_send)
            entry.left = not is_whole or entry.status == CLIENT_CLOSED
        except asyncio.CancelledError:
            entry.failed = not is_whole
            raise
        except Exception as error:
            entry.error = place_of(error)
            entry.failed = True
            # An answer that has begun is cut off: the server closes the connection where we return without its end.
            if not entry.status:
                told = f"something went wrong in the server; its log tells more under {entry.id}"
                await refuse(RefusedError(500, told, "internal_error"), scope, receive, named_send)
