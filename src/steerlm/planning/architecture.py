"""The network that a training would train, without its weights: its figures, and a copy on no device to count."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from steerlm.errors import ModelError
from steerlm.models.base import decoder_layers, embedding_weight, loading, quiet, resolve
from steerlm.models.load import head_of, head_settings
from steerlm.training.config import PolicySettings, TrainSettings

# Public figures of models whose files are behind a licence, so that planning for them needs no download:
# layers, hidden, feed-forward, heads, key-value heads (arXiv 2307.09288 and the models' published configurations).
_LLAMA2 = {
    "meta-llama/Llama-2-7b-hf": (32, 4096, 11008, 32, 32),
    "meta-llama/Llama-2-13b-hf": (40, 5120, 13824, 40, 40),
    "meta-llama/Llama-2-70b-hf": (80, 8192, 28672, 64, 8),
}


@dataclass(frozen=True)
class Parameters:
    """How many there are.

    total, trainable     all, tied ones counted once, and those that are trained
    embeddings, head     of the input tokens, and of the output where it has weights of its own
    blocks               how many decoder blocks there are
    matrices             in the blocks' matrix products
    trained_matrices     those of them that are trained
    """

    total: int
    trainable: int
    embeddings: int
    head: int
    blocks: int
    matrices: int
    trained_matrices: int


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


def build(config: PretrainedConfig, settings: TrainSettings) -> PreTrainedModel:
    """The network to train, on whatever device is the default: make that `meta`, or it gets random weights."""
    with loading(settings.base), quiet():
        if isinstance(settings, PolicySettings):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
        config = copy.deepcopy(config)
        for name, value in head_settings(settings.schema_of_attributes).items():
            setattr(config, name, value)
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]


def count_parameters(network: PreTrainedModel) -> Parameters:
    """Count the parameters of a network. Raises `ModelError` for experts and recurrent layers."""
    _, blocks = decoder_layers(network)
    if any(parameter.ndim > 2 for parameter in blocks.parameters()):
        raise ModelError(
            f"{type(network).__name__} has experts or recurrent layers in its blocks; plans are for plain decoders"
        )
    matrices = [parameter for parameter in blocks.parameters() if parameter.ndim == 2]
    embeddings = embedding_weight(network)
    output = network.get_output_embeddings()
    head: Tensor = (head_of(network) if output is None else output).weight
    return Parameters(
        total=_count(network.parameters()),
        trainable=_count(parameter for parameter in network.parameters() if parameter.requires_grad),
        embeddings=embeddings.numel(),
        head=0 if head is embeddings else head.numel(),
        blocks=len(blocks),
        matrices=_count(matrices),
        trained_matrices=_count(parameter for parameter in matrices if parameter.requires_grad),
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
