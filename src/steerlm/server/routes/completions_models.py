"""The forms of /v1/completions: what it takes, and what it gives, whole or as pieces of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from steerlm.engines.base import Finish
from steerlm.server.envelope import Usage
from steerlm.server.fields import GenerationFields, IgnoredFields, Items, Only, SteeringFields, StreamOptions, Text
from steerlm.server.logprobs import CompletionLogprobs
from steerlm.server.steering import SteeringReport


def _kind(value: object) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else 0
    return "<token lists>" if isinstance(first, list) else "<texts>" if isinstance(first, str) else "<tokens>"


TokenIds = Annotated[Items[Annotated[int, Field(ge=0)]], Field(min_length=1)]
PromptField = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[Items[Text], Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[Items[TokenIds], Tag("<token lists>")],
    Discriminator(_kind),
]


class CompletionRequest(SteeringFields, GenerationFields, IgnoredFields):
    """Prompts to continue or to answer."""

    prompt: PromptField
    """A text, several, token ids, or several lists of them."""
    raw: bool | None = None
    """Continue texts as they are (true), or answer them as user messages (false). Without it they are answered where
    the request steers or the operator restricts anything, else continued. Token ids are always continued."""
    logprobs: Annotated[int, Field(ge=0)] | None = None
    """Give the log-probability of each token, and of so many of the likeliest at its place."""
    stream: bool | None = None
    """Send the texts as they come, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What the stream holds beside the texts."""
    return_token_ids: bool | None = None
    """Give the ids of the tokens too, the end signal among them, as vLLM does."""
    return_tokens_as_token_ids: bool | None = None
    """Write the tokens of logprobs as token_id:123, as vLLM does."""
    stop_token_ids: Items[int] | None = None
    """Tokens that end a text; only those that end an answer anyway."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Most tokens of a text; 0, of which there is only an echo, needs `echo`."""
    echo: bool | None = None
    """Begin each text with its prompt, and its log-probabilities with those of the prompt's tokens; of prompts that are
    continued as they are."""
    best_of: Annotated[Any, Only(1)] = None
    suffix: Annotated[Any, Only("")] = None
    frequency_penalty: Annotated[Any, Only(0)] = None
    presence_penalty: Annotated[Any, Only(0)] = None
    min_p: Annotated[Any, Only(0)] = None
    logit_bias: Annotated[Any, Only({})] = None

    @property
    def is_one(self) -> bool:
        """Whether there is one prompt, not several."""
        return _kind(self.prompt) in ("<text>", "<tokens>")

    @property
    def is_text(self) -> bool:
        """Whether prompts are texts, not token ids."""
        return _kind(self.prompt) in ("<text>", "<texts>")


class CompletionChoice(BaseModel):
    """One text; in a stream, what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None
    token_ids: list[int] | None = None


class TextCompletion(BaseModel):
    """The texts; `steering` is null where they continue raw prompts. Streams consist of the same objects."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None
    steering: SteeringReport | None = None
