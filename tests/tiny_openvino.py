"""Tiny policies that OpenVINO reads, and what its 8-bit form makes of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from steerlm.attributes import STEERLM
from steerlm.engines.openvino_network import computes_bfloat16
from steerlm.models.load import SteerModel, new_model
from tiny import TOKENIZERS, save_base

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
IN_BFLOAT16 = pytest.mark.skipif(not computes_bfloat16(), reason="needs a CPU on which OpenVINO computes in bfloat16")
Q8 = gguf.GGMLQuantizationType.Q8_0


def saved(folder: Path, name: str, **changes: Any) -> SteerModel:
    save_base(folder / "base", TOKENIZERS["chatml"](), name, **{**SHAPE, **changes})
    return new_model("policy", folder / "base", STEERLM).save(folder / "policy")


def round_weights(model: SteerModel) -> None:
    """As the 8-bit form does."""
    with torch.no_grad():
        for weight in model.network.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), Q8), Q8)))
