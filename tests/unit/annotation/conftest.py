"""Conversations to annotate."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.conversation import Conversation
from steerlm.files import write_conversations
from tiny_judge import random_trees


@pytest.fixture(scope="session")
def trees() -> list[Conversation]:
    return random_trees(40, seed=3)


@pytest.fixture
def data(tmp_path: Path, trees: list[Conversation]) -> Path:
    write_conversations(tmp_path / "in.jsonl", trees)
    return tmp_path / "in.jsonl"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"
