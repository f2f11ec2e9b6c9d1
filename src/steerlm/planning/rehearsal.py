"""A training step on fake tensors, which have shapes and no contents, while the bytes alive are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from steerlm.attention import Form, use_tree_attention
from steerlm.errors import ConfigError
from steerlm.models.base import decoder_layers, quiet
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, PackedResponse, Run
from steerlm.parallel.load import allocate
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, shard
from steerlm.planning.adapted import adapt
from steerlm.planning.architecture import build
from steerlm.planning.tracker import LiveBytes
from steerlm.training.config import TrainSettings, kind_of
from steerlm.training.run import make_task
from steerlm.training.task import Batch

_FUSED = "steerlm_planned_fused"
Attention = Literal["fused"] | Form
"""A form of tree attention, or one that stands for FlexAttention, which has no backward pass on CPUs."""


@contextlib.contextmanager
def pretended_ranks(settings: TrainSettings, gpus: int) -> Iterator[Ranks]:
    """The first of `gpus` ranks, whose exchanges return at once.

    Raises `ConfigError` where the settings cannot be trained with on so many.
    """
    tensor_parallel = settings.tensor_parallel
    place = torch.device("cpu")
    if settings.quantize == "4bit" and gpus > 1:
        raise ConfigError("a base in 4 bits is held by one GPU; leave out quantize, or plan for one")
    if gpus % tensor_parallel:
        raise ConfigError(f"tensor_parallel={tensor_parallel} does not divide {gpus} GPUs; choose a divisor")
    if gpus == 1:
        yield Ranks(0, 1, 0, place)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if distributed.is_initialized():
        raise ConfigError("a plan is made by one process; run it without torchrun")
    distributed.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    try:
        shape = (gpus // tensor_parallel, tensor_parallel)
        yield Ranks(0, gpus, 0, place, init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")))
    finally:
        distributed.destroy_process_group()


def rehearse(
    config: PretrainedConfig,
    settings: TrainSettings,
    pack: Pack,
    ranks: Ranks,
    dtype: torch.dtype,
    attention: Attention,
) -> dict[str, int]:
    """The fields of a `Footprint` of this network, made, sharded, and taken through a loss and its gradient."""
    with torch.device("meta"), quiet():
        network = build(config, settings)
        adapt(network, settings)
    network.train()
    use_tree_attention(network, "flex" if attention == "fused" else attention, settings.context)
    if attention == "fused":
        network.set_attn_implementation(_FUSED)
    root = Root(network)
    shard(network, root, ranks, dtype, settings.gradient_checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        allocate(root, ranks.device)
        # Gradients are there from the packs before, and added to.
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        weights = [_held(parameter) for parameter in network.parameters()]
        gradients = [_held(parameter.grad) for parameter in trained if parameter.grad is not None]
        # A plan for GPUs runs on fake CPUs, with the attention of GPUs.
        batch = Batch.of(pack, ranks.device, torch.float32 if attention == "fused" else dtype)
        with LiveBytes([*weights, *gradients, *network.buffers()]) as live:
            marks = _phases(root, settings, batch, live, dtype, sharded=ranks.mesh is not None)
    bytes_of_gradients = sum(gradient.nbytes for gradient in gradients)
    return {
        "weights": sum(weight.nbytes for weight in weights),
        "gradients": bytes_of_gradients,
        "moments": 2 * bytes_of_gradients,
        **marks,
    }


def one_run(tokens: int, foils: bool = False) -> Pack:
    """A pack whose tokens all follow one another and are all trained: what costs most memory at this size.

    With `foils` its second half is a foil of the first.
    """
    everywhere = np.arange(tokens, dtype=np.int64)
    first = PackedResponse("", 0, tokens // 2 - 1)
    second = PackedResponse("", 1, tokens - 1, foil_of=0 if foils else -1)
    return Pack(
        ids_T=np.zeros(tokens, dtype=np.int64),
        positions_T=everywhere,
        runs=(Run(0, tokens, ()),),
        rows_N=everywhere,
        targets_N=np.zeros(tokens, dtype=np.int64),
        weights_N=np.ones(tokens, dtype=np.float32),
        owner_N=(everywhere >= tokens // 2).astype(np.int64),
        responses=(first, second),
    )


def _held(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _phases(
    root: Root,
    settings: TrainSettings,
    batch: Batch,
    live: LiveBytes,
    dtype: torch.dtype,
    sharded: bool,
) -> dict[str, int]:
    network = root.network
    marks: dict[str, int] = {}

    def after_embeddings(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: marks.update(backward=live.peak()))

    def before_last_block(module: nn.Module, inputs: Any) -> None:
        live.peak()

    def after_blocks(module: nn.Module, inputs: Any, output: Any) -> None:
        # While the blocks are sharded again, what is no DTensor is a gathered weight.
        outside = [weight for weight in network.parameters() if sharded and not isinstance(weight, DTensor)]
        marks.update(gathered=sum(weight.nbytes for weight in outside), kept=live.now, forward=live.peak())
        states: Tensor = output.last_hidden_state
        states.register_hook(lambda gradient: marks.update(loss=live.peak()))

    network.get_input_embeddings().register_forward_hook(after_embeddings)
    decoder_layers(network)[1][-1].register_forward_pre_hook(before_last_block)
    network.base_model.register_forward_hook(after_blocks)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32 and not sharded):
        loss = root(_loss, network, settings, batch)
    loss.backward()
    rest = live.peak()
    return {"backward": rest, **marks, "end": rest}


def _loss(network: PreTrainedModel, settings: TrainSettings, batch: Batch) -> Tensor:
    # Rendering is done by the time that a loss is computed.
    info = ModelInfo(kind_of(settings), settings.schema_of_attributes, "nemo")
    model = SteerModel(info, renderer=cast(Any, None), network=network)
    return torch.stack([loss.total for loss in make_task(model, settings).losses(batch).values()]).sum()


def _fused(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention in one kernel, which keeps what FlexAttention's would."""
    grouped = query.shape[1] != key.shape[1]
    output = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_FUSED, _fused)
