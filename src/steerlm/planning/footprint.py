"""The memory of one rank, counted: the real training step runs on fake tensors, which have shapes and no contents.

The network is made, adapted, sharded over a process group that only pretends, and put through the loss and its
gradient as in training, while the bytes alive are counted. All decoder blocks being alike, networks of three and of
four blocks tell what each further block adds.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import astuple, dataclass
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
from steerlm.models.directory import Kind
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, PackedResponse, Run
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, shard
from steerlm.planning.architecture import build
from steerlm.planning.tracker import LiveBytes
from steerlm.training.attribute_model import predict
from steerlm.training.config import TrainSettings
from steerlm.training.policy import response_nll
from steerlm.training.task import Batch

_FUSED = "steerlm_planned_fused"
_STEADY = 3
"""Blocks after which each one adds the same: while one computes, the next is gathered and the last one reduced."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank.

    weights    this rank's shards, in the type they are kept in
    gradients  the same for what is trained
    moments    AdamW's two running means
    gathered   weights outside the blocks, which sharding keeps whole from the forward to the backward pass
    kept       these and all else that is alive when the blocks have computed: what the backward pass needs
    forward    the most alive beside the first three while the last block computes
    loss       the same while the loss and its gradient are computed
    backward   the same while the blocks' gradients are
    end        the same while those of the embeddings are, and what is outside the blocks is reduced
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    kept: int
    forward: int
    loss: int
    backward: int
    end: int

    @property
    def peak(self) -> int:
        """The most alive at any moment."""
        steady = self.weights + self.gradients + self.moments
        return steady + max(self.forward, self.loss, self.backward, self.end)


def footprint(
    config: PretrainedConfig,
    kind: Kind,
    settings: TrainSettings,
    pack: Pack,
    gpus: int = 1,
    attention: Literal["fused"] | Form = "fused",
) -> Footprint:
    """The footprint of training on packs like `pack`. `fused` attention keeps what FlexAttention keeps.

    Raises `ConfigError` where the settings do not fit the model or the number of GPUs.
    """
    blocks = config.get_text_config().num_hidden_layers
    sizes = sorted({min(blocks, _STEADY), min(blocks, _STEADY + 1)})
    with _pretended(gpus, settings.tensor_parallel) as ranks:
        few, *more = [
            astuple(_run(_cut(config, size), kind, settings, pack, ranks, attention)) for size in sizes
        ]
    each = [second - first for first, second in zip(few, more[0], strict=True)] if more else [0] * len(few)
    return Footprint(*(int(first + (blocks - sizes[0]) * step) for first, step in zip(few, each, strict=True)))


def one_run(tokens: int) -> Pack:
    """A pack whose tokens all follow one another and are all trained: what costs most memory at this size."""
    everywhere = np.arange(tokens, dtype=np.int64)
    return Pack(
        ids_T=np.zeros(tokens, dtype=np.int64),
        positions_T=everywhere,
        runs=(Run(0, tokens, ()),),
        rows_N=everywhere,
        targets_N=np.zeros(tokens, dtype=np.int64),
        weights_N=np.ones(tokens, dtype=np.float32),
        owner_N=np.zeros(tokens, dtype=np.int64),
        responses=(PackedResponse("", 0, tokens - 1),),
    )


@contextlib.contextmanager
def _pretended(gpus: int, tensor_parallel: int) -> Iterator[Ranks]:
    """The first of `gpus` ranks, whose exchanges return at once."""
    place = torch.device("cpu")
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


def _cut(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """The same architecture with fewer blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    return config


def _run(
    config: PretrainedConfig, kind: Kind, settings: TrainSettings, pack: Pack, ranks: Ranks, attention: str
) -> Footprint:
    half = settings.precision != "fp32"
    with torch.device("meta"), quiet():
        network = build(config, kind, len(settings.schema_of_attributes))
    network.train()
    if attention == "fused":
        network.set_attn_implementation(_FUSED)
    else:
        use_tree_attention(network, cast(Form, attention))
    root = Root(network)
    shard(network, root, ranks, torch.bfloat16 if half else torch.float32, settings.gradient_checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True), quiet():
        root.to_empty(device=ranks.device)
        network.tie_weights()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        batch = Batch.of(pack, ranks.device)
        steady = [_held(tensor) for tensor in (*network.parameters(), *gradients)]
        with LiveBytes([*steady, *network.buffers()]) as live:
            phases = _phases(root, kind, batch, live, half, ranks.mesh is not None)
        gradient_bytes = sum(_held(gradient).nbytes for gradient in gradients)
        return Footprint(
            weights=sum(_held(parameter).nbytes for parameter in network.parameters()),
            gradients=gradient_bytes,
            moments=2 * gradient_bytes,
            **phases,
        )


def _held(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _phases(root: Root, kind: Kind, batch: Batch, live: LiveBytes, half: bool, sharded: bool) -> dict[str, int]:
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
        output.last_hidden_state.register_hook(lambda gradient: marks.update(loss=live.peak()))

    network = root.network
    network.get_input_embeddings().register_forward_hook(after_embeddings)
    decoder_layers(network)[1][-1].register_forward_pre_hook(before_last_block)
    network.base_model.register_forward_hook(after_blocks)
    with torch.autocast("cpu", torch.bfloat16, enabled=half and not sharded):
        loss = root(_loss, network, kind, batch)
    loss.backward()
    rest = live.peak()
    return {"backward": rest, **marks, "end": rest}


def _loss(network: PreTrainedModel, kind: Kind, batch: Batch) -> Tensor:
    model = SteerModel(network, renderer=cast(Any, None), info=cast(Any, None))
    if kind == "policy":
        return response_nll(model, batch).sum()
    return predict(model, batch).square().sum()


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
