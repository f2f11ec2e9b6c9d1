"""A policy as a GGUF file, which llama.cpp, Ollama, LM Studio and OpenVINO read.

Names and layout are those of llama.cpp's own converter. Weights are read, quantised and written one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Form
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from steerlm.checkpoints.gguf_tokenizer import add_tokenizer
from steerlm.dialects import DIALECTS, Renderer
from steerlm.errors import ConfigError, ModelError
from steerlm.files import replacing
from steerlm.models.base import load_tokenizer, loading
from steerlm.models.directory import ModelInfo
from steerlm.models.load import load_model

Quantization = Literal["q8_0", "f16"]
Progress = Callable[[int, int], None]
"""Is told how many tensors are written, of how many."""

FINGERPRINT_KEY = "steerlm.fingerprint"
_FORMS = {
    "q8_0": (Form.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "f16": (Form.F16, gguf.LlamaFileType.MOSTLY_F16),
}
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


@dataclass(frozen=True)
class GGUFFile:
    """What was written: `warnings` says what other programs may do otherwise with it than this one."""

    path: Path
    tensors: int
    bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """A policy whose weights are read by name, when they are needed."""

    info: ModelInfo
    config: PretrainedConfig
    renderer: Renderer
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]


@dataclass(frozen=True)
class _Item:
    """A tensor of the file to be: its name there, its shape, how it is stored, and what makes it in float32."""

    name: str
    shape: tuple[int, ...]
    form: Form
    make: Callable[[], NDArray[np.float32]]


def export_gguf(
    directory: Path, out: Path, quantization: Quantization = "q8_0", progress: Progress | None = None
) -> GGUFFile:
    """Write the policy in `directory` to the file `out`, whole or not at all; an adapter is merged into its base.

    Matrices become 8-bit integers with a scale for every 32 (`q8_0`) or float16 (`f16`; so do, with `q8_0`, those
    whose rows are no multiple of 32); vectors stay float32. Raises `ModelError` for an attribute model or an
    architecture other than Llama, Qwen2 and Qwen3, `ConfigError` where `out` cannot be written.
    """
    if out.suffix != ".gguf" or out.is_dir():
        raise ConfigError(f"{out} cannot be written; name a file that ends in .gguf, by which programs know the format")
    source = _open(directory)
    arch = _architecture(directory, source.config)
    with replacing(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[arch])
        try:
            warnings = _describe(writer, source, directory.resolve().name, quantization)
            items = list(_items(source, arch, directory, _FORMS[quantization][0]))
            for item in items:
                _announce(writer, item)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for number, item in enumerate(items, start=1):
                writer.write_tensor_data(_stored(item, directory))
                if progress is not None:
                    progress(number, len(items))
        finally:
            writer.close()
    return GGUFFile(out, len(items), out.stat().st_size, warnings)


def _open(directory: Path) -> _Source:
    info = ModelInfo.load(directory)
    if info.kind != "policy":
        raise ModelError(f"{directory} is an attribute model; the GGUF format has no place for its head, only policies")
    if info.base is not None:
        model = load_model(directory, "policy")
        state = model.network.state_dict()
        tied = model.network.all_tied_weights_keys or {}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in tied}
        return _Source(info, model.network.config, model.renderer, shapes, state.__getitem__)
    with loading(directory):
        config = AutoConfig.from_pretrained(directory)
        places: dict[str, Any] = {}
        shapes = {}
        for path in sorted(directory.glob("*.safetensors")):
            file: Any = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  it is no mapping
                places[name] = file
                shapes[name] = tuple(file.get_slice(name).get_shape())
    if not shapes:
        raise ModelError(f"{directory}: no .safetensors weights in it")
    renderer = Renderer(DIALECTS[info.dialect], load_tokenizer(directory), info.schema)
    return _Source(info, config, renderer, shapes, lambda name: places[name].get_tensor(name))


def _architecture(directory: Path, config: PretrainedConfig) -> gguf.MODEL_ARCH:
    kind = config.model_type
    if kind not in _ARCHITECTURES:
        raise ModelError(
            f"{directory} is a {kind} model; GGUF files are written of {', '.join(_ARCHITECTURES)} models only; "
            "steerlm export hf writes weights that llama.cpp's own converter takes"
        )
    act = config.hidden_act
    if act != "silu":
        raise ModelError(f"{directory} has the activation {act}, where readers of GGUF files compute silu")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError(f"{directory} attends within a sliding window, which GGUF files of {kind} models cannot say")
    return _ARCHITECTURES[kind]


def _head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe(writer: Any, source: _Source, name: str, quantization: Quantization) -> tuple[str, ...]:
    """Write all that is no tensor; returns warnings."""
    config = source.config
    head_size = _head_size(config)
    writer.add_name(name)
    writer.add_file_type(_FORMS[quantization][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(FINGERPRINT_KEY, source.info.fingerprint)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    _add_rope(writer, config.rope_parameters)
    return add_tokenizer(writer, source.renderer, source.info.system, config.vocab_size)


def _add_rope(writer: Any, rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    known = {"rope_type", "rope_theta", "type"} | {  # "type" is what rope_type was called
        "linear": {"factor"},
        "yarn": {"factor", "original_max_position_embeddings"},
        "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    }.get(kind, set())
    if kind not in ("default", "linear", "yarn", "llama3") or rope.keys() - known:
        raise ModelError(f"rotary embeddings with {rope} cannot be told in a GGUF file")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _items(source: _Source, arch: gguf.MODEL_ARCH, directory: Path, form: Form) -> Iterator[_Item]:
    config = source.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    if config.rope_parameters.get("rope_type") == "llama3":
        yield _Item("rope_freqs.weight", (_head_size(config) // 2,), Form.F32, partial(_rope_divisors, config))
    for name, shape in source.shapes.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"{directory}: the tensor {name} has no place in a GGUF file of a {config.model_type}")
        yield _Item(known, shape, _form(shape, form), partial(_read, source, name, arch))


def _form(shape: tuple[int, ...], wanted: Form) -> Form:
    if len(shape) == 1:
        return Form.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else Form.F16


def _read(source: _Source, name: str, arch: gguf.MODEL_ARCH) -> NDArray[np.float32]:
    weight: NDArray[np.float32] = source.read(name).float().numpy()
    if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.q_proj." in name:
        return _pairs_adjacent(weight, source.config.num_attention_heads)
    if arch == gguf.MODEL_ARCH.LLAMA and ".self_attn.k_proj." in name:
        return _pairs_adjacent(weight, source.config.num_key_value_heads)
    return weight


def _pairs_adjacent(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rotary embeddings turn pairs of a head's dimensions: i and i + half here, neighbours in ggml's llama."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _rope_divisors(config: PretrainedConfig) -> NDArray[np.float32]:
    """By how much Llama 3's scaling divides each rotary frequency."""
    divisors: NDArray[np.float32] = (_unscaled(config) / rotary(config)[0]).numpy()
    return divisors


def rotary(config: PretrainedConfig) -> tuple[Tensor, float]:
    """By how much a position turns each pair of a head's dimensions, in radians [D/2], and what cosines and sines are
    multiplied by.
    """
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return _unscaled(config), 1.0
    turns, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return turns, float(scale)


def _unscaled(config: PretrainedConfig) -> Tensor:
    exponents = torch.arange(0, _head_size(config), 2, dtype=torch.float32) / _head_size(config)
    turns: Tensor = config.rope_parameters["rope_theta"] ** -exponents
    return turns


def _announce(writer: Any, item: _Item) -> None:
    block, size = gguf.GGML_QUANT_SIZES[item.form]
    stored = math.prod(item.shape) // block * size
    writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), stored, raw_dtype=item.form)


def _stored(item: _Item, directory: Path) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        stored: NDArray[Any] = gguf.quants.quantize(item.make(), item.form)
    if item.form == Form.F16 and not np.isfinite(stored).all():
        raise ModelError(f"{directory}: values of {item.name} are beyond the range of float16 (65504); use q8_0")
    return np.ascontiguousarray(stored)
