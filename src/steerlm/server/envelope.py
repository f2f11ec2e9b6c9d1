"""What surrounds the answers of a response: its head, and its counts of tokens."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from steerlm.engines.base import Request
from steerlm.server.generation import Answer
from steerlm.server.state import ServerState


def head(state: ServerState, prefix: str, model: str | None) -> dict[str, Any]:
    """The fields that every response and every piece of a stream begins with; `model` is what the client called it."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model or state.name,
        "system_fingerprint": state.prompting.info.fingerprint or None,
    }


class PromptDetails(BaseModel):
    """How many tokens of the prompt were not computed again."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def reading(tokens: int) -> Usage:
    """The counts of a request for which nothing was generated."""
    return Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens, prompt_tokens_details=PromptDetails())


def usage(requests: Sequence[Request], answers: Sequence[Answer], n: int = 1) -> Usage:
    """The counts of a submission in which each prompt stands `n` times in a row; it is counted once."""
    prompt = sum(len(request.prompt) for request in requests[::n])
    made = sum(answer.made for answer in answers)
    cached = sum(answer.cached for answer in answers[::n])
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=made,
        total_tokens=prompt + made,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
    )
