"""A training step whose real memory is measured, in modules that other processes can import."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from allocations import peak_bytes
from steerlm.attention import Form, use_tree_attention
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, Run
from steerlm.parallel.local import local_part
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, clip_grad_norm, shard
from steerlm.planning.architecture import build
from steerlm.planning.rehearsal import one_run
from steerlm.training.config import TrainSettings, kind_of
from steerlm.training.learner import make_optimizer
from steerlm.training.run import make_task
from steerlm.training.task import Batch
from tiny import llama, qwen2

SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "grouped queries, head of its own": lambda: llama(
        3000,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    "biases, tied embeddings": lambda: qwen2(
        2000,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=True,
    ),
}


def config_of(shape: str) -> PretrainedConfig:
    with torch.device("meta"):
        return SHAPES[shape]().config


def branches(tokens: int) -> Pack:
    """A pack whose first quarter is seen by three branches."""
    quarter = tokens // 4
    shared = ((0, quarter),)
    runs = (Run(0, 2 * quarter, ()), Run(2 * quarter, 3 * quarter, shared), Run(3 * quarter, tokens, shared))
    branch = np.arange(quarter, 2 * quarter)
    positions = np.concatenate([np.arange(2 * quarter), branch, branch])
    return replace(one_run(tokens), runs=runs, positions_T=positions)


def real_peak(shape: str, settings: TrainSettings, pack: Pack, dtype: torch.dtype) -> int:
    """The most bytes allocated from making the network to its second optimiser step, on this rank."""
    with closing(Ranks.start("cpu", settings.tensor_parallel)) as ranks:
        return peak_bytes(lambda: _train(config_of(shape), settings, pack, dtype, ranks))


def gpu_peak(config: PretrainedConfig, settings: TrainSettings, pack: Pack, dtype: torch.dtype) -> int:
    """The same on this machine's GPU, as its allocator counts it."""
    with closing(Ranks.alone("cuda")) as ranks:
        gc.collect()  # what others left would be freed meanwhile
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _train(config, settings, pack, dtype, ranks, "flex")
        return torch.cuda.max_memory_allocated() - before


def _train(
    config: PretrainedConfig,
    settings: TrainSettings,
    pack: Pack,
    dtype: torch.dtype,
    ranks: Ranks,
    attention: Form = "segments",
) -> None:
    with torch.device("meta"):
        network = build(copy.deepcopy(config), settings)
    use_tree_attention(network, attention)
    root = Root(network)
    shard(network, root, ranks, dtype, settings.gradient_checkpointing)
    root.to_empty(device=ranks.device)
    network.tie_weights()
    network.train()
    for weight in [*network.parameters(), *network.buffers()]:
        local_part(weight.detach())[0].normal_(std=0.02)
    info = ModelInfo(kind_of(settings), settings.schema_of_attributes, "nemo")
    model = SteerModel(info, None, network)  # type: ignore[arg-type]
    task = make_task(model, settings)
    optimizer = make_optimizer(network, settings)
    batch = Batch.of(pack, ranks.device, dtype)
    for packs in (1, 2):
        optimizer.zero_grad(set_to_none=True)
        for _ in range(packs):
            with torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32 and ranks.mesh is None):
                losses = root(task.losses, batch)
            torch.stack([loss.total for loss in losses.values()]).sum().backward()
        clip_grad_norm(network.parameters(), 1.0, ranks)
        optimizer.step()
