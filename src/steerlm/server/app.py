"""The application: routes over a `ServerState`. Access control and limits over many requests go around it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from steerlm import __version__
from steerlm.server.errors import ErrorBody, add_error_handlers
from steerlm.server.openapi import document
from steerlm.server.routes import chat, completions, models, responses, scores, sweep
from steerlm.server.routes.chat_models import ChatChunk
from steerlm.server.routes.responses_models import ResponseEvent
from steerlm.server.state import ServerState

_ABOUT = """An OpenAI-compatible API of a language model that its users steer: `attributes` in a request say how the
answer is to be. `GET /v1/attributes` lists them."""


def create_app(state: ServerState) -> FastAPI:
    """The application; all that it answers follows from `state`."""
    app = FastAPI(
        title="steerlm",
        version=__version__,
        description=_ABOUT,
        # Named here, so that FastAPI does not document its own form of validation errors.
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.server = state
    add_error_handlers(app)
    for routes in (chat, completions, responses, sweep, scores, models):
        app.include_router(routes.router)

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = document(app, [ChatChunk, ResponseEvent])
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
