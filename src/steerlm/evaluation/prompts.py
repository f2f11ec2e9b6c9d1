"""Prompts to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.evaluation.asks import Ways
from steerlm.files import read_records
from steerlm.sources import import_conversations
from steerlm.sources.detect import detect_kind


@dataclass(frozen=True)
class PromptSource:
    """Where prompts are from, in words for a reader, and whether it is known that the policy learnt from none of
    them.
    """

    name: str
    held_out: bool = False


BUNDLED = PromptSource("those that come with steerlm")
"""Held out from the sample that comes with it, but perhaps not from what a policy learnt from."""


def first_prompts(conversations: Sequence[Conversation]) -> list[str]:
    """The opening prompts of conversations, each once."""
    opening = [c.messages[root] for c in conversations for root in c.roots]
    return list(dict.fromkeys(message.text for message in opening if message.role == "user"))


def read_prompts(path: Path) -> list[str | Ways]:
    """The prompts of a file, each once: its "prompt" strings where there are no responses to them, with its
    "paraphrases" after it where it has any, else the opening prompts of its conversations.

    Raises `DataError` for what is no text.
    """
    first = next(read_records(path), None)
    if first is None or not ("prompt" in first[1] and not {"response", "responses"} & set(first[1])):
        return list(first_prompts(import_conversations(detect_kind(path), path).conversations))
    found: dict[str, str | Ways] = {}
    for line, record in read_records(path):
        prompt, others = record.get("prompt"), record.get("paraphrases") or []
        if not _is_text(prompt):
            raise DataError(f"{path}: line {line}: prompt must be a string with text in it")
        if not isinstance(others, list) or not all(map(_is_text, others)):
            raise DataError(f"{path}: line {line}: paraphrases must be a list of strings with text in them")
        found.setdefault(prompt, (prompt, *others) if others else prompt)
    return list(found.values())


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())
