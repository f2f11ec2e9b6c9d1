"""A tiny attribute model, on disk and loaded, and conversations for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.conversation import Conversation
from steerlm.files import write_conversations
from steerlm.models.load import SteerModel, load_model
from tiny_judge import random_trees, save_tiny_judge


@pytest.fixture(scope="session")
def judge_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(judge_directory: Path) -> SteerModel:
    return load_model(judge_directory, "attribute-model")


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
