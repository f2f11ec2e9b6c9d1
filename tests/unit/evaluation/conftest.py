from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.models.load import SteerModel, load_model
from tiny_judge import save_tiny_judge


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(directory: Path) -> SteerModel:
    return load_model(directory, "attribute-model")
