"""From what a user asks for to what the policy is prompted with, and how near an answer comes to it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steerlm.attributes import Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.errors import SchemaError

if TYPE_CHECKING:
    from steerlm.models.prompting import Prompting


@dataclass(frozen=True, slots=True)
class Turn:
    """One past exchange: what was asked, what was answered, and the attribute values it was answered with."""

    prompt: str
    answer: str
    values: Mapping[str, int]


def attribute_of(schema: Schema, name: str) -> Attribute:
    """An attribute of a policy's schema. Raises `SchemaError` for one that it was not trained on."""
    if name not in schema:
        raise SchemaError(f"unknown attribute {name!r}; this model was trained on labels of {', '.join(schema.names)}")
    return schema[name]


def asked_values(schema: Schema, asked: Mapping[str, int | None]) -> dict[str, int]:
    """The defaults of a policy's schema with `asked` on top; None leaves an attribute unset.

    Raises `SchemaError` for an unknown attribute or a value that is no level of its scale.
    """
    for name, value in asked.items():
        attribute = attribute_of(schema, name)
        if value is not None and (isinstance(value, bool) or value not in attribute.levels):
            raise SchemaError(f"{name}={value} is not one of the levels {attribute.low} to {attribute.high} of {name}")
    merged: dict[str, int | None] = {**schema.defaults, **asked}
    return {name: value for name, value in merged.items() if value is not None}


def parse_assignments(schema: Schema, assignments: Iterable[str]) -> dict[str, int | None]:
    """`["verbosity=1", "humor=none"]` as values; `none` leaves an attribute unset."""
    found: dict[str, int | None] = {}
    for text in assignments:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise SchemaError(f"{text!r} is not of the form attribute=value, such as {schema.names[-1]}=1")
        attribute = attribute_of(schema, name)
        if value.lower() == "none":
            found[name] = None
        elif re.fullmatch(r"-?[0-9]+", value):
            found[name] = int(value)
        else:
            raise SchemaError(
                f"{name}={value}: the value must be a whole number from {attribute.low} to {attribute.high}, or none"
            )
    asked_values(schema, found)
    return found


def prompt_ids(
    model: Prompting, prompt: str, values: Mapping[str, int], history: Sequence[Turn] = (), system: str | None = None
) -> list[int]:
    """Token ids after which the policy answers `prompt`. The labels of past turns stay as they were asked then."""
    messages: list[Message] = []
    labels: dict[int, Mapping[str, int]] = {}
    for turn in history:
        messages.append(Message("user", turn.prompt, len(messages) - 1 if messages else None))
        messages.append(Message("assistant", turn.answer, len(messages) - 1))
        labels[len(messages) - 1] = turn.values
    messages.append(Message("user", prompt, len(messages) - 1 if messages else None))
    conversation = Conversation("prompt", tuple(messages), model.info.system if system is None else system)
    return model.renderer.prompt(conversation, labels, values)


def require_same_scales(policy: Schema, judge: Schema) -> None:
    """What is measured is compared with what was asked, so it has to be on the same scale; raises `SchemaError`."""
    for own in policy:
        if own.name not in judge:
            continue
        item = judge[own.name]
        if (item.low, item.high) != (own.low, own.high):
            raise SchemaError(
                f"the attribute model scores {item.name} on {item.low}..{item.high}, the policy is asked for it on "
                f"{own.low}..{own.high}; use one that was trained on the policy's scale"
            )


def distance(schema: Schema, asked: Mapping[str, int], measured: Mapping[str, float] | None) -> float:
    """How far an answer is from what was asked: the mean of |measured - asked| over the attributes that were
    measured, as a share of their scales; infinite where none was.
    """
    gaps = [
        abs(measured[name] - value) / (schema[name].high - schema[name].low)
        for name, value in asked.items()
        if measured is not None and name in measured
    ]
    return sum(gaps) / len(gaps) if gaps else math.inf


def nearest(schema: Schema, asked: Mapping[str, int], measured: Sequence[Mapping[str, float] | None]) -> int:
    """Which of several answers is nearest to what was asked; the first of equally near ones."""
    return min(range(len(measured)), key=lambda number: distance(schema, asked, measured[number]))
