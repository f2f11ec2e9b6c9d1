"""The routes of the API, by what they answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from steerlm.server.state import ServerState


def _state(request: Request) -> ServerState:
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


State = Annotated[ServerState, Depends(_state)]
"""The server's state, for a route."""
