"""Answering a conversation, whatever form the request has: what to generate, and which answers to return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steerlm.engines.base import Request, Sampling
from steerlm.server.dialogue import ChatMessage, Dialogue, read_messages
from steerlm.server.errors import ApiError
from steerlm.server.fields import GenerationFields, VerifiedFields
from steerlm.server.generation import MESSAGES, Answer, Called, Prompt, Wanted, check_answers, plan, read_sampling
from steerlm.server.measuring import compared, measure, nearest
from steerlm.server.rules import Verbosity
from steerlm.server.state import ServerState
from steerlm.server.steering import (
    Steering,
    SteeringReport,
    guidance_of,
    preset_of,
    prompt_of,
    report,
    settle,
    sources_of,
)


@dataclass(frozen=True)
class ChatWork:
    """A checked request: `n` answers to generate of one conversation."""

    dialogue: Dialogue
    steering: Steering
    requests: list[Request]
    n: int


def prepare_chat(
    state: ServerState,
    steering_fields: VerifiedFields,
    generation: GenerationFields,
    messages: Sequence[ChatMessage],
    *,
    verbosity: Verbosity | None = None,
    logprobs: int | None = None,
    called: Called = MESSAGES,
    instructions: str | None = None,
) -> ChatWork:
    """Check a request and render its prompt. Raises `ApiError`."""
    preset = preset_of(state, steering_fields.model)
    sampling = read_sampling(state, generation, logprobs, called)
    check_answers(state, generation.n or 1)
    read = read_messages(state, messages, called.prompt, instructions)
    sources = [*sources_of(state, steering_fields, verbosity), *read.asked]
    steering = settle(state, steering_fields, sources, preset, steering_fields.verified)
    dialogue = read.under(state, steering.values)
    n = _draws(state, generation, steering, sampling)
    prompt = Prompt(prompt_of(state, dialogue, steering.values), guidance_of(state, dialogue, steering.guidance))
    wanted = Wanted(n, generation.max_tokens, salt=generation.cache_salt, called=called)
    return ChatWork(dialogue, steering, plan(state, [prompt], sampling, wanted), n)


def _draws(state: ServerState, generation: GenerationFields, steering: Steering, sampling: Sampling) -> int:
    """How many answers to generate. Raises `ApiError` where that makes no sense."""
    if not steering.verified:
        return generation.n or 1
    if (generation.n or 1) > 1:
        raise ApiError("verified: returns one answer; leave n out", param="n", code="contradiction")
    if steering.verified > 1 and sampling.temperature == 0:
        raise ApiError("verified: at temperature 0 all answers are the same; raise it", param="temperature")
    check_answers(state, steering.verified, "verified")
    compared(state, steering)
    return steering.verified


async def settled(
    state: ServerState, dialogue: Dialogue, steering: Steering, answers: Sequence[Answer]
) -> tuple[list[Answer], SteeringReport]:
    """The answers to return, with what was measured in them."""
    said = report(steering)
    if not steering.measure:
        return list(answers), said
    measured = await measure(state, dialogue, [answer.text for answer in answers])
    if not steering.verified:
        return list(answers), said.model_copy(update={"measured": measured})
    verified = nearest(state, steering, measured)
    found = {"measured": [measured[verified.chosen]], "verified": verified}
    return [answers[verified.chosen]], said.model_copy(update=found)
