"""`python -m benchmarks.random_base OUT`: a Llama of any size with random weights, to measure speed and memory with.

What a training step costs does not depend on what the weights are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command import run_benchmark
from steerlm.devices import pick_device
from steerlm.errors import ConfigError
from steerlm.models.base import load_tokenizer, quiet, resolve
from steerlm.settings import Settings


class Shape(Settings):
    """Sizes of the network; as they are, those of TinyLlama-1.1B."""

    tokenizer: str = "smollm2"
    """Base model whose tokenizer it takes: a Hugging Face id, a path, or smollm2."""
    hidden: Annotated[int, Field(ge=1)] = 2048
    """Hidden size."""
    feed_forward: Annotated[int, Field(ge=1)] = 5632
    """Feed-forward units."""
    layers: Annotated[int, Field(ge=1)] = 22
    """Decoder blocks."""
    heads: Annotated[int, Field(ge=1)] = 32
    """Attention heads."""
    key_value_heads: Annotated[int, Field(ge=1)] = 4
    """Key-value heads."""
    context: Annotated[int, Field(ge=1)] = 4096
    """Longest text in tokens."""
    seed: int = 0
    """Seed of the weights."""


def main(out: Path, /, *, shape: Annotated[Shape | None, Parameter(name="*")] = None) -> None:
    """Write a Hugging Face model directory to OUT, which must not exist."""
    shape = shape or Shape()
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or choose another place")
    tokenizer = load_tokenizer(resolve(shape.tokenizer))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(shape.seed)
    with torch.device(pick_device("auto")):
        network = LlamaForCausalLM(config).bfloat16()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside, quiet():
        network.save_pretrained(Path(aside) / out.name)
        tokenizer.save_pretrained(Path(aside) / out.name)
        (Path(aside) / out.name).rename(out)
    print(f"{network.num_parameters():,} parameters: {out}")


if __name__ == "__main__":
    run_benchmark("random_base", main)
