"""The network that a training would train, without its weights: its figures, and a copy on no device to count."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from steerlm.errors import ModelError
from steerlm.models.base import decoder_layers, loading, quiet, resolve
from steerlm.models.directory import Kind

# Public figures of models whose files are behind a licence, so that planning for them needs no download:
# layers, hidden, feed-forward, heads, key-value heads (arXiv 2307.09288 and the models' published configurations).
_LLAMA2 = {
    "meta-llama/Llama-2-7b-hf": (32, 4096, 11008, 32, 32),
    "meta-llama/Llama-2-13b-hf": (40, 5120, 13824, 40, 40),
    "meta-llama/Llama-2-70b-hf": (80, 8192, 28672, 64, 8),
}


@dataclass(frozen=True)
class Parameters:
    """How many there are. `blocks` decoder blocks have `block` each, of which `matrices` are in matrix products."""

    total: int
    trainable: int
    embeddings: int
    head: int
    block: int
    matrices: int
    blocks: int

    @property
    def outside(self) -> int:
        """Those of no decoder block: embeddings, head (where it has weights of its own), last norm."""
        return self.total - self.blocks * self.block


def find_config(base: str | Path) -> PretrainedConfig:
    """The architecture of a base model: built in, of a directory, or from the Hugging Face hub.

    Raises `ModelError` where it cannot be found, or the model is no decoder.
    """
    if str(base) in _LLAMA2:
        layers, hidden, forward, heads, groups = _LLAMA2[str(base)]
        return LlamaConfig(
            vocab_size=32000,
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=forward,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
    with loading(base):
        config: PretrainedConfig = AutoConfig.from_pretrained(resolve(base))
    return config


def build(
    config: PretrainedConfig, kind: Kind, attributes: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A network of this architecture, on whatever device is the default: make that `meta`, or tensors fake."""
    with loading(config.name_or_path or config.model_type), quiet():
        network: PreTrainedModel
        if kind == "policy":
            network = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            config.num_labels = attributes
            network = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    return network


def count_parameters(network: PreTrainedModel) -> Parameters:
    """Count the parameters of a network, tied ones once."""
    _, blocks = decoder_layers(network)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    if any(parameter.ndim > 2 for block in blocks for parameter in block.parameters()):
        raise ModelError(f"{type(network).__name__} is a mixture of experts, which cannot be planned for")
    embeddings = network.get_input_embeddings().weight
    output = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = getattr(network, "score", output).weight
    parameters = list(network.parameters())
    return Parameters(
        total=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        embeddings=embeddings.numel(),
        head=0 if head is embeddings else head.numel(),
        block=max(sizes),
        matrices=max(sum(p.numel() for p in block.parameters() if p.ndim == 2) for block in blocks),
        blocks=len(blocks),
    )
