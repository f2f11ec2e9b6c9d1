"""Alive, ready, stopping: what orchestrators ask, and how a server ends."""

from __future__ import annotations

import asyncio
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from steerlm.engines.base import Engine, Request, Sampling, stream_async
from steerlm.errors import EngineError
from steerlm.server.logs import RequestLog, entry_of, place_of
from steerlm.server.refusals import RefusedError, send_json, send_refusal

Phase = Literal["starting", "ready", "stopping"]
HEALTH_ROUTES = ("/healthz", "/readyz")
_RETRY_S = 5.0


class Lifecycle:
    """Where a server is in its life, and how many requests it is busy with."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.busy = 0

    def ready(self) -> None:
        """It has answered a first token."""
        if self.phase == "starting":
            self.phase = "ready"

    def stop(self) -> None:
        """Take no new work from now on."""
        self.phase = "stopping"


async def warm_up(engine: Engine, prompt: tuple[int, ...], lifecycle: Lifecycle, log: RequestLog) -> None:
    """Have the engine answer one token, again and again until it can (a server behind it may start later)."""
    while lifecycle.phase == "starting":
        try:
            async for _ in stream_async(engine, [Request(prompt, Sampling(max_tokens=1))]):
                pass
        except EngineError as error:
            log.event("not-ready", error=place_of(error))
            await asyncio.sleep(_RETRY_S)
        else:
            lifecycle.ready()
            log.event("ready")


class Gate:
    """Answers /healthz and /readyz, and turns work away (503) while the server stops."""

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle, drain_seconds: float = 30.0) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.drain_seconds = drain_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        phase = self.lifecycle.phase
        if scope["path"] in HEALTH_ROUTES and scope["method"] in ("GET", "HEAD"):
            is_fine = scope["path"] == "/healthz" or phase == "ready"
            await send_json(send, 200 if is_fine else 503, {"status": "ok" if scope["path"] == "/healthz" else phase})
            return
        if phase == "stopping":
            refusal = RefusedError(
                503,
                "the server is stopping; try again later or elsewhere",
                "server_stopping",
                retry_after=self.drain_seconds,
                headers={"connection": "close"},
            )
            entry_of(scope).refused = refusal.code
            await send_refusal(send, refusal)
            return
        self.lifecycle.busy += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.busy -= 1
