"""Held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.files import read_records
from steerlm.sources import import_conversations
from steerlm.sources.detect import detect_kind


def first_prompts(conversations: Sequence[Conversation]) -> list[str]:
    """The opening prompts of conversations, each once."""
    opening = [c.messages[root] for c in conversations for root in c.roots]
    return list(dict.fromkeys(message.text for message in opening if message.role == "user"))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its "prompt" strings where there are no responses to them, else the opening prompts of
    its conversations.
    """
    first = next(read_records(path), None)
    if first is None or not ("prompt" in first[1] and not {"response", "responses"} & set(first[1])):
        return first_prompts(import_conversations(detect_kind(path), path).conversations)
    found = []
    for line, record in read_records(path):
        if not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
            raise DataError(f"{path}: line {line}: prompt must be a string with text in it")
        found.append(record["prompt"])
    return list(dict.fromkeys(found))
