"""The outermost layer: every request gets an id, an entry in the log, and an answer, whatever happens within."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.server.logs import Entry, RequestLog, place_of, safe_client_id
from steerlm.server.metrics import Metrics
from steerlm.server.refusals import RefusedError, send_refusal


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
        theirs = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        entry = Entry(
            f"req_{uuid.uuid4().hex}",
            scope["method"],
            safe_client_id(None if theirs is None else theirs.decode("latin-1")),
        )
        scope["steerlm.entry"] = entry
        ended = False

        async def named_send(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", entry.id.encode())]}
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, named_send)
        except asyncio.CancelledError:
            entry.failed = not ended
            raise
        except Exception as error:
            entry.error = place_of(error)
            entry.failed = True
            if not entry.status:
                refusal = RefusedError(
                    500, f"something went wrong in the server; its log tells more under {entry.id}", "internal_error"
                )
                await send_refusal(named_send, refusal)
            # Else the answer is cut off: the server closes the connection when we return without its end.
        finally:
            route = scope.get("route")
            entry.route = getattr(route, "path", None)
            entry.seconds = time.perf_counter() - entry.began
            self.metrics.request(entry)
            self.log.request(entry)
