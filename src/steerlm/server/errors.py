"""What a client is told when something is wrong: OpenAI's error object, whatever raised it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from steerlm.errors import ConfigError, DataError, EngineError, SchemaError, SteerLMError
from steerlm.server.logs import current

_LOG = logging.getLogger(__name__)
_SHOWN = 5  # faults of one request that are listed
_LONGEST = 1000  # characters of a field of the error object


class ErrorDetail(BaseModel):
    """What is wrong, the kind of error, and the field and the machine-readable reason where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


class ApiError(SteerLMError):
    """An error with its HTTP status and the fields of the error object."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message=message, type=kind, param=param, code=code)
        self.headers = dict(headers or {})


def as_api_error(error: Exception) -> ApiError:
    """Any error in the form for clients. What is no `SteerLMError` is a fault of ours, and its text stays here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConfigError | SchemaError | DataError):
        return ApiError(str(error))
    if isinstance(error, EngineError):
        return _engine_error(error)
    if isinstance(error, SteerLMError):
        return ApiError(str(error), 503, "server_error", code="engine_error")
    return ApiError("the server failed to answer; its log says why", 500, "server_error", code="internal_error")


def _engine_error(error: EngineError) -> ApiError:
    if error.public is not None:
        _LOG.warning("%s", error)
    told = error.public or str(error)
    if error.retry_after is None:
        return ApiError(told, 503, "server_error", code="engine_error")
    headers = {"retry-after": str(max(1, math.ceil(error.retry_after)))}
    return ApiError(told, 503, "server_error", code="engine_busy", headers=headers)


def error_response(error: ApiError) -> JSONResponse:
    """The response that carries an error; the log gets its code."""
    current().code = error.detail.code or error.detail.type
    return JSONResponse(ErrorBody(error=_printable(error.detail)).model_dump(), error.status, error.headers)


def _printable(detail: ErrorDetail) -> ErrorDetail:
    """Without what no response can carry: it may repeat what a client sent, of any length and in broken Unicode."""
    cut = {
        name: text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        for name, value in detail
        if value is not None and (text := str(value).encode("utf-8", "backslashreplace").decode())
    }
    return detail.model_copy(update=cut)


def validation_error(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """The faults that pydantic found in a request; `param` names the first."""
    named = [(_path(fault["loc"]), _in_words(fault)) for fault in faults[:_SHOWN]]
    shown = [f"{path}: {words}" if path else words for path, words in named]
    if len(faults) > _SHOWN:
        shown.append(f"and {len(faults) - _SHOWN} more")
    codes = {"extra_forbidden": "unknown_field", "json_invalid": "invalid_json", "missing": "missing_field"}
    return ApiError("; ".join(shown), param=named[0][0] or None, code=codes.get(faults[0]["type"], "invalid_value"))


def _path(location: Sequence[str | int]) -> str:
    if len(location) == 2 and isinstance(location[1], int):  # a place in text that is no JSON
        return ""
    # Alternatives of one field are told apart by names in angle brackets.
    return ".".join(str(part) for part in location[1:] if not str(part).startswith("<"))


def _in_words(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        return f"unknown field {fault['loc'][-1]!r}; remove it"
    if fault["type"] == "json_invalid":
        return f"the body is not valid JSON: {fault.get('ctx', {}).get('error', fault['msg'])}"
    if len(fault["loc"]) == 1:
        return "the request needs a JSON object as its body, with content-type application/json"
    return str(fault["msg"]).removeprefix("Value error, ")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the one form."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return error_response(as_api_error(error))

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors()))

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
        return error_response(ApiError(str(error.detail), error.status_code, kind, headers=error.headers))

    async def unknown(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("a request failed", exc_info=error)
        return error_response(as_api_error(error))

    app.add_exception_handler(SteerLMError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)
