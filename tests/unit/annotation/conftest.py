"""A tiny attribute model, on disk and loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_judge import save_tiny_judge

from steerlm.models.load import SteerModel, load_model


@pytest.fixture(scope="session")
def judge_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def judge(judge_directory: Path) -> SteerModel:
    return load_model(judge_directory, "attribute-model")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and wait for each other where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
