"""bfloat16 attention whose gradients are computed in float32, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from steerlm.attention import TreeLayout, use_tree_attention
from steerlm.cpu_attention import attend, is_for_float32_gradients
from steerlm.packing import lay_out
from steerlm.tokens import Segment, Span, TokenTree
from tiny import llama, spread

HEADS, KV_HEADS, SIZE = 6, 2, 16
LEAVES = [Segment((4, 5 + k, 6), (Span("response", 3),), 0, 1 + k, 3, weight=1.0) for k in range(2)]
PACK = lay_out([TokenTree("t", (Segment((1, 2, 3), (Span("user", 3),), -1, 0, 3), *LEAVES))])


def states(length: int, before: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of `length`, and keys and values of as many and `before` more."""
    torch.manual_seed(0)
    shapes = [(HEADS, length), (KV_HEADS, before + length), (KV_HEADS, before + length)]
    query, key, value = (torch.randn(1, heads, count, SIZE).bfloat16().requires_grad_() for heads, count in shapes)
    return query, key, value


def mask(length: int, before: int) -> Tensor | None:
    """As a run's: all that is before it, and itself causally."""
    if not before:
        return None
    return torch.arange(before + length)[None] <= torch.arange(before, before + length)[:, None]


def own(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(
        query, key, value, attn_mask=visible, is_causal=visible is None, scale=0.3, enable_gqa=True
    )


@pytest.mark.parametrize(("length", "before"), [(1, 0), (1, 5), (50, 0), (33, 90), (300, 40)])
def test_values_of_bfloat16_and_gradients_of_float32(length: int, before: int) -> None:
    inputs, visible = states(length, before), mask(length, before)
    towards = torch.randn(1, HEADS, length, SIZE).bfloat16()
    found, expected = attend(*inputs, visible, 0.3), own(*inputs, visible)
    assert torch.equal(found, expected)
    exact_inputs = [tensor.detach().float().requires_grad_() for tensor in inputs]
    exact = torch.autograd.grad(own(*exact_inputs, visible), exact_inputs, towards.float())
    gradients = torch.autograd.grad(found, inputs, towards)
    of_bfloat16 = torch.autograd.grad(expected, inputs, towards)
    for gradient, rough, right in zip(gradients, of_bfloat16, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.float(), right, rtol=0.02, atol=0.02)
        if length + before > 20:
            assert (gradient - right).norm() < 0.95 * (rough - right).norm()


def test_what_bfloat16_is_the_faster_for() -> None:
    short, long = (torch.zeros(1, 1, length, 8, dtype=torch.bfloat16) for length in (300, 800))
    assert is_for_float32_gradients(short, long, long)
    assert not is_for_float32_gradients(long, long, long)
    assert not is_for_float32_gradients(short.float(), long, long)
    other_size = torch.zeros(1, 1, 800, 4, dtype=torch.bfloat16)
    assert not is_for_float32_gradients(short, long, other_size)
    across = torch.zeros(1, 1, 8, 300, dtype=torch.bfloat16).transpose(2, 3)
    assert not is_for_float32_gradients(across, long, long)


class AttentionTypes(TorchDispatchMode):
    """Notes the type of the queries of every attention, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "flash_attention" in function.__name__:
            query = args[1 if "backward" in function.__name__ else 0]
            self.found.setdefault(function.__name__, set()).add(query.dtype)
        return function(*args, **(kwargs or {}))


def test_trainings_in_bfloat16_attend_so() -> None:
    """Rotary embeddings are in float32, also in a network whose products are not."""
    network = llama(16).train()
    use_tree_attention(network, "segments")
    ids, positions = torch.as_tensor(PACK.ids_T)[None], torch.as_tensor(PACK.positions_T)[None]
    with AttentionTypes() as seen:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(input_ids=ids, position_ids=positions, tree=TreeLayout(PACK)).logits
        logits.float().sum().backward()
    name = "_scaled_dot_product_flash_attention_for_cpu"
    assert seen.found == {f"{name}.default": {torch.bfloat16}, f"{name}_backward.default": {torch.float32}}


SMALL = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}


def test_values_of_another_size_than_keys() -> None:
    """Latent attention (arXiv 2405.04434), in bfloat16 as in float32."""
    config = DeepseekV3Config(**SMALL, **LATENT, num_key_value_heads=2, first_k_dense_replace=2, pad_token_id=0)
    network = spread(DeepseekV3ForCausalLM(config))
    use_tree_attention(network, "segments")
    ids = torch.as_tensor(PACK.ids_T)[None]
    inputs = {"input_ids": ids, "position_ids": torch.as_tensor(PACK.positions_T)[None], "tree": TreeLayout(PACK)}
    with torch.no_grad():
        expected = network(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = network(**inputs).logits
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_dropout_is_not_forgotten() -> None:
    network = llama(16, attention_dropout=0.5).train()
    use_tree_attention(network, "segments")
    ids, positions = torch.as_tensor(PACK.ids_T)[None], torch.as_tensor(PACK.positions_T)[None]
    with torch.autocast("cpu", torch.bfloat16):
        first, second = (network(input_ids=ids, position_ids=positions, tree=TreeLayout(PACK)).logits for _ in range(2))
    assert not torch.equal(first, second)
