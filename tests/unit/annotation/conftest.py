"""A tiny attribute model, on disk and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.models.load import SteerModel, load_model
from tiny_judge import save_tiny_judge


@pytest.fixture(scope="session")
def judge_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(judge_directory: Path) -> SteerModel:
    return load_model(judge_directory, "attribute-model")
