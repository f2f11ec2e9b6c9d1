"""The forms of /v1/chat/completions: what it takes, what it gives, and the pieces of its streams."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from steerlm.engines.base import Finish
from steerlm.server.dialogue import ChatMessage
from steerlm.server.envelope import Usage
from steerlm.server.fields import GenerationFields, Ignored, IgnoredFields, Items, Only, StreamOptions, VerifiedFields
from steerlm.server.logprobs import ChatLogprobs
from steerlm.server.rules import Verbosity
from steerlm.server.steering import SteeringReport


class ChatRequest(VerifiedFields, GenerationFields, IgnoredFields):
    """A conversation to answer."""

    messages: Items[ChatMessage]
    """The conversation; past answers may carry the attributes under which they were given."""
    verbosity: Verbosity | None = None
    """OpenAI's field: the ends and the middle of what may be asked of the attribute verbosity."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None
    """Give the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    """And of so many of the likeliest at its place."""
    stream: bool | None = None
    """Send the answer as it comes, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What the stream holds beside the answer."""
    frequency_penalty: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    min_p: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    modalities: Annotated[Any, Only(["text"])] = None
    reasoning_effort: Annotated[Any, Only("none")] = None
    audio: Annotated[Any, Only()] = None
    prediction: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None
    bad: Annotated[Any, Only([])] = None
    stream_usage: Ignored = None


class AnswerMessage(BaseModel):
    """The answer; sent back as a past message, it says under which values it was given."""

    role: Literal["assistant"] = "assistant"
    content: str
    attributes: dict[str, int | None]


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answers, what they were steered by, and what they cost."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None
    steering: SteeringReport


def _is_nothing(value: object) -> bool:
    return value is None


class Delta(BaseModel):
    """What an answer grows by: first its role and the values under which it is given, then its text."""

    role: Annotated[Literal["assistant"] | None, Field(exclude_if=_is_nothing)] = None
    content: Annotated[str | None, Field(exclude_if=_is_nothing)] = None
    attributes: Annotated[dict[str, int | None] | None, Field(exclude_if=_is_nothing)] = None


class ChunkChoice(BaseModel):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """A piece of a stream: of an answer, or at the end what was measured and what it cost."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None
    usage: Usage | None = None
    steering: SteeringReport | None = None
