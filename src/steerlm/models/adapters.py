"""Which part of a base model is trained: LoRA adapters (peft), ranges of frozen layers, a base held in 4 bits.

An adapter is put into the network in place, so that tree attention, heads and partial logits work as ever. With it
are trained the regression head and the embeddings of added tokens, and nothing else.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, PreTrainedModel

from steerlm.errors import ConfigError, ModelError
from steerlm.files import write_json
from steerlm.losses import Rows
from steerlm.models.base import decoder_layers, embedding_weight
from steerlm.models.directory import ADAPTER_CONFIG
from steerlm.parallel.local import local_part, read_rows, write_whole

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

    output = network.get_output_embeddings()
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
        # What peft draws here is drawn anew below, alike for networks with and without weights.
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, network, _NAME)
    except ValueError as error:
        raise ConfigError(
            f"no layer to adapt with lora_targets {', '.join(lora.targets)}"
            f"{f' outside of frozen_layers {frozen_layers}' if frozen_layers else ''}: {error}"
        ) from error
    if (adapter := getattr(network.get_input_embeddings(), "token_adapter", None)) is not None:
        adapter.forward = partial(_embed, adapter)
    for parameter in network.parameters():
        if parameter.requires_grad:  # peft makes adapters of 4-bit layers in the type that these compute in
            parameter.data = parameter.data.float()
    if embedding_weight(network).device.type != "meta":
        _draw(network)


def start_adapter(network: PreTrainedModel) -> None:
    """Give an adapter that was put into a network without weights, and perhaps sharded since, the values with which
    it would have begun in the network that now has them. Torch's random numbers must have the same seed on all ranks.
    """
    _draw(network)
    for _, layer in _adapted(network):
        nn.init.zeros_(local_part(layer.lora_B[_NAME].weight.detach())[0])
        if layer.use_dora.get(_NAME):
            # Both are split alike, by their first dimension, so that each rank has the rows whose lengths it keeps.
            lengths = torch.linalg.norm(local_part(layer.base_layer.weight.detach())[0], dim=1)
            local_part(layer.lora_magnitude_vector[_NAME].weight.detach())[0].copy_(lengths)
    for module in network.modules():
        if copies := getattr(module, "modules_to_save", None):
            original = cast(nn.Module, module.original_module)
            pairs = zip(copies[_NAME].parameters(), original.parameters(), strict=True)
            for copy, source in pairs:
                local_part(copy.detach())[0].copy_(local_part(source.detach())[0])
        if (adapter := getattr(module, "token_adapter", None)) is not None and adapter.tied_adapter is None:
            base = adapter.base_layer.weight
            rows = read_rows(base, torch.tensor(adapter.token_indices[_NAME], device=base.device))
            write_whole(adapter.trainable_tokens_delta[_NAME], rows)
            adapter.trainable_tokens_original[_NAME] = rows


def _draw(network: PreTrainedModel) -> None:
    """Start the matrices A in peft's range. Each depends on the seed of torch's random numbers and on its layer alone,
    and is drawn whole, so that all ranks have parts of the same one.
    """
    for name, layer in _adapted(network):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{torch.initial_seed()} {name}".encode()))
        weight = layer.lora_A[_NAME].weight
        write_whole(weight, nn.init.kaiming_uniform_(torch.empty(weight.shape), math.sqrt(5), generator=generator))


def _adapted(network: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by their names."""
    return ((name, module) for name, module in network.named_modules() if _NAME in getattr(module, "lora_A", ()))


_WRAPPED = re.compile(r"\.(?:base_layer|token_adapter|original_module)(?=\.)")
_OWN = re.compile(r"\.(?:lora_\w+|modules_to_save|trainable_tokens_\w+)\.")


def plain_name(name: str) -> str | None:
    """The name that a weight of an adapted network has in the plain one; None for what is the adapter's own."""
    return None if _OWN.search(name) else _WRAPPED.sub("", name)


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
    tensors = {name: value.cpu().contiguous() for name, value in adapter_weights(network).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    save_adapter_config(network, directory)


def adapter_weights(network: PreTrainedModel) -> dict[str, Tensor]:
    """What is trained, perhaps sharded, under the names of peft's own files."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(network, adapter_name=_NAME, save_embedding_layers=False)
    return {_PREFIX + name: value.detach() for name, value in state.items()}


def save_adapter_config(network: PreTrainedModel, directory: Path) -> None:
    """Write adapter_config.json."""
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


def without_new_rows(layer: nn.Module | None) -> tuple[nn.Module | None, Rows | None]:
    """An embedding or an output layer as it is in the base, and the rows of added tokens that are trained apart."""
    adapter = getattr(layer, "token_adapter", None)
    if adapter is None:
        return layer, None
    return adapter.base_layer, _rows(adapter)


def _rows(adapter: Any) -> Rows:
    values_KD = adapter.trainable_tokens_delta[_NAME]
    return Rows(torch.tensor(adapter.token_indices[_NAME], device=values_KD.device), values_KD)


def _embed(adapter: Any, ids: Tensor) -> Tensor:
    """The embeddings of tokens, of which some are trained apart. peft would copy the whole matrix in each pass, and
    make a gradient of that size.
    """
    rows, layer = _rows(adapter), adapter.base_layer
    is_row = ids[..., None] == rows.tokens_K
    values = functional.embedding(is_row.int().argmax(-1), rows.values_KD) * getattr(layer, "embed_scale", 1.0)
    return torch.where(is_row.any(-1, keepdim=True), values, layer(ids))


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
    config = BitsAndBytesConfig(
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
