"""Spreading a model over ranks: tensor parallelism inside a node, fully sharded data parallelism (FSDP2) across.

Every weight is split along its first dimension over the data ranks and gathered block by block while it is needed.
With tensor parallelism the matrices of attention and of the feed-forward layers are also split over the tensor
ranks, which share a pack; embeddings, norms and heads are whole on each of those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from steerlm.errors import ConfigError
from steerlm.models.adapters import has_adapter, own_copy
from steerlm.models.base import decoder_layers
from steerlm.parallel.ranks import Ranks

T = TypeVar("T")


class Root(nn.Module):
    """The outermost module, by whose forward call a sharded network computes anything.

    Weights outside the decoder blocks are whole only inside that call, so that whatever uses the network runs in
    it: `root(task.losses, batch)`. What it returns is a tensor, a `LossSum`, or tuples, lists and dictionaries of
    these, where FSDP can see the tensors that a backward pass starts from.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return function(*args, **kwargs)


def shard(
    network: PreTrainedModel,
    root: nn.Module,
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool = False,
) -> None:
    """Spread `network`, the inside of `root`, over the ranks, in place; on a single process nothing is spread.

    Weights stay in their own type; they are gathered and multiplied in `dtype`, and gradients are added up in
    float32. A head named `score` computes in float32. The gradient of each weight is the sum over the ranks of
    what their backward passes gave, not its mean: losses are divided by counts of all ranks. With
    `activation_checkpointing` a block's activations are computed again in the backward pass.

    The weights may be on the meta device. Raises `ConfigError` where tensor parallelism does not fit the model.
    """
    _, blocks = decoder_layers(network)
    if ranks.mesh is not None and ranks.tensor_world > 1:
        _split_matrices(network, ranks)
    if activation_checkpointing:
        for block in blocks:
            # Not transformers' own way: inside FSDP's hooks rather than around them, a block is gathered once.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if ranks.mesh is None:
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = ranks.mesh["data"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    head = own_copy(getattr(network, "score", None))
    if isinstance(head, nn.Module):
        fully_shard(head, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    # Inputs of the root may be loss weights, which keep their precision.
    whole = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(root, mesh=mesh, mp_policy=whole)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Only NCCL can scale while it adds, and the scale is 1.
            module.set_force_sum_reduction_for_comms(True)
            # Ranks whose packs leave a weight unused still take part in adding up its gradient.
            module.set_reduce_scatter_unused_params(True)
    root.register_forward_hook(_release)


def restore_blocks(network: PreTrainedModel) -> None:
    """Take away what activation checkpointing put into the blocks."""
    for block in decoder_layers(network)[1]:
        vars(block).pop("forward", None)


def _release(root: Any, args: Any, output: Any) -> None:
    """FSDP keeps the root's weights for the backward pass; without one they would stay whole, and be no shards."""
    if not torch.is_grad_enabled():
        root.reshard()


def _split_matrices(network: PreTrainedModel, ranks: Ranks) -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    assert ranks.mesh is not None
    plan = _with_adapters(network, tensor_plan(network, ranks.tensor_world))
    parallelize_module(network.base_model, ranks.mesh["tensor"], plan, src_data_rank=None)


def tensor_plan(network: PreTrainedModel, parts: int) -> dict[str, Any]:
    """How transformers would split this model's matrices, in terms of PyTorch's parallel styles.

    Raises `ConfigError` where it has no plan, or its heads or matrices cannot be divided into `parts`.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    styles: dict[str, Callable[[], Any]] = {
        "colwise": ColwiseParallel,
        "rowwise": RowwiseParallel,
        "colwise_gather_output": partial(ColwiseParallel, output_layouts=Replicate()),
        "rowwise_split_input": partial(RowwiseParallel, input_layouts=Replicate()),
        # A norm over each head of a split projection: the same weight everywhere, gradients added up. What is
        # split is not the dimension it normalises, which is all that this style needs to know.
        "replicated_with_grad_allreduce": partial(SequenceParallel, use_local_output=True),
    }
    name, config = type(network).__name__, network.config.get_text_config()
    plan = config.base_model_tp_plan
    if not plan:
        raise ConfigError(f"transformers has no plan to split {name} over ranks; set tensor_parallel to 1")
    if unknown := sorted(set(plan.values()) - set(styles)):
        raise ConfigError(
            f"transformers splits {name} in ways not known here ({', '.join(unknown)}); set tensor_parallel to 1"
        )
    heads = {
        "attention heads": config.num_attention_heads,
        "key-value heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "feed-forward units": config.intermediate_size,
    }
    for what, count in heads.items():
        if count % parts:
            raise ConfigError(f"tensor_parallel={parts} does not divide the {count} {what} of {name}; choose a divisor")
    return {path: styles[style]() for path, style in plan.items()}


def _with_adapters(network: PreTrainedModel, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan for a network with adapters: of each product B A x the matrix that borders on what is split is split as
    the adapted one is, and the other one, which is small, is whole on every rank.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if not has_adapter(network):
        return plan
    found = {}
    for path, style in plan.items():
        pattern = re.compile(re.escape(path).replace(r"\*", r"[^.]+"))
        for name, module in network.base_model.named_modules():
            if pattern.fullmatch(name) is None:
                continue
            if not hasattr(module, "lora_A"):
                found[name] = style
                continue
            found[f"{name}.base_layer"] = style
            if isinstance(style, ColwiseParallel):
                found[f"{name}.lora_B.default"] = style
            elif isinstance(style, RowwiseParallel):
                found[f"{name}.lora_A.default"] = style
    return found


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, ranks: Ranks) -> float:
    """Scale gradients down to a total L2 norm of `max_norm`; returns the norm before, the same on all ranks."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if ranks.mesh is None:
        return nn.utils.clip_grad_norm_(parameters, max_norm).item()
    local, counted = [], []
    for parameter in parameters:
        gradient = parameter.grad
        assert isinstance(gradient, DTensor)
        local.append(gradient.to_local())
        if _counts(gradient, ranks):
            counted.append(local[-1])
    square = nn.utils.get_total_norm(counted).square() if counted else torch.zeros(())
    square = square.to(ranks.device, torch.float32)
    distributed.all_reduce(square)
    norm = square.sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in local:
        gradient.mul_(scale)
    return norm.item()


def _counts(gradient: DTensor, ranks: Ranks) -> bool:
    """Whether this rank adds its part: of equal copies, which only tensor ranks have, the first one is counted."""
    split = any(
        name == "tensor" and placement.is_shard()
        for name, placement in zip(gradient.device_mesh.mesh_dim_names or (), gradient.placements, strict=True)
    )
    return split or ranks.tensor_rank == 0
