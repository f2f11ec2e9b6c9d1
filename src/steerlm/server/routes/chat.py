"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from steerlm.engines.base import Piece
from steerlm.server.chatting import ChatWork, prepare_chat, settled
from steerlm.server.envelope import Usage, head, usage
from steerlm.server.errors import ApiError
from steerlm.server.generation import Answer, Called, add, collect, new_answers, pieces
from steerlm.server.logprobs import chat_logprobs
from steerlm.server.routes import State
from steerlm.server.routes.chat_models import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
)
from steerlm.server.state import ServerState
from steerlm.server.steering import SteeringReport, report
from steerlm.server.streaming import EventStream, begun, event, prepared, unless_gone, with_errors

router = APIRouter(tags=["generation"])


def _prepare(state: ServerState, body: ChatRequest) -> ChatWork:
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs: needs logprobs=true", param="top_logprobs")
    name, most = _most(body)
    generation = body.model_copy(update={"max_tokens": most})
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    called = Called(most=name, likeliest="top_logprobs")
    return prepare_chat(
        state, body, generation, body.messages, verbosity=body.verbosity, logprobs=logprobs, called=called
    )


def _most(body: ChatRequest) -> tuple[str, int | None]:
    """What the request calls the most tokens of an answer, and how many."""
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise ApiError(
            f"max_tokens={body.max_tokens} contradicts max_completion_tokens={body.max_completion_tokens}; give one",
            param="max_tokens",
            code="contradiction",
        )
    if body.max_completion_tokens:
        return "max_completion_tokens", body.max_completion_tokens
    return "max_tokens", body.max_tokens


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ChatChunk"}}}}},
)
async def chat_completions(body: ChatRequest, request: Request, state: State) -> Any:
    """Answer a conversation under the attributes that it asks for."""
    work = await prepared(request, lambda: _prepare(state, body))
    if not body.stream:
        return await unless_gone(request, _whole(state, body, work))
    if work.steering.verified:
        raise ApiError("verified: the choice needs whole answers; leave stream out", param="stream")
    arriving = await begun(request, pieces(state, work.requests))
    return EventStream(with_errors(_events(state, body, work, arriving)))


async def _whole(state: ServerState, body: ChatRequest, work: ChatWork) -> Response:
    drawn = await collect(state, work.requests)
    answers, said = await settled(state, work.dialogue, work.steering, drawn)
    used = usage(work.requests, drawn, work.n)
    return await asyncio.to_thread(_response, state, body, work, answers, used, said)


def _response(
    state: ServerState, body: ChatRequest, work: ChatWork, answers: list[Answer], used: Usage, said: SteeringReport
) -> Response:
    """Written in a thread of its own: lists of log-probabilities may have a million entries."""
    tokenizer = state.prompting.renderer.tokenizer
    whole = ChatCompletion(
        **head(state, "chatcmpl", body.model),
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content=answer.text, attributes=work.steering.values),
                logprobs=chat_logprobs(tokenizer, *answer.listed()) if body.logprobs else None,
                finish_reason=answer.finish,
            )
            for index, answer in enumerate(answers)
        ],
        usage=used,
        steering=said,
    )
    return Response(whole.model_dump_json(), media_type="application/json")


async def _events(
    state: ServerState, body: ChatRequest, work: ChatWork, arriving: AsyncGenerator[Piece, None]
) -> AsyncGenerator[str, None]:
    tokenizer = state.prompting.renderer.tokenizer
    top = head(state, "chatcmpl", body.model)
    answers = new_answers(state, work.requests)
    for index in range(work.n):
        opening = Delta(role="assistant", content="", attributes=work.steering.values)
        yield event(ChatChunk(**top, choices=[ChunkChoice(index=index, delta=opening)], steering=report(work.steering)))
    async with aclosing(arriving):
        async for piece in arriving:
            tokens, logprobs = add(state, answers[piece.request], piece)
            scores = chat_logprobs(tokenizer, tokens, logprobs) if tokens else None
            if piece.text or scores:
                choice = ChunkChoice(index=piece.request, delta=Delta(content=piece.text), logprobs=scores)
                yield event(ChatChunk(**top, choices=[choice]))
            if piece.finish:
                choice = ChunkChoice(index=piece.request, delta=Delta(), finish_reason=piece.finish)
                yield event(ChatChunk(**top, choices=[choice]))
    if work.steering.measure:
        _, said = await settled(state, work.dialogue, work.steering, answers)
        yield event(ChatChunk(**top, choices=[], steering=said))
    if body.stream_options and body.stream_options.include_usage:
        yield event(ChatChunk(**top, choices=[], usage=usage(work.requests, answers, work.n)))
