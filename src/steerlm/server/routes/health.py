"""GET /healthz, /readyz and /metrics: what orchestrators and Prometheus ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from steerlm.server.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from steerlm.server.guard import Guard

router = APIRouter(tags=["operation"])


class Health(BaseModel):
    """Whether the process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the server should be sent requests."""

    status: Literal["starting", "ready", "stopping"]


def _guard(request: Request) -> Guard:
    guard: Guard = request.app.state.guard
    return guard


@router.get("/healthz")
async def healthz() -> Health:
    """Answers while the process is alive."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Answers 200 from the engine's first token until the server is told to stop, and 503 otherwise."""
    phase = _guard(request).lifecycle.phase
    response.status_code = 200 if phase == "ready" else 503
    return Readiness(status=phase)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Counters in Prometheus's text format."""
    return Response(_guard(request).metrics.text(), headers={"content-type": CONTENT_TYPE})
