"""Floating-point operations that our training needs, and how many of them this machine can do in a second.

A product of [m, k] and [k, n] takes 2 m k n operations; its backward pass takes two of the same size. So each weight
of a linear layer costs 6 operations for each row that passes through it:

    linear     6 * tree tokens * weights of the linear layers of all decoder blocks
    head       6 * rows with a loss * weights of the output layer; rows are trained tokens, or rated responses
    attention  12 * layers * heads * head size * visible pairs (query, key): queries by keys, and weights by values

A run of L tokens that sees P tokens before it has L * P + L * (L + 1) / 2 visible pairs. Whatever an implementation
computes twice (checkpointing, the backward pass of fused attention), or in vain (masked pairs), does not count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from steerlm.devices import pick_device
from steerlm.models.load import head_of
from steerlm.packing import Pack, lay_out
from steerlm.tokens import TokenTree

_TRIES = 5


def model_flops(network: PreTrainedModel, trees: Sequence[TokenTree]) -> dict[str, int]:
    """Operations of one epoch over fitted trees: `linear`, `head`, `attention` and their sum `total`."""
    packs = [lay_out([tree]) for tree in trees]
    tokens = sum(pack.size for pack in packs)
    config = network.config.get_text_config()
    head = _output_layer(network)
    # A policy has a loss at every trained token, an attribute model at every response.
    is_policy = hasattr(network, "lm_head")
    rows = sum(len(pack.rows_N if is_policy else pack.responses) for pack in packs)
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    parts = {
        "linear": 6 * tokens * linear_weights(network),
        "head": 6 * rows * head.weight.numel(),
        "attention": 12 * config.num_hidden_layers * width * sum(visible_pairs(pack) for pack in packs),
    }
    return {**parts, "total": sum(parts.values())}


def linear_weights(network: PreTrainedModel) -> int:
    """Weights of all linear layers but the output layer."""
    head = _output_layer(network)
    return sum(
        module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear) and module is not head
    )


def visible_pairs(pack: Pack) -> int:
    """How many pairs (query, key) of a pack are visible: see the module's description."""
    pairs = 0
    for run in pack.runs:
        length = run.stop - run.start
        pairs += length * sum(stop - start for start, stop in run.prefix) + length * (length + 1) // 2
    return pairs


def product_rate(network: PreTrainedModel, rows: int, precision: str, square: int = 3072) -> dict[str, Any]:
    """The fastest matrix products of this machine in operations a second: that of squares, and those of the model's
    shapes with `rows` rows. `best` is the highest of all.
    """
    shapes = {tuple(module.weight.shape) for module in network.modules() if isinstance(module, nn.Linear)}
    sizes = [(square, square, square), *((rows, wide, high) for high, wide in sorted(shapes))]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    rates = {" x ".join(map(str, size)): _rate(*size, dtype) for size in dict.fromkeys(sizes)}
    return {"products": rates, "best": max(rates.values())}


def _rate(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    device = pick_device("auto")
    make = {"dtype": dtype, "device": device}
    a, b, out = torch.randn(m, k, **make), torch.randn(k, n, **make), torch.empty(m, n, **make)
    # Small products are timed several at a time, so that the clock and the call cost next to nothing.
    calls = min(20, max(1, (10**10 if device.type == "cpu" else 10**13) // (2 * m * k * n)))
    best = float("inf")
    for _ in range(_TRIES + 1):
        began = time.perf_counter()
        for _ in range(calls):
            torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * m * k * n * calls / best


def _output_layer(network: PreTrainedModel) -> nn.Linear:
    layer = network.lm_head if hasattr(network, "lm_head") else head_of(network)
    assert isinstance(layer, nn.Linear)
    return layer
