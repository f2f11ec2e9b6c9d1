"""Conversation files in our own form, to filter, to join or to split them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from steerlm.attributes import Schema
from steerlm.conversation import Conversation, Message, record_faults
from steerlm.sources.options import ImportOptions
from steerlm.sources.records import read_sources
from steerlm.sources.report import Report


def read_own(
    sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
) -> Iterator[Conversation]:
    """The conversations of JSONL or Parquet files. An id that was there before is a fault."""
    wanted = options.attributes_of(schema, schema.names)
    seen: dict[str, str] = {}
    for record in read_sources(sources, report):
        conversation = None
        with report.tolerating("records"):
            name = record.data.get("id")
            faults = list(record_faults(dict(record.data), schema))
            if isinstance(name, str) and name in seen:
                faults.append(f"the id was already used at {seen[name]}; ids must be unique")
            if faults:
                about = f"conversation {name!r}: " if name else ""
                raise record.fault(f"{about}{'; '.join(faults)}")
            conversation = Conversation.from_dict(record.data, schema)
            seen[conversation.id] = record.where
        if conversation is not None:
            yield _taken(conversation, wanted, options.system, report)


def _taken(conversation: Conversation, wanted: tuple[str, ...], system: str | None, report: Report) -> Conversation:
    messages: list[Message] = []
    for message in conversation.messages:
        ratings = {name: value for name, value in message.ratings.items() if name in wanted}
        report.read["messages"] += 1
        report.read["ratings"] += len(message.ratings)
        report.leave_out("ratings", "of attributes not taken", len(message.ratings) - len(ratings))
        messages.append(replace(message, ratings=ratings))
    return replace(conversation, messages=tuple(messages), system=conversation.system if system is None else system)
