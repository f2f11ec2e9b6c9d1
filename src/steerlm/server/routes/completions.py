"""POST /v1/completions: text or token ids to continue, or prompts to answer under attributes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from steerlm.engines import base
from steerlm.server.dialogue import Dialogue, check_amount, single
from steerlm.server.envelope import head, usage
from steerlm.server.errors import ApiError
from steerlm.server.generation import (
    Answer,
    Called,
    Prompt,
    Wanted,
    add,
    check_answers,
    collect,
    new_answers,
    pieces,
    plan,
    read_sampling,
)
from steerlm.server.logprobs import (
    CompletionLogprobs,
    TextPlace,
    completion_logprobs,
    joined_logprobs,
    prompt_logprobs,
    token_bytes,
)
from steerlm.server.measuring import measure
from steerlm.server.routes import State
from steerlm.server.routes.completions_models import CompletionChoice, CompletionRequest, TextCompletion
from steerlm.server.rules import forbidden
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
from steerlm.server.streaming import EventStream, begun, event, prepared, unless_gone, with_errors

router = APIRouter(tags=["generation"])


@dataclass(frozen=True)
class _Work:
    dialogues: list[Dialogue]
    steering: Steering | None
    requests: list[base.Request]
    n: int
    echoes: list[str] | None = None
    """The texts of the prompts, where they are asked for."""
    firsts: list[int] = field(default_factory=list)
    """Of each request the first with the same prompt, with which the scores of its tokens come."""
    listed: dict[int, tuple[CompletionLogprobs, TextPlace]] = field(default_factory=dict)
    """By those, what was listed of a prompt, and its end."""


def _prepare(state: ServerState, body: CompletionRequest) -> _Work:
    preset = preset_of(state, body.model)
    prompts: list[Any] = [body.prompt] if body.is_one else list(body.prompt)
    if not prompts:
        raise ApiError("prompt: there is none", param="prompt")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(
            "max_tokens: 0 is for an echo of the prompt alone; set echo, or ask for more", param="max_tokens"
        )
    if body.max_tokens == 0 and body.min_tokens:
        raise ApiError(f"min_tokens={body.min_tokens} is more than max_tokens=0", param="min_tokens")
    n = body.n or 1
    check_answers(state, n * len(prompts))
    check_amount(state, 1, sum(len(prompt) for prompt in prompts), "prompt")
    if not set(body.stop_token_ids or ()) <= set(state.prompting.renderer.stop_ids):
        ends_at = ", ".join(map(str, state.prompting.renderer.stop_ids))
        raise ApiError(f"stop_token_ids: texts end at {ends_at} and no other tokens", param="stop_token_ids")
    sampling = read_sampling(state, body, body.logprobs)
    sources = sources_of(state, body)
    steers = bool(sources or preset or body.measure or body.guidance is not None)
    is_raw = _is_raw(state, body, steers)
    # Where none is to be told, one token is made all the same: with it come those of the prompt.
    most = 1 if body.max_tokens == 0 else body.max_tokens
    wanted = Wanted(n, most, trim=not is_raw, salt=body.cache_salt, called=Called("prompt"))
    if is_raw:
        raw = (Prompt(_raw_ids(state, prompt, body.max_tokens == 0)) for prompt in prompts)
        requests = plan(state, raw, sampling, wanted)
        if not body.echo:
            return _Work([], None, requests, n)
        seen: dict[tuple[int, ...], int] = {}
        firsts = [seen.setdefault(request.prompt, number) for number, request in enumerate(requests)]
        for number in seen.values():
            requests[number] = replace(requests[number], prompt_logprobs=body.logprobs)
        return _Work([], None, requests, n, [_text(state, prompt) for prompt in prompts], firsts)
    if body.echo:
        raise ApiError("echo: only of prompts that are continued as they are", param="echo")
    steering = settle(state, body, sources, preset)
    dialogues = [single(state, prompt) for prompt in prompts]
    rendered = (
        Prompt(prompt_of(state, dialogue, steering.values), guidance_of(state, dialogue, steering.guidance))
        for dialogue in dialogues
    )
    return _Work(dialogues, steering, plan(state, rendered, sampling, wanted), n)


def _is_raw(state: ServerState, body: CompletionRequest, steers: bool) -> bool:
    """Whether prompts are continued rather than answered. Raises `ApiError` where they may not or cannot be."""
    is_text = body.is_text
    restricted = state.policy.restricts
    if body.raw is False and not is_text:
        raise ApiError("raw: token ids are always continued as they are; leave raw out", param="raw")
    if is_text and not body.raw and (body.raw is False or steers or restricted):
        return False
    if steers:
        raise ApiError("a prompt that is continued as it is has no place for attributes; send text, without raw")
    if restricted:
        rule = next((f"attributes.{name}" for name, item in state.policy.attributes.items() if item.restricts), "")
        raise forbidden(
            "prompts are not continued as they are; send them as text, without raw",
            rule or "system.fixed",
            "raw" if is_text else "prompt",
        )
    return True


def _raw_ids(state: ServerState, prompt: str | list[int], alone: bool) -> tuple[int, ...]:
    """`alone` says that there will be an echo and nothing else, for which a token is made all the same."""
    ids, most = _ids(state, prompt), state.engine.context - 1
    if alone and len(ids) > most:
        raise ApiError(
            f"prompt: it has {len(ids)} tokens, and an echo may have {most}, one less than the model's context; "
            "shorten it",
            param="prompt",
            code="context_length_exceeded",
        )
    return ids


def _ids(state: ServerState, prompt: str | list[int]) -> tuple[int, ...]:
    tokenizer = state.prompting.renderer.tokenizer
    if isinstance(prompt, str):
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not ids:
            raise ApiError("prompt: an empty text cannot be continued", param="prompt")
        return ids
    if (highest := max(prompt)) >= len(tokenizer):
        raise ApiError(f"prompt: token {highest} is beyond the {len(tokenizer)} of the vocabulary", param="prompt")
    return tuple(prompt)


def _text(state: ServerState, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    tokenizer = state.prompting.renderer.tokenizer
    return b"".join(token_bytes(tokenizer, token) for token in prompt).decode("utf-8", errors="replace")


def _echo(
    state: ServerState, body: CompletionRequest, work: _Work, index: int, answers: Sequence[Answer]
) -> tuple[CompletionChoice, TextPlace]:
    """The prompt of an answer as the first part of it, and where that ends."""
    assert work.echoes is not None
    scores, place = None, TextPlace()
    if body.logprobs is not None:
        first = work.firsts[index]
        if first not in work.listed:
            tokenizer, as_ids = state.prompting.renderer.tokenizer, bool(body.return_tokens_as_token_ids)
            listed = prompt_logprobs(tokenizer, work.requests[first].prompt, answers[first].prompt, place, as_ids)
            work.listed[first] = listed, place
        scores, end = work.listed[first]
        place = end.copy()
    finish: base.Finish | None = "length" if body.max_tokens == 0 else None
    text = work.echoes[index // work.n]
    return CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=finish), place


@router.post(
    "/v1/completions",
    response_model=TextCompletion,
    responses={200: {"content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/TextCompletion"}}}}},
)
async def completions(body: CompletionRequest, request: Request, state: State) -> Any:
    """Continue texts or token ids, or answer texts under attributes."""
    if body.is_one:
        work = await prepared(request, lambda: _prepare(state, body))
    else:
        work = await asyncio.to_thread(_prepare, state, body)
    if not body.stream:
        return await unless_gone(request, _whole(state, body, work))
    arriving = await begun(request, pieces(state, work.requests, ids=bool(body.return_token_ids)))
    if work.echoes and body.logprobs is not None:
        arriving = _firsts_first(arriving, work.firsts)
    return EventStream(with_errors(_events(state, body, work, arriving)))


async def _firsts_first(
    arriving: AsyncGenerator[base.Piece, None], firsts: Sequence[int]
) -> AsyncGenerator[base.Piece, None]:
    """Pieces, but those of a copy of a prompt not before the first one of `firsts`, with which the scores come."""
    begun: set[int] = set()
    held: dict[int, list[base.Piece]] = defaultdict(list)
    async with aclosing(arriving):
        async for piece in arriving:
            first = firsts[piece.request]
            if first != piece.request and first not in begun:
                held[first].append(piece)
                continue
            begun.add(first)
            yield piece
            for late in held.pop(first, ()):
                yield late


def _told(tokens: Sequence[int]) -> list[int]:
    """Without what stands for an end that has no token."""
    return [token for token in tokens if token >= 0]


async def _report(state: ServerState, work: _Work, answers: Sequence[Answer]) -> SteeringReport | None:
    if work.steering is None:
        return None
    said = report(work.steering)
    if not work.steering.measure:
        return said
    measured = []
    for number, dialogue in enumerate(work.dialogues):
        texts = [answer.text for answer in answers[number * work.n : (number + 1) * work.n]]
        measured += await measure(state, dialogue, texts)
    return said.model_copy(update={"measured": measured})


async def _whole(state: ServerState, body: CompletionRequest, work: _Work) -> Response:
    answers = await collect(state, work.requests, bool(body.return_token_ids), with_end=bool(body.echo))
    said = await _report(state, work, answers)
    return await asyncio.to_thread(_response, state, body, work, answers, said)


def _response(
    state: ServerState, body: CompletionRequest, work: _Work, answers: list[Answer], said: SteeringReport | None
) -> Response:
    """Written in a thread of its own: lists of log-probabilities may have a million entries."""
    tokenizer = state.prompting.renderer.tokenizer
    choices = []
    for index, answer in enumerate(answers):
        echo, place = _echo(state, body, work, index, answers) if work.echoes else (None, TextPlace())
        if body.max_tokens == 0:
            answers[index] = answer = Answer(cached=answer.cached)
        scores = None
        if body.logprobs is not None:
            as_ids = bool(body.return_tokens_as_token_ids)
            scores = completion_logprobs(tokenizer, *answer.listed(), place, as_ids)
            scores = joined_logprobs(echo.logprobs, scores) if echo and echo.logprobs else scores
        choices.append(
            CompletionChoice(
                index=index,
                text=(echo.text if echo else "") + answer.text,
                logprobs=scores,
                finish_reason=answer.finish,
                token_ids=_told(answer.tokens) if body.return_token_ids else None,
            )
        )
    whole = TextCompletion(
        **head(state, "cmpl", body.model),
        choices=choices,
        usage=usage(work.requests, answers, work.n),
        steering=said,
    )
    return Response(whole.model_dump_json(), media_type="application/json")


async def _events(
    state: ServerState, body: CompletionRequest, work: _Work, arriving: AsyncGenerator[base.Piece, None]
) -> AsyncGenerator[str, None]:
    tokenizer = state.prompting.renderer.tokenizer
    top = head(state, "cmpl", body.model)
    answers = new_answers(state, work.requests, bool(body.return_token_ids), with_end=bool(body.echo))
    places = [TextPlace() for _ in answers]
    said = report(work.steering) if work.steering else None
    echoed: set[int] = set()
    async with aclosing(arriving):
        async for piece in arriving:
            answer = answers[piece.request]
            tokens, logprobs = add(state, answer, piece)
            if work.echoes and piece.request not in echoed:
                echoed.add(piece.request)
                # In a thread, as it may be long.
                echo, places[piece.request] = await asyncio.to_thread(_echo, state, body, work, piece.request, answers)
                yield await asyncio.to_thread(event, TextCompletion(**top, choices=[echo]))
            if body.max_tokens == 0:
                answers[piece.request] = Answer(cached=answer.cached)
                continue
            scores = None
            if tokens:
                place, as_ids = places[piece.request], bool(body.return_tokens_as_token_ids)
                scores = completion_logprobs(tokenizer, tokens, logprobs, place, as_ids)
            if piece.text or scores or piece.finish or body.return_token_ids:
                choice = CompletionChoice(
                    index=piece.request,
                    text=piece.text,
                    logprobs=scores,
                    finish_reason=piece.finish,
                    token_ids=_told([piece.token]) if body.return_token_ids else None,
                )
                yield event(TextCompletion(**top, choices=[choice], steering=said))
                said = None
    if work.steering and work.steering.measure:
        measured = await _report(state, work, answers)
        yield event(TextCompletion(**top, choices=[], steering=measured))
    if body.stream_options and body.stream_options.include_usage:
        yield event(TextCompletion(**top, choices=[], usage=usage(work.requests, answers, work.n)))
