"""Attention on CPUs in bfloat16, with gradients computed in float32.

PyTorch's backward pass for CPUs takes short queries in blocks of 32 or 64 rows. In bfloat16 each block's products go
through oneDNN, which makes, looks up and keeps a kernel for each length: for queries of a few hundred tokens that is
slower than float32, and takes memory for every new length.

Shapes: H heads, K key-value heads, L queries, P keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NAME = "_scaled_dot_product_flash_attention_for_cpu"  # not of PyTorch's public interface
_forward: Any = getattr(torch.ops.aten, _NAME, None)
_backward: Any = getattr(torch.ops.aten, f"{_NAME}_backward", None)
# PyTorch takes longer queries in blocks of 256 rows, which bfloat16 is the faster for.
_LONG = 768


def is_for_float32_gradients(query_1HLD: Tensor, key_1KPD: Tensor, value_1KPD: Tensor) -> bool:
    """Whether `attend` can attend from these queries, and is the faster way."""
    states = (query_1HLD, key_1KPD, value_1KPD)
    return (
        query_1HLD.device.type == "cpu"
        and query_1HLD.shape[2] < _LONG
        and all(tensor.dtype == torch.bfloat16 and tensor.stride(3) == 1 for tensor in states)
        and query_1HLD.shape[3] == key_1KPD.shape[3] == value_1KPD.shape[3]
        and None not in (_forward, _backward)
    )


def attend(
    query_1HLD: Tensor, key_1KPD: Tensor, value_1KPD: Tensor, visible_LP: Tensor | None, scale: float | None
) -> Tensor:
    """`scaled_dot_product_attention` of bfloat16 tensors, [1, H, L, D]; without `visible_LP`, causal."""
    return _Attention.apply(query_1HLD, key_1KPD, value_1KPD, visible_LP, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, visible_LP: Tensor | None, scale: float | None
    ) -> Tensor:
        options = {"is_causal": visible_LP is None, "scale": scale}
        output, logsumexp = _forward(query, key, value, attn_mask=_added(visible_LP, query.dtype), **options)
        ctx.save_for_backward(query, key, value, output, logsumexp, visible_LP)
        ctx.options = options
        return output  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *computed, logsumexp, visible_LP = ctx.saved_tensors
        query, key, value, output = (tensor.float() for tensor in computed)
        mask = _added(visible_LP, torch.float32)
        found = _backward(
            gradients[0].float(), query, key, value, output, logsumexp, 0.0, attn_mask=mask, **ctx.options
        )
        return *(gradient.to(computed[0].dtype) for gradient in found), None, None


def _added(visible_LP: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores."""
    if visible_LP is None:
        return None
    return torch.zeros(visible_LP.shape, dtype=dtype, device=visible_LP.device).masked_fill_(~visible_LP, -torch.inf)
