"""What stands around the application: access, limits over many requests, logs, metrics, health."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from steerlm.server.access import Access, KeyDesk
from steerlm.server.admission import Admission
from steerlm.server.bodies import BodyLimits
from steerlm.server.guard_settings import GuardSettings
from steerlm.server.health import Gate, Lifecycle
from steerlm.server.logs import RequestLog
from steerlm.server.metrics import Metrics
from steerlm.server.observed import Observed
from steerlm.server.openapi import RATE_LIMITS
from steerlm.server.routes import health


class Guard:
    """The parts that last as long as a server; `around` puts them around an application."""

    def __init__(self, settings: GuardSettings, log: RequestLog | None = None) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.admission = Admission(settings.running, settings.waiting)
        self.scoring = Admission(settings.scoring, 4 * settings.scoring)
        self.metrics = Metrics(self.admission, self.scoring)
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
            most_held=settings.arriving_bytes,
            depth=settings.json_depth,
            items=settings.json_items,
            keep=settings.log_contents,
        )
        app.add_middleware(Access, desk=self._desk, anybody=settings.insecure, shared_cache=settings.shared_cache)
        if settings.cors_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],  # clients of vendors add their own; no cookies are taken from anybody
                expose_headers=["retry-after", "x-request-id", *RATE_LIMITS],
            )
        app.add_middleware(Gate, lifecycle=self.lifecycle, retry_after=settings.drain_seconds)
        app.add_middleware(Observed, log=self.log, metrics=self.metrics)

    def close(self) -> None:
        """Write what is to be written of keys."""
        if self._desk is not None:
            self._desk.close()
