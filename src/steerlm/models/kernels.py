"""Faster ways to compute the same network: compiled blocks, and Liger's fused operations for GPUs."""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from steerlm.errors import ConfigError
from steerlm.models.base import decoder_layers


def compile_blocks(network: PreTrainedModel) -> None:
    """Compile the layers of the decoder in place. They share their code, which is compiled once, for any length."""
    for layer in decoder_layers(network)[1]:
        layer.compile(dynamic=True)


def interpret_blocks(network: PreTrainedModel) -> None:
    """Undo `compile_blocks`."""
    for layer in decoder_layers(network)[1]:
        layer._compiled_call_impl = None


def require_liger(device: torch.device) -> None:
    """Raise `ConfigError` where Liger's kernels cannot run."""
    if device.type != "cuda":
        raise ConfigError("kernels=liger needs a CUDA device, and none is used here; leave kernels out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError("kernels=liger needs the package liger-kernel; install it with `pip install liger-kernel`")


def use_liger(network: PreTrainedModel) -> None:
    """Replace norms, rotary embeddings and feed-forward layers by Liger's; the loss stays ours, made in chunks.

    Raises `ConfigError` for an architecture that Liger does not know.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN, _apply_liger_kernel_to_instance

    kind = network.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigError(f"Liger has no kernels for {kind} models; leave kernels out")
    _apply_liger_kernel_to_instance(network, fused_linear_cross_entropy=False, cross_entropy=False)
