"""Requests that are turned away before a route sees them, answered in the form of all our errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.types import Receive, Scope, Send

from steerlm.server.errors import ApiError, error_response

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RefusedError(ApiError):
    """A request for which nothing is computed; `retry_after` are the seconds after which it may be tried again."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        told = {} if retry_after is None else {"retry-after": str(max(1, math.ceil(retry_after)))}
        super().__init__(message, status, kind, code=code, headers={**(headers or {}), **told})


async def refuse(refusal: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a refusal. What is still under way of the body is passed over by the server."""
    await error_response(refusal)(scope, receive, send)
