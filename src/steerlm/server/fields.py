"""The fields that requests share, and how strictly they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function


class ApiModel(BaseModel):
    """A part of a request: unknown fields are refused, and no value is converted in silence."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _valid_text(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no tokenizer can read."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("the text contains an unpaired surrogate, which is not valid Unicode")
    return text


Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which only the first fault is looked for: a long one may have as many as it has items."""
Text = Annotated[str, AfterValidator(_valid_text)]
Level = int | None
Levels = dict[str, Level]
"""Attributes and their values; null leaves one unset."""


class Only:
    """Marks a field that other servers know and this one does not: only null and values that ask for nothing pass."""

    def __init__(self, *allowed: JsonValue) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"description": "Offered by other servers, not by this one.", "enum": [None, *self._allowed]}

    def _check(self, value: JsonValue) -> JsonValue:
        if value is not None and value not in self._allowed:
            shown = " or ".join(map(repr, self._allowed))
            raise ValueError("this server cannot do that; leave it out" + (f" or set it to {shown}" if shown else ""))
        return value


Ignored = Annotated[
    str | bool | int | float | dict[str, str | bool | int | float | None] | None,
    Field(description="Accepted, since clients send it, and ignored."),
]


class TextPart(ApiModel):
    """A part of a message; all are text."""

    type: Literal["text", "input_text", "output_text"]
    text: Text
    annotations: Annotated[Any, Only([])] = None
    logprobs: Annotated[Any, Only([])] = None


def text_or_parts(value: object) -> str:
    """The tag of a value that is text, or a list."""
    return "<parts>" if isinstance(value, list) else "<text>"


# Names in angle brackets tell alternatives apart, and are left out of the names of fields in errors.
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Items[TextPart], Tag("<parts>")],
    Discriminator(text_or_parts),
]
"""The text of a message, whole or in parts, which are joined by newlines."""


Texts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[Items[Text], Tag("<parts>")],
    Discriminator(text_or_parts),
]


def joined(content: str | list[TextPart] | None) -> str:
    """The text of a message."""
    if isinstance(content, list):
        return "\n".join(part.text for part in content)
    return content or ""


class IgnoredFields(ApiModel):
    """What public clients are known to send and no answer depends on."""

    user: Ignored = None
    store: Ignored = None
    metadata: Ignored = None
    service_tier: Ignored = None
    parallel_tool_calls: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None


class SamplingFields(ApiModel):
    """How tokens are chosen."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """0 (or less than 1e-6) always takes the likeliest token; 1 where absent, as in OpenAI's API."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Sample from the likeliest tokens that have this probability together; 0 takes the likeliest."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Sample from this many likeliest tokens; 0 or -1 means all."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Above 1 makes tokens that the answer used already less likely."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Same seed, same text; drawn anew for every request where absent."""


class CacheFields(ApiModel):
    """What an answer may go on from."""

    cache_salt: Annotated[Text, Field(max_length=256)] | None = None
    """Go on only from what was computed for requests with the same salt, as in vLLM: others cannot tell from times and
    counts what was sent."""


class GenerationFields(SamplingFields, CacheFields):
    """How answers are generated, for those parts of the API that take several."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of an answer."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Fewest tokens before the answer may end."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Answers to each prompt; the k-th draws with seed + k."""
    stop: Texts | None = None
    """Text before which to stop; it never shows."""


class TemplateArguments(ApiModel):
    """What a chat template may be given: the attributes, and nothing that changes how messages are rendered."""

    attributes: Levels | None = None


class SteeringFields(ApiModel):
    """How the answer is to be."""

    model: Text | None = None
    """The model, or MODEL:PRESET; the only model where absent."""
    attributes: Levels | None = None
    """Values of attributes; those left out are at the preset's or the server's defaults, null leaves one unset."""
    chat_template_kwargs: TemplateArguments | None = None
    """The same values as clients of vLLM send them."""
    guidance: float | None = None
    """Push the answer away from that of the default setting by this factor; above 1 steers more strongly."""
    measure: bool | None = None
    """Report what the attribute model measures in the answers."""


class VerifiedFields(SteeringFields):
    """As above, for those parts of the API that can choose among answers."""

    verified: Annotated[int, Field(ge=1)] | None = None
    """Draw so many answers, measure them, and return the one that is nearest to what was asked."""


class StreamOptions(ApiModel):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    """End with a chunk that counts the tokens."""
    include_obfuscation: Ignored = None
