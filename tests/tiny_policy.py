"""A tiny training of a policy, in a module of its own so that a process started elsewhere can import it."""

from __future__ import annotations

from pathlib import Path

import torch

from steerlm.training.config import PolicySettings
from steerlm.training.run import train_policy


def policy_settings(folder: Path, out: str) -> PolicySettings:
    return PolicySettings(
        data=[folder / "data.jsonl"],
        base=str(folder / "base"),
        out=folder / out,
        labels="ratings-first",
        context=128,
        pack_tokens=256,
        batch_tokens=150,
        epochs=3,
        contrast=0.5,
        precision="fp32",
        validate_every=7,
        checkpoint_every=2,
    )


def train_process(folder: Path, out: str) -> None:
    torch.set_num_threads(1)
    train_policy(policy_settings(folder, out))
