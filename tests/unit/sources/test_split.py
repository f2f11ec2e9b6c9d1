"""Holding out is by conversation, by id, and stable."""

from __future__ import annotations

import random

import pytest

from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError
from steerlm.sources import split_conversations

MANY = [Conversation(f"c{number}", (Message("user", "x"),)) for number in range(2000)]


def held_out(conversations: list[Conversation], fraction: float = 0.1, seed: int = 0) -> set[str]:
    return {item.id for item in split_conversations(conversations, fraction, seed)[1]}


def test_every_conversation_lands_on_exactly_one_side_in_order() -> None:
    kept, out = split_conversations(MANY, 0.1, 0)
    assert sorted([*kept, *out], key=MANY.index) == MANY
    assert kept == sorted(kept, key=MANY.index)


def test_a_side_depends_on_id_and_seed_alone() -> None:
    whole = held_out(MANY)
    shuffled = random.Random(1).sample(MANY, len(MANY))
    assert held_out(shuffled) == whole
    assert held_out(MANY[:500]) == whole & {item.id for item in MANY[:500]}
    assert held_out(MANY, seed=1) != whole


def test_the_share_is_about_what_was_asked_for_and_grows_with_it() -> None:
    # 2000 draws at 0.1: mean 200, sd 13.4; six sd either way.
    assert 120 < len(held_out(MANY)) < 280
    assert held_out(MANY, 0.1) < held_out(MANY, 0.3)
    assert held_out(MANY, 0.0) == set()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="must be at least 0 and below 1"):
        split_conversations(MANY, fraction, 0)
