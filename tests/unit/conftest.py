"""A tiny attribute model for all who measure with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.models.load import SteerModel, load_model
from tiny_judge import save_tiny_judge


@pytest.fixture(scope="module")
def judge_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny attribute model on disk, of each module its own: commands write beside it."""
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(judge_directory: Path) -> SteerModel:
    return load_model(judge_directory, "attribute-model")
