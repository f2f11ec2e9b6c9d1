"""Holding conversations out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from steerlm.conversation import Conversation
from steerlm.errors import ConfigError


def split_conversations(
    conversations: Iterable[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Split into (kept, held out). A conversation's side depends on its id and the seed alone, so that adding data
    or changing its order never moves a conversation from one side to the other. Raises `ConfigError` for a fraction
    outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the fraction to hold out, {fraction}, must be at least 0 and below 1")
    kept: list[Conversation] = []
    held_out: list[Conversation] = []
    for conversation in conversations:
        (held_out if is_held_out(conversation.id, fraction, seed) else kept).append(conversation)
    return kept, held_out


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """The side of the conversation with id `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64
