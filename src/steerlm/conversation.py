"""A conversation as a tree of messages, and its JSON form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from steerlm.attributes import STEERLM, Schema
from steerlm.errors import DataError

Role = Literal["user", "assistant"]
LabelsFrom = Literal["ratings", "predicted", "ratings-first"]
"""Whose values label a response: people's, the attribute model's, or people's with the model's for the rest."""
_MESSAGE_KEYS = {"role", "text", "parent", "ratings", "predicted", "predicted_by"}
_CONVERSATION_KEYS = {"id", "system", "source", "messages"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `parent` is the index of the message it answers, None for one that opens the conversation.

    `ratings` come from people and are never overwritten; `predicted` come from the attribute model whose
    fingerprint is `predicted_by`. Both map attribute names to floats on the attribute's own scale; an
    attribute that is absent is unrated.
    """

    role: Role
    text: str
    parent: int | None = None
    ratings: Mapping[str, float] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    predicted_by: str | None = None

    def labels(self, source: LabelsFrom) -> dict[str, float]:
        if source == "ratings-first":
            return {**self.predicted, **self.ratings}
        return dict(self.ratings if source == "ratings" else self.predicted)

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {"role": self.role, "text": self.text, "parent": self.parent}
        if self.ratings:
            record["ratings"] = dict(self.ratings)
        if self.predicted:
            record["predicted"] = dict(self.predicted)
        if self.predicted_by is not None:
            record["predicted_by"] = self.predicted_by
        return record


@dataclass(frozen=True)
class Conversation:
    """A tree (or a forest under one system text) of messages; parents always come before their children."""

    id: str
    messages: tuple[Message, ...]
    system: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if faults := list(_structure_faults(self.messages)):
            raise DataError(f"conversation {self.id}: " + "; ".join(faults))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """For each message the indices of its direct answers, in file order."""
        found: list[list[int]] = [[] for _ in self.messages]
        for index, message in enumerate(self.messages):
            if message.parent is not None:
                found[message.parent].append(index)
        return tuple(tuple(items) for items in found)

    @cached_property
    def threads_through(self) -> tuple[int, ...]:
        """For each message the number of root-to-leaf threads that contain it."""
        counts = [0 if self.children[index] else 1 for index in range(len(self.messages))]
        for index in range(len(self.messages) - 1, -1, -1):
            parent = self.messages[index].parent
            if parent is not None:
                counts[parent] += counts[index]
        return tuple(counts)

    @property
    def roots(self) -> tuple[int, ...]:
        return tuple(index for index, message in enumerate(self.messages) if message.parent is None)

    @property
    def responses(self) -> tuple[int, ...]:
        """Indices of the assistant messages."""
        return tuple(index for index, message in enumerate(self.messages) if message.role == "assistant")

    def path(self, index: int) -> tuple[int, ...]:
        """Indices from the root to message `index`, both included."""
        found = [index]
        while (parent := self.messages[found[-1]].parent) is not None:
            found.append(parent)
        return tuple(reversed(found))

    def threads(self) -> Iterator[tuple[int, ...]]:
        """Every root-to-leaf path, depth first: what other trainers flatten a tree into."""
        for index in range(len(self.messages)):
            if not self.children[index]:
                yield self.path(index)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "system": self.system,
            "source": self.source,
            "messages": [message.to_dict() for message in self.messages],
        }

    @classmethod
    def from_dict(cls, record: object, schema: Schema = STEERLM) -> Conversation:
        """Build a conversation from its JSON form. Raises `DataError` that lists every fault found."""
        faults = list(record_faults(record, schema))
        if faults:
            name = record.get("id") if isinstance(record, dict) else None
            raise DataError(f"conversation {name!r}: " + "; ".join(faults))
        assert isinstance(record, dict)
        return cls(
            id=record["id"],
            system=record.get("system") or "",
            source=record.get("source") or "",
            messages=tuple(
                Message(
                    role=item["role"],
                    text=item["text"],
                    parent=item.get("parent"),
                    ratings=_floats(item.get("ratings")),
                    predicted=_floats(item.get("predicted")),
                    predicted_by=item.get("predicted_by"),
                )
                for item in record["messages"]
            ),
        )


def _floats(values: Mapping[str, float] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (values or {}).items()}


def _structure_faults(messages: tuple[Message, ...]) -> Iterator[str]:
    if not messages:
        yield "it has no messages"
    for index, message in enumerate(messages):
        yield from _parent_faults(index, message.parent)


def _parent_faults(index: int, parent: object) -> Iterator[str]:
    if parent is None:
        return
    if isinstance(parent, bool) or not isinstance(parent, int):
        yield f"message {index}: parent={parent!r} must be the index of an earlier message, or null"
    elif not 0 <= parent < index:
        yield f"message {index}: parent={parent} must come before it (parents first, no cycles)"


def record_faults(record: object, schema: Schema) -> Iterator[str]:
    """Everything wrong with the JSON form of a conversation, each with the message it is in."""
    if not isinstance(record, dict):
        yield f"expected a JSON object, found {type(record).__name__}"
        return
    if "messages" not in record:
        yield "it has no messages, so it is no conversation; `steerlm data import` makes conversations of other formats"
        return
    if extra := sorted(set(record) - _CONVERSATION_KEYS):
        yield f"unknown key {extra[0]!r}; a conversation has {', '.join(sorted(_CONVERSATION_KEYS))}"
    if not isinstance(record.get("id"), str) or not record["id"]:
        yield "id must be a non-empty string"
    elif fault := _text_fault(record["id"]):
        yield f"id {fault}"
    for key in ("system", "source"):
        if not isinstance(record.get(key, ""), str | None):
            yield f"{key} must be a string"
        elif fault := _text_fault(record.get(key) or ""):
            yield f"{key} {fault}"
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages must be a non-empty list"
        return
    for index, message in enumerate(messages):
        yield from (f"message {index}: {fault}" for fault in _message_faults(message, schema))
        if isinstance(message, dict):
            yield from _parent_faults(index, message.get("parent"))


def _message_faults(message: object, schema: Schema) -> Iterator[str]:
    if not isinstance(message, dict):
        yield f"expected a JSON object, found {type(message).__name__}"
        return
    if extra := sorted(set(message) - _MESSAGE_KEYS):
        yield f"unknown key {extra[0]!r}; a message has {', '.join(sorted(_MESSAGE_KEYS))}"
    if message.get("role") not in ("user", "assistant"):
        yield f"role={message.get('role')!r} must be user or assistant"
    if not isinstance(message.get("text"), str):
        yield "text must be a string"
    elif fault := _text_fault(message["text"]):
        yield f"text {fault}"
    if not isinstance(message.get("predicted_by"), str | None):
        yield "predicted_by must be a string"
    elif fault := _text_fault(message.get("predicted_by") or ""):
        yield f"predicted_by {fault}"
    for key in ("ratings", "predicted"):
        values = message.get(key)
        if values is None:
            continue
        if not isinstance(values, dict):
            yield f"{key} must map attribute names to numbers"
        else:
            hint = (
                "; fix the value, or declare the attribute in a schema file (--schema; in training --attribute-schema)"
            )
            yield from (f"{key[:-1] if key == 'ratings' else key}: {fault}{hint}" for fault in schema.faults(values))


def _text_fault(text: str) -> str | None:
    """JSON can spell half of a surrogate pair, which no UTF-8 file or tokenizer can hold."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        return "contains an unpaired surrogate, which is not valid Unicode"
    return None
