"""The forms of /v1/responses: what it takes, what it gives, and the events of its streams."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from steerlm.server.fields import (
    ApiModel,
    CacheFields,
    Content,
    Ignored,
    IgnoredFields,
    Items,
    Levels,
    Only,
    SamplingFields,
    Text,
    VerifiedFields,
    text_or_parts,
)
from steerlm.server.rules import Verbosity
from steerlm.server.steering import SteeringReport


class InputItem(ApiModel):
    """A message; answers of before may be sent back as they came."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    attributes: Levels | None = None
    """Of an assistant message: the values under which it was answered."""
    labels: Levels | None = None
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None


class TextOptions(ApiModel):
    """How the text is to be."""

    verbosity: Verbosity | None = None
    """As `verbosity` of /v1/chat/completions."""
    format: Annotated[Any, Only({"type": "text"})] = None


class ResponsesRequest(VerifiedFields, SamplingFields, CacheFields, IgnoredFields):
    """Text or messages to answer."""

    input: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[Items[InputItem], Tag("<parts>")],
        Discriminator(text_or_parts),
    ]
    """A prompt, or a conversation."""
    instructions: Text | None = None
    """System text."""
    text: TextOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of the answer."""
    stream: bool | None = None
    """Send the answer as it comes, as server-sent events."""
    stream_options: Ignored = None
    previous_response_id: Annotated[Any, Only()] = None
    conversation: Annotated[Any, Only()] = None
    prompt: Annotated[Any, Only()] = None
    tools: Annotated[Any, Only([])] = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    max_tool_calls: Ignored = None
    include: Annotated[Any, Only([])] = None
    reasoning: Annotated[Any, Only({})] = None
    background: Annotated[Any, Only(False)] = None
    truncation: Annotated[Any, Only("disabled")] = None
    top_logprobs: Annotated[Any, Only(0)] = None


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The answer; sent back as input, it says under which values it was given."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    attributes: dict[str, int | None]


class InputDetails(BaseModel):
    """How many tokens of the input were not computed again."""

    cached_tokens: int


class OutputDetails(BaseModel):
    """No tokens are spent on hidden reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseText(BaseModel):
    """How the text was asked to be."""

    format: dict[str, str] = {"type": "text"}
    verbosity: Verbosity | None = None


class ResponseObject(BaseModel):
    """A response: what was asked, and the answer as far as it has come."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[OutputMessage]
    usage: ResponseUsage | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float
    top_p: float
    text: ResponseText
    steering: SteeringReport
    error: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    tool_choice: str = "none"
    tools: list[Any] = []
    truncation: str = "disabled"


class ResponseEvent(BaseModel):
    """An event of a stream; which fields it has follows from its type."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    item: OutputMessage | None = None
    part: OutputText | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[Any] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
