"""Tiny trainings to compare with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_runs import Steps, logged, prepare, train


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Train on the same data and base; returns the logged steps (without times) and the weights."""
    prepare(tmp_path)

    def train_it(task: str, name: str, **changes: Any) -> tuple[Steps, dict[str, torch.Tensor]]:
        weights = train(tmp_path, task, name, **changes)
        return logged(tmp_path / name), weights

    train_it.folder = tmp_path  # type: ignore[attr-defined]
    return train_it
