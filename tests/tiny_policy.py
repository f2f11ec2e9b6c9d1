"""Tiny trainings of both models, in a module of its own so that a process started elsewhere can import it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from steerlm.cli.main import run
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.run import train_attribute_model, train_policy

SHARED: dict[str, Any] = {
    "context": 128,
    "pack_tokens": 256,
    "batch_tokens": 150,
    "epochs": 3,
    "precision": "fp32",
    "validate_every": 7,
    "checkpoint_every": 2,
}


def policy_settings(folder: Path, out: str) -> PolicySettings:
    return PolicySettings(**SHARED, **_places(folder, out), labels="ratings-first", contrast=0.5)


def attribute_settings(folder: Path, out: str) -> AttributeSettings:
    return AttributeSettings(**SHARED, **_places(folder, out), learning_rate=3e-3)


def _places(folder: Path, out: str) -> dict[str, Any]:
    return {"data": [folder / "data.jsonl"], "base": str(folder / "base"), "out": folder / out}


def train_process(folder: Path, out: str, task: str) -> None:
    torch.set_num_threads(1)
    if task == "policy":
        train_policy(policy_settings(folder, out))
    else:
        train_attribute_model(attribute_settings(folder, out))


def train_command(folder: Path, out: str) -> None:
    """The same as a command, whose stderr goes to a file."""
    torch.set_num_threads(1)
    recipe = folder / f"{out}.yaml"
    recipe.write_text(yaml.safe_dump(policy_settings(folder, out).model_dump(mode="json", exclude_unset=True)))
    with (folder / f"{out}.stderr").open("w", encoding="utf-8") as sys.stderr:
        code = run(["train", "policy", str(recipe)])
    sys.exit(code)
