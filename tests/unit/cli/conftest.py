"""`steerlm train policy` on a tiny base: as a command, and as the settings that this command has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steerlm.cli.main import run
from steerlm.files import write_conversations
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model and the data."""
    made = tmp_path_factory.mktemp("train")
    save_base(made / "base", TOKENIZERS["chatml"]())
    write_conversations(made / "data.jsonl", random_trees(40, seed=5))
    return made


@pytest.fixture
def training_values(training_folder: Path) -> Callable[..., dict[str, Any]]:
    """What settings of either task are made of: `training_values(out=..., **changes)`."""
    places = {"data": [training_folder / "data.jsonl"], "base": str(training_folder / "base")}
    size = {"context": 96, "pack_tokens": 192, "batch_tokens": 300, "epochs": 1.0}

    def make(**changes: Any) -> dict[str, Any]:
        return {**places, **size, "precision": "fp32", **changes}

    return make


@pytest.fixture
def train_command(training_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `steerlm train policy` with the flags given; returns exit code, stdout, stderr in one line each."""
    shared = ["--data", str(training_folder / "data.jsonl"), "--base", str(training_folder / "base")]
    size = ["--context", "96", "--pack-tokens", "192", "--batch-tokens", "300", "--epochs", "1"]
    rest = ["--precision", "fp32", "--labels", "ratings-first", "--checkpoint-every", "2"]

    def train(*flags: str) -> tuple[int, str, str]:
        code = run(["train", "policy", *shared, *size, *rest, "--out", str(tmp_path / "out"), *flags])
        told = capsys.readouterr()
        return code, told.out, " ".join(told.err.split())

    return train
