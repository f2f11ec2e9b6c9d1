"""The OpenAPI document, with the pieces of streams, which FastAPI does not see."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema


def document(app: FastAPI, streamed: list[type[BaseModel]]) -> dict[str, Any]:
    """The document of an application whose routes refer to `streamed` models."""
    made: dict[str, Any] = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, schemas = models_json_schema(
        [(model, "serialization") for model in streamed], ref_template="#/components/schemas/{model}"
    )
    made["components"]["schemas"] = {**schemas["$defs"], **made["components"]["schemas"]}
    return made
