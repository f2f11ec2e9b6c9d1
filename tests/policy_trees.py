"""Small conversations as policy trees, and what their label lines say."""

from __future__ import annotations

from typing import Any

from steerlm.attention import use_tree_attention
from steerlm.conversation import Conversation, Message
from steerlm.models.load import SteerModel
from steerlm.tokens import Segment, TokenTree
from steerlm.training.config import PolicySettings
from steerlm.training.policy import (
    PolicyTask,
)
from steerlm.training.survey import Survey


def task(policy: SteerModel, conversations: list[Conversation], **settings: Any) -> PolicyTask:
    made = PolicyTask(policy, PolicySettings(**{"context": 512, "pack_tokens": 2048, **settings}))
    made.remember(Survey.of(conversations))
    use_tree_attention(policy.network, "segments")
    return made


def tree_of(*responses: Message, name: str = "c") -> Conversation:
    """One prompt with several answers."""
    return Conversation(name, (Message("user", "Why?"), *responses))


def answer(text: str, predicted: dict[str, float], ratings: dict[str, float] | None = None) -> Message:
    return Message("assistant", text, 0, ratings or {}, predicted)


def label_of(policy: SteerModel, segment: Segment) -> str | None:
    """The label line of a segment, read back from its tokens."""
    at = 0
    for role, length in segment.spans:
        if role == "label":
            return str(policy.renderer.tokenizer.decode(list(segment.ids[at : at + length]))).strip()
        at += length
    return None


def labels_in(policy: SteerModel, tree: TokenTree) -> list[tuple[int, str | None, bool]]:
    """Message, label line, and whether it is a foil, of every response."""
    return [(s.message, label_of(policy, s), s.foil_of >= 0) for s in tree.segments if s.is_response]
