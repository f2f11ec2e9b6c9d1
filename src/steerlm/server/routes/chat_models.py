"""The forms of /v1/chat/completions: what it takes, what it gives, and the pieces of its streams."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from steerlm.engines.base import Finish
from steerlm.server.dialogue import ChatMessage
from steerlm.server.envelope import Usage
from steerlm.server.fields import GenerationFields, Ignored, IgnoredFields, SteeringFields, StreamOptions, only
from steerlm.server.logprobs import ChatLogprobs
from steerlm.server.rules import Verbosity
from steerlm.server.steering import SteeringReport


class ChatRequest(SteeringFields, GenerationFields, IgnoredFields):
    """A conversation to answer."""

    messages: list[ChatMessage]
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
    frequency_penalty: only(0) = None
    presence_penalty: only(0) = None
    min_p: only(0) = None
    logit_bias: only({}) = None
    tools: only([]) = None
    tool_choice: only("none", "auto") = None
    functions: only([]) = None
    function_call: only("none", "auto") = None
    response_format: only({"type": "text"}) = None
    modalities: only(["text"]) = None
    reasoning_effort: only("none") = None
    audio: only() = None
    prediction: only() = None
    web_search_options: only() = None
    bad: only([]) = None
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


class Delta(BaseModel):
    """What an answer grows by."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, dump: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in dump(self).items() if value is not None}


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
