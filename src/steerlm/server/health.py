"""Starting, ready, stopping: what orchestrators ask, and how new work is turned away at the end."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from steerlm.engines.base import Engine, Request, Sampling, stream_async
from steerlm.errors import SteerLMError
from steerlm.server.logs import RequestLog
from steerlm.server.refusals import RefusedError, refuse

Phase = Literal["starting", "ready", "stopping"]
OBSERVING = frozenset(("/healthz", "/readyz", "/metrics"))
_RETRY_S = 5.0


class Lifecycle:
    """Where a server is in its life, and how many requests it is busy with."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.busy = 0
        self._told = 0.0

    def ready(self) -> None:
        """It has answered a first token."""
        if self.phase == "starting":
            self.phase = "ready"

    def stop(self) -> None:
        """Take no new work from now on."""
        self.phase = "stopping"
        self._told = time.monotonic()

    def is_over(self, seconds: float) -> bool:
        """Whether nothing is under way since it was told to stop, or that is so many seconds ago."""
        return self.phase == "stopping" and (not self.busy or time.monotonic() > self._told + seconds)


async def warm_up(engine: Engine, prompt: tuple[int, ...], lifecycle: Lifecycle, log: RequestLog) -> None:
    """Have the engine answer one token, again and again until it can: a server behind it may start later."""
    while lifecycle.phase == "starting":
        try:
            async for _ in stream_async(engine, [Request(prompt, Sampling(max_tokens=1))]):
                pass
        except SteerLMError as error:
            log.event("not-ready", error=str(error))  # about a prompt of ours
            await asyncio.sleep(_RETRY_S)
        else:
            lifecycle.ready()
            log.event("ready")


class Gate:
    """Counts what the server is busy with, and turns work away (503) while it stops."""

    def __init__(self, app: ASGIApp, *, lifecycle: Lifecycle, retry_after: float) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.retry_after = retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OBSERVING:
            await self.app(scope, receive, send)
            return
        if self.lifecycle.phase == "stopping":
            told = "the server is stopping; try again later or elsewhere"
            closing = {"connection": "close"}
            refusal = RefusedError(503, told, "server_stopping", retry_after=self.retry_after, headers=closing)
            await refuse(refusal, scope, receive, send)
            return
        self.lifecycle.busy += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.busy -= 1
