"""From the messages of a request to a conversation with the labels of its past answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from steerlm.conversation import Conversation, Message
from steerlm.server.errors import ApiError
from steerlm.server.fields import ApiModel, Content, Ignored, Levels, Only, joined
from steerlm.server.policy import Values
from steerlm.server.rules import Asked, forbidden, labels_of
from steerlm.server.state import ServerState


class ChatMessage(ApiModel):
    """A message. Past answers may say under which values they were given; an empty last one says it of the answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    name: Ignored = None
    attributes: Levels | None = None
    """Of an assistant message: the values under which it was answered."""
    labels: Levels | None = None
    """The same, as NVIDIA's API spells it; on the operator's scale of labels, where there is one."""
    refusal: Annotated[Any, Only()] = None
    tool_calls: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None
    annotations: Annotated[Any, Only([])] = None
    parsed: Annotated[Any, Only()] = None
    """What OpenAI's client adds to a message of a stream, when it is sent back."""

    @property
    def is_labelled(self) -> bool:
        """Whether it says anything of values."""
        return self.attributes is not None or self.labels is not None


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with a prompt; `labels` are those of its past answers by message number."""

    conversation: Conversation
    labels: dict[int, dict[str, int]]


@dataclass(frozen=True)
class Read:
    """A checked conversation as a request brings it.

    `past` says of each past answer what the request says of its values, which may be nothing; `asked` is what an
    empty last assistant message asks of the answer.
    """

    conversation: Conversation
    past: dict[int, list[Asked]]
    asked: list[Asked]

    def under(self, state: ServerState, values: Values) -> Dialogue:
        """The conversation with its labels; as in the chat template, past answers without their own had `values`.

        Raises `ApiError` where past values are none of the model's or the operator's.
        """
        return Dialogue(
            self.conversation,
            {number: labels_of(state.rules.settle(asked) if asked else values) for number, asked in self.past.items()},
        )


def read_messages(
    state: ServerState, messages: Sequence[ChatMessage], field: str = "messages", instructions: str | None = None
) -> Read:
    """The conversation of a request; `instructions` are system text that came beside the messages.

    Raises `ApiError` for what cannot be answered.
    """
    characters = len(instructions or "") + sum(len(joined(message.content)) for message in messages)
    check_amount(state, len(messages), characters, field)
    lead = 0
    while lead < len(messages) and messages[lead].role in ("system", "developer"):
        lead += 1
    system = _system(state, messages[:lead], field, instructions)
    rest = list(enumerate(messages))[lead:]
    asked: list[Asked] = []
    if rest and rest[-1][1].role == "assistant" and not joined(rest[-1][1].content):
        number, last = rest.pop()
        asked = _asked(state, last, f"{field}.{number}")
        if not asked:
            place = f"{field}.{number}"
            raise ApiError(f"{place}: an empty assistant message at the end needs labels; leave it out", param=place)
    if not rest or rest[-1][1].role != "user":
        ends = rest[-1][1].role if rest else None
        why = "an assistant message cannot be continued" if ends == "assistant" else "there is none at its end"
        raise ApiError(f"{field}: the conversation must end with a user message; {why}", param=field)
    found: list[Message] = []
    past: dict[int, list[Asked]] = {}
    for number, message in rest:
        _check_place(message, f"{field}.{number}")
        if message.role == "assistant":
            past[len(found)] = _asked(state, message, f"{field}.{number}")
        parent = len(found) - 1 if found else None
        found.append(Message("user" if message.role == "user" else "assistant", joined(message.content), parent))
    return Read(Conversation("request", tuple(found), system), past, asked)


def _check_place(message: ChatMessage, place: str) -> None:
    """Raise `ApiError` where a message after the system text is not what may stand there."""
    if message.role in ("system", "developer"):
        raise ApiError(f"{place}.role: {message.role} messages belong at the beginning", param=f"{place}.role")
    if message.content is None:
        raise ApiError(f"{place}.content: a {message.role} message needs its text", param=f"{place}.content")
    if message.role == "user" and message.is_labelled:
        raise ApiError(f"{place}: attributes belong to assistant messages", param=place)


def single(state: ServerState, prompt: str) -> Dialogue:
    """A prompt by itself, under the server's system text."""
    return Dialogue(Conversation("request", (Message("user", prompt),), default_system(state)), {})


def default_system(state: ServerState) -> str:
    """The system text of conversations that bring none."""
    return state.policy.system.text if state.policy.system else state.prompting.info.system


def check_amount(state: ServerState, messages: int, characters: int, field: str) -> None:
    """Raise `ApiError` where a request holds more than it may."""
    for what, amount, most in (
        ("messages", messages, state.limits.messages),
        ("characters", characters, state.limits.characters),
    ):
        if amount > most:
            raise ApiError(f"{field}: {amount} {what} are more than the {most} of a request", param=field)


def _system(state: ServerState, messages: Sequence[ChatMessage], field: str, instructions: str | None) -> str:
    for number, message in enumerate(messages):
        if message.is_labelled:
            raise ApiError(f"{field}.{number}: attributes belong to assistant messages", param=f"{field}.{number}")
    texts = [*([instructions] if instructions else []), *(joined(message.content) for message in messages)]
    text = "\n\n".join(texts)
    if not texts:
        return default_system(state)
    rule = state.policy.system
    if rule and rule.fixed and text.strip() != rule.text.strip():
        raise forbidden("the system text is fixed; leave yours out", "system.fixed", field)
    return text


def _asked(state: ServerState, message: ChatMessage, place: str) -> list[Asked]:
    found = []
    if message.attributes is not None:
        found.append(Asked(f"{place}.attributes", message.attributes))
    if message.labels is not None:
        found.append(state.rules.labels(Asked(f"{place}.labels", message.labels)))
    return found
