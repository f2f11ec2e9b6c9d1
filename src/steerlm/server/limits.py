"""How much one request may ask for, checked before anything is computed or allocated for it; only `score_tokens`, which
takes rendering to know, is checked after each conversation that is rendered, before the attribute model reads any.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from steerlm.settings import Settings

Count = Annotated[int, Field(ge=1)]


class ServerLimits(Settings):
    """Bounds of a single request."""

    default_tokens: Count = 512
    """Most tokens of an answer where a request does not say; fewer where the context has less room."""
    answer_tokens: Count | None = None
    """Most tokens that a request may ask for in one answer; without it, what the context has room for."""
    answers: Count = 32
    """Most answers of one request: n, times the prompts or the settings; never more than --running."""
    messages: Count = 1024
    """Most messages of a conversation."""
    characters: Count = 1_000_000
    """Most characters of text in one request."""
    stop: Count = 16
    """Most stop strings."""
    stop_characters: Count = 256
    """Most characters of a stop string."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 20
    """Most likeliest tokens that are listed for each token."""
    verified: Count = 16
    """Most answers drawn to return the best of them."""
    guidance: Annotated[float, Field(ge=1)] = 10.0
    """Highest factor of guidance."""
    score_conversations: Count = 256
    """Most conversations of one request for scores."""
    score_tokens: Count = 262_144
    """Most tokens read for one request for scores. An answer beyond the attribute model's context is read on its own,
    with what the context holds of the turns before it."""
