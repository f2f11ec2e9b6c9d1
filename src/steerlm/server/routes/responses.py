"""POST /v1/responses: text in, text out."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request

from steerlm.engines import base
from steerlm.server.chatting import ChatWork, prepare_chat, settled
from steerlm.server.dialogue import ChatMessage
from steerlm.server.envelope import usage
from steerlm.server.errors import ApiError, ErrorDetail
from steerlm.server.fields import GenerationFields
from steerlm.server.generation import Answer, Called, add, collect, pieces
from steerlm.server.routes import State
from steerlm.server.routes.responses_models import (
    Incomplete,
    InputDetails,
    InputItem,
    OutputDetails,
    OutputMessage,
    OutputText,
    ResponseEvent,
    ResponseObject,
    ResponsesRequest,
    ResponseText,
    ResponseUsage,
)
from steerlm.server.state import ServerState
from steerlm.server.steering import SteeringReport, report
from steerlm.server.streaming import EventStream, begun, event, prepared, unless_gone, with_errors

router = APIRouter(tags=["generation"])


def _prepare(state: ServerState, body: ResponsesRequest) -> ChatWork:
    items = [InputItem(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    messages = [
        ChatMessage(role=item.role, content=item.content, attributes=item.attributes, labels=item.labels)
        for item in items
    ]
    generation = GenerationFields(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
        max_tokens=body.max_output_tokens,
        cache_salt=body.cache_salt,
    )
    verbosity = body.text.verbosity if body.text else None
    return prepare_chat(
        state,
        body,
        generation,
        messages,
        verbosity=verbosity,
        called=Called("input", "max_output_tokens"),
        instructions=body.instructions,
    )


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses={200: {"content": {"text/event-stream": {"schema": {"$ref": "#/components/schemas/ResponseEvent"}}}}},
)
async def responses(body: ResponsesRequest, request: Request, state: State) -> Any:
    """Answer a prompt or a conversation; nothing is stored."""
    work = await prepared(request, lambda: _prepare(state, body))
    draft = _Draft(state, body, work)
    if not body.stream:
        return await unless_gone(request, draft.whole())
    if work.steering.verified:
        raise ApiError("verified: the choice needs whole answers; leave stream out", param="stream")
    arriving = await begun(request, pieces(state, work.requests))
    return EventStream(with_errors(draft.events(arriving), done="", error_event=draft.error))


class _Draft:
    """A response as it comes about."""

    def __init__(self, state: ServerState, body: ResponsesRequest, work: ChatWork) -> None:
        self._state = state
        self._work = work
        self._item = f"msg_{uuid.uuid4().hex}"
        self._sent = 0
        sampling = work.requests[0].sampling
        self._fixed: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "created_at": int(time.time()),
            "model": body.model or state.name,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "text": ResponseText(verbosity=body.text.verbosity if body.text else None),
        }

    async def whole(self) -> ResponseObject:
        """The response with its answer."""
        drawn = await collect(self._state, self._work.requests)
        return await self._finished(drawn)

    async def events(self, arriving: AsyncGenerator[base.Piece, None]) -> AsyncGenerator[str, None]:
        """The events of a stream, in the order in which OpenAI's API sends them."""
        begins = self._response("in_progress", [], report(self._work.steering))
        yield self._event("created", response=begins)
        yield self._event("in_progress", response=begins)
        place = {"output_index": 0}
        yield self._event("output_item.added", item=self._message("in_progress", None), **place)
        part = {**place, "item_id": self._item, "content_index": 0}
        yield self._event("content_part.added", part=OutputText(text=""), **part)
        answer = Answer()
        async with aclosing(arriving):
            async for piece in arriving:
                add(self._state, answer, piece)
                if piece.text:
                    yield self._event("output_text.delta", delta=piece.text, logprobs=[], **part)
        yield self._event("output_text.done", text=answer.text, logprobs=[], **part)
        yield self._event("content_part.done", part=OutputText(text=answer.text), **part)
        ended = await self._finished([answer])
        yield self._event("output_item.done", item=ended.output[0], **place)
        yield self._event(ended.status, response=ended)

    def error(self, error: ErrorDetail) -> str:
        """The last event of a stream that was cut off."""
        return self._numbered("error", code=error.code, message=error.message, param=error.param)

    def _event(self, kind: str, **fields: Any) -> str:
        return self._numbered(f"response.{kind}", **fields)

    def _numbered(self, kind: str, **fields: Any) -> str:
        made = ResponseEvent(type=kind, sequence_number=self._sent, **fields)
        self._sent += 1
        # Fields that an event of this type does not have are left out; those of its parts stay.
        return event(made.model_dump_json(exclude=_absent(made)), made.type)

    async def _finished(self, drawn: list[Answer]) -> ResponseObject:
        [answer], said = await settled(self._state, self._work.dialogue, self._work.steering, drawn)
        counts = usage(self._work.requests, drawn, self._work.n)
        status = "completed" if answer.finish == "stop" else "incomplete"
        made = self._response(status, [self._message(status, answer.text)], said)
        spent = ResponseUsage(
            input_tokens=counts.prompt_tokens,
            input_tokens_details=InputDetails(cached_tokens=counts.prompt_tokens_details.cached_tokens),
            output_tokens=counts.completion_tokens,
            output_tokens_details=OutputDetails(),
            total_tokens=counts.total_tokens,
        )
        cut = Incomplete() if status == "incomplete" else None
        return made.model_copy(update={"usage": spent, "incomplete_details": cut})

    def _response(self, status: Any, output: list[OutputMessage], said: SteeringReport) -> ResponseObject:
        return ResponseObject(**self._fixed, status=status, output=output, steering=said)

    def _message(self, status: Any, text: str | None) -> OutputMessage:
        content = [] if text is None else [OutputText(text=text)]
        return OutputMessage(id=self._item, status=status, content=content, attributes=self._work.steering.values)


def _absent(made: ResponseEvent) -> set[str]:
    return {name for name in ResponseEvent.model_fields if name not in made.model_fields_set}
