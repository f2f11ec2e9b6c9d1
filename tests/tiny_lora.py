"""Tiny trainings of adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steerlm.files import write_conversations
from steerlm.models.adapters import Lora, add_lora
from steerlm.models.base import identify, lasting_name, quiet, resolve
from steerlm.models.load import SteerModel
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.run import train_attribute_model, train_policy
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees

KINDS = ("policy", "attribute-model")


def save_lora_base(folder: Path, **changes: Any) -> Path:
    """A Llama of three layers whose tokenizer knows no dialect, so that markers are added, and data to train on."""
    with quiet():
        save_base(folder / "base", TOKENIZERS["gpt2"](), **{"num_hidden_layers": 3, **changes})
    write_conversations(folder / "data.jsonl", random_trees(40, seed=5))
    return folder / "base"


def with_lora(model: SteerModel, base: str | Path, lora: Lora, frozen_layers: str | None = None) -> SteerModel:
    """Put an adapter into a new model made from `base`."""
    add_lora(model.network, lora, resolve(lasting_name(base)), model.new_tokens, frozen_layers)
    return replace(model, info=replace(model.info, base=identify(base)))


def train_lora(folder: Path, kind: str, out: str, fresh: bool = False, **changes: Any) -> SteerModel:
    """Train an adapter of rank 4 on what `save_lora_base` made."""
    shared: dict[str, Any] = {
        "data": [folder / "data.jsonl"],
        "base": str(folder / "base"),
        "out": folder / out,
        "context": 128,
        "pack_tokens": 256,
        "batch_tokens": 150,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "precision": "fp32",
        "validation_fraction": 0.3,
        "validate_every": 4,
        "checkpoint_every": 3,
        "lora_rank": 4,
        "lora_alpha": 8.0,
    }
    if kind == "policy":
        return train_policy(PolicySettings(**{**shared, "labels": "ratings-first", "contrast": 0.5, **changes}), fresh)
    return train_attribute_model(AttributeSettings(**{**shared, **changes}), fresh)


@torch.no_grad()
def logits(network: nn.Module, new_tokens: int = 3) -> torch.Tensor:
    """What a network says of a text with old and new tokens."""
    ids = [5, 80, 200, *range(450, 450 + new_tokens), 17]
    found: torch.Tensor = network(input_ids=torch.tensor([ids])).logits
    return found


def without_adapter(name: str) -> str:
    """The name that a parameter has in a plain network."""
    for part in (".base_layer", ".token_adapter", ".original_module"):
        name = name.replace(part, "")
    return name
