"""Which part of a base model is trained: LoRA adapters (peft), ranges of frozen layers, a base held in 4 bits.

An adapter is put into the network in place, so that tree attention, heads and partial logits work as ever. With it
are trained the regression head and the embeddings of added tokens, and nothing else.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from steerlm.errors import ConfigError, ModelError
from steerlm.files import write_json
from steerlm.models.base import decoder_layers, embedding_weight
from steerlm.models.directory import ADAPTER_CONFIG

WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
Variant = Literal["lora", "rslora", "dora"]
_NAME = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter (arXiv 2106.09685).

    rank      rank of the matrices that are added
    alpha     what is added is scaled by alpha / rank, with rslora by alpha / sqrt(rank)
    dropout   probability with which an adapter's input is dropped
    targets   ends of the names of the layers to adapt, or all-linear alone for all linear layers of the decoder
    variant   lora, rslora (arXiv 2312.03732) or dora (arXiv 2402.09353)
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    variant: Variant = "lora"


def add_lora(
    network: PreTrainedModel, lora: Lora, base: str, new_tokens: Sequence[int] = (), frozen_layers: str | None = None
) -> None:
    """Put an adapter into `network`, in place; layers of the range `frozen_layers` get none.

    `base` is what adapter_config.json names as its base model. Raises `ConfigError` where no layer matches or peft is
    not installed.
    """
    _require("peft", "LoRA", "lora")
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    output = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),  # peft multiplies with it and takes any number
        lora_dropout=lora.dropout,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        exclude_modules=_names_of_layers(network, frozen_layers) if frozen_layers else None,
        modules_to_save=["score"] if output is None else None,
        trainable_token_indices=_token_indices(network, output, list(new_tokens)) if new_tokens else None,
        task_type=TaskType.SEQ_CLS if output is None else TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
    )
    try:
        inject_adapter_in_model(config, network, _NAME)
    except ValueError as error:
        raise ConfigError(
            f"no layer to adapt with lora_targets {', '.join(lora.targets)}"
            f"{f' outside of frozen_layers {frozen_layers}' if frozen_layers else ''}: {error}"
        ) from error
    for parameter in network.parameters():
        if parameter.requires_grad:  # peft makes adapters of 4-bit layers in the type that these compute in
            parameter.data = parameter.data.float()


def _token_indices(network: PreTrainedModel, output: nn.Module | None, tokens: list[int]) -> dict[str, list[int]]:
    """The rows to train of the input embeddings, and of an output matrix of its own."""
    matrices = [network.get_input_embeddings()]
    if output is not None and output.weight is not embedding_weight(network):
        if getattr(output, "bias", None) is not None:
            raise ModelError(
                f"{type(network).__name__}'s output layer has a bias, which peft drops where tokens are added; "
                "train without lora_rank, or with marker_tokens and level_tokens off"
            )
        matrices.append(output)
    names = {id(module): name for name, module in network.named_modules()}
    return {names[id(matrix)]: tokens for matrix in matrices}


def _names_of_layers(network: PreTrainedModel, span: str) -> str:
    """A regular expression for the names of all modules within a range of layers."""
    name, layers = decoder_layers(network)
    numbers = "|".join(map(str, layer_range(span, len(layers))))
    return rf"{re.escape(name)}\.(?:{numbers})\..*"


def layer_range(span: str, count: int) -> range:
    """The layers START to END - 1 of START:END, where either may be left out, of `count` layers.

    Raises `ConfigError` where the range is empty or goes beyond them.
    """
    start, _, stop = span.partition(":")
    found = range(int(start or 0), int(stop or count))
    if not found or found.stop > count:
        raise ConfigError(f"frozen_layers={span}: give a range START:END within the base model's layers, 0:{count}")
    return found


def freeze_layers(network: PreTrainedModel, span: str, new_tokens: Sequence[int] = ()) -> None:
    """Do not train the layers of a range; nor the embeddings where it begins with layer 0 and no token was added."""
    _, layers = decoder_layers(network)
    frozen = layer_range(span, len(layers))
    for index in frozen:
        layers[index].requires_grad_(False)
    if frozen.start == 0 and not new_tokens:
        network.get_input_embeddings().requires_grad_(False)


def has_adapter(network: nn.Module) -> bool:
    """Whether an adapter is in the network."""
    return hasattr(network, "peft_config")


def save_adapter(network: PreTrainedModel, directory: Path) -> None:
    """Write what is trained in peft's own format: it loads in `peft.PeftModel.from_pretrained`."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(network, adapter_name=_NAME, save_embedding_layers=False)
    tensors = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config: Any = network.peft_config[_NAME]
    # Equal trainings write equal files: peft keeps names in sets, which have no order.
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_json(directory / ADAPTER_CONFIG, {**ordered, "inference_mode": True})


def merge_adapter(network: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The plain network that the base `network` and the adapter in `directory` make together; `network` is used up.

    Raises `ModelError` where the adapter is not all there or does not fit.
    """
    _require("peft", "the adapter of this model", "lora")
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.lora import LoraModel

    state = {name.removeprefix(_PREFIX): value for name, value in load_file(directory / WEIGHTS).items()}
    tuner = LoraModel(network, LoraConfig.from_pretrained(str(directory)), _NAME)
    expected = get_peft_model_state_dict(network, save_embedding_layers=False)
    if found := expected.keys() ^ state.keys():
        raise ModelError(f"{directory}: {WEIGHTS} is not what {ADAPTER_CONFIG} says: it differs in {_some(found)}")
    if found := {name for name in expected if expected[name].shape != state[name].shape}:
        raise ModelError(f"{directory}: the adapter does not fit its base model: it differs in {_some(found)}")
    set_peft_model_state_dict(network, state)
    merged = cast(PreTrainedModel, tuner.merge_and_unload())
    merged.requires_grad_(True)
    return merged


def own_copy(module: nn.Module | None) -> nn.Module | None:
    """The copy of a module that the adapter trains in its stead; without one, the module itself."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[_NAME]


def embedding_rows(network: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The parameter in which the input embeddings of added `tokens` are trained, and their rows in it."""
    adapter = getattr(network.get_input_embeddings(), "token_adapter", None)
    if adapter is None:
        weight = embedding_weight(network)
        return weight, tokens.to(weight.device)
    weight = adapter.trainable_tokens_delta[_NAME]
    row_of = {token: row for row, token in enumerate(adapter.token_indices[_NAME])}
    return weight, torch.tensor([row_of[token] for token in tokens.tolist()], device=weight.device)


def four_bit(device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a base held in 4 bits: NF4, quantised twice (arXiv 2305.14314)."""
    _require("bitsandbytes", "quantize=4bit", "quantize")
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _some(names: Collection[str]) -> str:
    return f"{min(names)} and {len(names) - 1} more" if len(names) > 1 else min(names)


def _require(package: str, purpose: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{purpose} needs the package {package}; install it with pip install 'steerlm[{extra}]'")
    # peft imports bitsandbytes where it is, which on CPUs tells of a missing accelerator at each start.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
