"""POST /v1/steer/sweep: one conversation answered under many settings, its prefix computed once."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from steerlm.engines import base
from steerlm.server.dialogue import ChatMessage, Dialogue, read_messages
from steerlm.server.envelope import Usage, head, usage
from steerlm.server.errors import ApiError
from steerlm.server.fields import GenerationFields, IgnoredFields, Items, Level, Levels, SteeringFields
from steerlm.server.generation import Answer, Prompt, Wanted, check_answers, collect, plan, read_sampling
from steerlm.server.measuring import Measured, measure
from steerlm.server.policy import Values
from steerlm.server.routes import State
from steerlm.server.rules import Asked, Verbosity
from steerlm.server.state import ServerState
from steerlm.server.steering import guidance_of, preset_of, prompt_of, settle, settled_values, sources_of
from steerlm.server.streaming import unless_gone

router = APIRouter(tags=["steering"])


class SweepRequest(SteeringFields, GenerationFields, IgnoredFields):
    """A conversation, and the settings under which to answer it: a grid or a list."""

    messages: Items[ChatMessage]
    """The conversation, as for /v1/chat/completions."""
    grid: dict[str, Annotated[Items[Level], Field(min_length=1)]] | None = None
    """Values to try of each attribute; all combinations are answered, the last attribute changing fastest."""
    settings: Annotated[Items[Levels], Field(min_length=1)] | None = None
    """The settings to answer, one by one."""
    verbosity: Verbosity | None = None
    """As for /v1/chat/completions, for all settings."""


class SweepAnswer(BaseModel):
    """An answer under one of the settings."""

    index: int
    setting: int
    attributes: dict[str, int | None]
    text: str
    finish_reason: base.Finish
    measured: dict[str, float] | None = None


class Sweep(BaseModel):
    """All answers, in the order of the settings."""

    id: str
    object: Literal["steer.sweep"] = "steer.sweep"
    created: int
    model: str
    answers: list[SweepAnswer]
    usage: Usage
    system_fingerprint: str | None


def _settings(state: ServerState, body: SweepRequest, n: int) -> list[Asked]:
    if (body.grid is None) == (body.settings is None):
        raise ApiError("give either a grid or settings", param="grid", code="contradiction")
    if body.settings is not None:
        check_answers(state, n * len(body.settings), "settings")
        return [Asked(f"settings.{number}", values) for number, values in enumerate(body.settings)]
    grid = body.grid or {}
    if not grid:
        raise ApiError("grid: names no attribute", param="grid")
    # Counted before any combination is made.
    check_answers(state, n * math.prod(len(values) for values in grid.values()), "grid")
    return [Asked("grid", dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def _prepare(state: ServerState, body: SweepRequest) -> tuple[Dialogue, list[Values], list[base.Request]]:
    n = body.n or 1
    preset = preset_of(state, body.model)
    settings = _settings(state, body, n)
    read = read_messages(state, body.messages)
    sources = [*sources_of(state, body, body.verbosity), *read.asked]
    # Past answers have the same labels under all settings, so that there is one prefix.
    dialogue = read.under(state, settled_values(state, sources, preset))
    settled = [settle(state, body, [*sources, asked], preset) for asked in settings]
    sampling = read_sampling(state, body)
    guidance = guidance_of(state, dialogue, body.guidance)
    prompts = (Prompt(prompt_of(state, dialogue, item.values), guidance) for item in settled)
    wanted = Wanted(n, body.max_tokens, salt=body.cache_salt)
    return dialogue, [item.values for item in settled], plan(state, prompts, sampling, wanted)


@router.post("/v1/steer/sweep")
async def sweep(body: SweepRequest, request: Request, state: State) -> Sweep:
    """Answer one conversation under every setting of a grid or a list."""
    dialogue, settings, requests = await asyncio.to_thread(_prepare, state, body)
    n = body.n or 1

    async def work() -> tuple[list[Answer], Sequence[Measured]]:
        answers = await collect(state, requests)
        measures = await measure(state, dialogue, [item.text for item in answers]) if body.measure else None
        return answers, measures or [None] * len(answers)

    answers, measured = await unless_gone(request, work())
    return Sweep(
        **head(state, "sweep", body.model),
        answers=[
            SweepAnswer(
                index=index,
                setting=index // n,
                attributes=settings[index // n],
                text=answer.text,
                finish_reason=answer.finish,
                measured=scores,
            )
            for index, (answer, scores) in enumerate(zip(answers, measured, strict=True))
        ],
        usage=usage(requests, answers, n),
    )
