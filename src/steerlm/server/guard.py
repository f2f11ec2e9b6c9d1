"""What stands around the application: access, limits over many requests, logs, metrics, health."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from pydantic import Field
from starlette.middleware.cors import CORSMiddleware

from steerlm.server.access import Access, KeyDesk
from steerlm.server.admission import Admission
from steerlm.server.bodies import BodyLimits
from steerlm.server.health import Gate, Lifecycle
from steerlm.server.logs import RequestLog
from steerlm.server.metrics import Metrics
from steerlm.server.observed import Observed
from steerlm.server.routes import health
from steerlm.training.config import Settings


class GuardSettings(Settings):
    """Who may use a server, and how much at a time."""

    keys: Path | None = None
    """File of API keys that clients must have, made by steerlm keys create; without it the server is open."""
    insecure: bool = False
    """Let anybody in who can reach the server, where there are no keys; otherwise it answers to localhost only."""
    running: Annotated[int, Field(ge=1)] = 32
    """Most answers computed at a time."""
    waiting: Annotated[int, Field(ge=0)] = 256
    """Most answers that wait for their turn; beyond them requests are refused with 429."""
    scoring: Annotated[int, Field(ge=1)] = 16
    """Most requests for scores that are under way; four times as many may wait."""
    body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest body of a request."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Time in which a body must arrive."""
    json_depth: Annotated[int, Field(ge=4)] = 32
    """Deepest nesting of a body."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins of web pages that may use the server from a browser, such as https://chat.example.com; * is any."""
    log_contents: bool = False
    """Write prompts into the log; without it only ids, counts, times and steering values are logged."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Time for what is under way when the server is told to stop."""


class Guard:
    """The parts that last as long as a server; `around` puts them around an application."""

    def __init__(self, settings: GuardSettings, log: RequestLog | None = None) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.admission = Admission(settings.running, settings.waiting)
        self.scoring = Admission(settings.scoring, 4 * settings.scoring)
        self.metrics = Metrics(self.admission)
        self.log = log or RequestLog(contents=settings.log_contents)
        self._desk = KeyDesk(settings.keys) if settings.keys else None

    def around(self, app: FastAPI) -> None:
        """Add routes and layers; the last added is the outermost."""
        settings = self.settings
        app.state.guard = self
        app.include_router(health.router)
        app.add_middleware(
            BodyLimits,
            most_bytes=settings.body_bytes,
            seconds=settings.body_seconds,
            depth=settings.json_depth,
            keep=settings.log_contents,
        )
        app.add_middleware(Access, desk=self._desk, anybody=settings.insecure)
        if settings.cors_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["retry-after", "x-request-id"],
            )
        app.add_middleware(Gate, lifecycle=self.lifecycle, retry_after=settings.drain_seconds)
        app.add_middleware(Observed, log=self.log, metrics=self.metrics)

    def close(self) -> None:
        """Write what is to be written of keys."""
        if self._desk is not None:
            self._desk.close()
