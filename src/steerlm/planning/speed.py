"""How long a training takes, from the arithmetic that it does and a rate at which it is taken to be done."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from steerlm.parallel.balance import share
from steerlm.planning.architecture import Parameters
from steerlm.planning.hardware import Hardware
from steerlm.planning.workload import Workload
from steerlm.training.config import AttributeSettings, PolicySettings


@dataclass(frozen=True)
class Speed:
    """The pace of a training.

    flops               operations a token, of the forward and the backward pass with all that is computed twice
    formula             how they come about
    step_tokens         tree tokens of one optimiser step
    passes              packs that each data rank computes in a step
    busy                share of the time in which ranks do not wait for the one with the largest pack
    tokens_per_second   of all GPUs together
    steps               optimiser steps; None where the data are not at hand and max_steps is not set
    hours               for these steps
    """

    flops: float
    formula: str
    step_tokens: int
    passes: int
    busy: float
    tokens_per_second: float
    steps: int | None
    hours: float | None


def find_speed(
    config: PretrainedConfig,
    parameters: Parameters,
    settings: PolicySettings | AttributeSettings,
    workload: Workload,
    hardware: Hardware,
) -> Speed:
    """The speed at the utilisation that `hardware` states; ranks that wait for others come on top."""
    flops, formula = _flops(config, parameters, settings, workload)
    sizes = _cut_up(workload.step(settings), settings.pack_tokens)
    data_ranks = hardware.gpus // settings.tensor_parallel
    shares = share(sizes, settings.pack_tokens, data_ranks)
    # Ranks compute their packs in step: each pass takes as long as its largest pack.
    slowest = sum(max(sum(sizes[index] for index in pack) for pack in packs) for packs in zip(*shares, strict=True))
    tokens = sum(sizes)
    busy = tokens / (data_ranks * slowest)
    rate = hardware.gpus * hardware.tflops * 1e12 * hardware.utilisation * busy / flops
    steps = workload.steps(settings)
    return Speed(
        flops=flops,
        formula=formula,
        step_tokens=tokens,
        passes=len(shares[0]),
        busy=busy,
        tokens_per_second=rate,
        steps=steps,
        hours=None if steps is None else steps * tokens / rate / 3600,
    )


def _flops(
    config: PretrainedConfig, parameters: Parameters, settings: PolicySettings | AttributeSettings, workload: Workload
) -> tuple[float, str]:
    """Two operations a weight in the forward pass, two in the backward pass for the gradient of its input and, where
    it is trained, two for its own. Queries times keys and scores times values are four operations for each unit of
    all heads, layer and token seen, and eight in the backward pass.
    """
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * head_size
    again = int(settings.gradient_checkpointing)
    frozen = parameters.matrices - parameters.trained_matrices
    blocks = 2 * ((2 + again) * frozen + (3 + again) * parameters.trained_matrices)
    attention = 4 * (3 + again) * parameters.blocks * width * workload.seen
    flops = blocks + attention
    formula = f"{blocks:.3g} for the blocks' matrices + {attention:.3g} for attention to {workload.seen:,.0f} tokens"
    if isinstance(settings, PolicySettings):
        # Logits, the gradients of states and of the matrix; with foils the logits are computed twice.
        products = 4 if settings.contrast else 3
        head = 2 * products * text.vocab_size * text.hidden_size * workload.trained
        flops += head
        formula += f" + {head:.3g} for the logits of {workload.trained:.0%} of the tokens"
    return flops, formula


def _cut_up(sizes: list[int], budget: int) -> list[int]:
    """Trees beyond the budget are split."""
    pieces = []
    for size in sizes:
        pieces += [budget] * (size // budget) + ([size % budget] if size % budget else [])
    return pieces
