"""The OpenAPI document, with what FastAPI does not see: pieces of streams, keys, and headers of answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from steerlm.server.access import PUBLIC

_REQUEST_ID = {"x-request-id": "Id of the request, the one in the server's log."}
_RETRY_AFTER = {"retry-after": "Seconds after which to try again, of answers 429 and 503."}
RATE_LIMITS = {
    f"x-ratelimit-{part}-{what}": f"{said} of the key's {meant}, where the key has that limit."
    for what, meant in (
        ("requests", "requests per minute"),
        ("quota-requests", "quota of requests"),
        ("quota-tokens", "quota of tokens"),
    )
    for part, said in (
        ("limit", "Size"),
        ("remaining", "What is left"),
        ("reset", "Seconds, as 1.5s, until all is back"),
    )
}
"""Headers of answers to a key with limits, and what they say."""


def document(app: FastAPI, streamed: list[type[BaseModel]]) -> dict[str, Any]:
    """The document of an application whose routes refer to `streamed` models."""
    made: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, schemas = models_json_schema(
        [(model, "serialization") for model in streamed], ref_template="#/components/schemas/{model}"
    )
    made["components"]["schemas"] = {**schemas["$defs"], **made["components"]["schemas"]}
    guard = getattr(app.state, "guard", None)
    if guard is not None:
        _add_guard(made, has_keys=guard.settings.keys is not None)
    return made


def _add_guard(made: dict[str, Any], has_keys: bool) -> None:
    """Describe what stands around the application."""
    told = {**_REQUEST_ID, **_RETRY_AFTER, **(RATE_LIMITS if has_keys else {})}
    made["components"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in told.items()
    }
    if has_keys:
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
    for path, routes in made["paths"].items():
        for method, route in routes.items():
            if has_keys and path in PUBLIC:
                route["security"] = []
            counted = RATE_LIMITS if has_keys and method == "post" else {}
            for status, response in route["responses"].items():
                refused = _RETRY_AFTER if status in ("4XX", "5XX") else {}
                names = {**_REQUEST_ID, **refused, **counted}
                response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
