"""How long a training takes, from the arithmetic that it does and a rate at which it is taken to be done."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from steerlm.parallel.balance import share
from steerlm.planning.architecture import Parameters
from steerlm.planning.hardware import Hardware
from steerlm.planning.workload import Workload
from steerlm.training.config import PolicySettings, TrainSettings


@dataclass(frozen=True)
class Speed:
    """The pace of a training.

    work                operations a token by formula, of both passes with all that is computed twice
    step_tokens         tree tokens of one optimiser step
    passes              packs that each data rank computes in a step
    busy                share of the time in which ranks do not wait for the one with the largest pack
    tokens_per_second   of all GPUs together
    steps               optimiser steps; None where the data are not at hand and max_steps is not set
    hours               for these steps
    """

    work: dict[str, float]
    step_tokens: int
    passes: int
    busy: float
    tokens_per_second: float
    steps: int | None
    hours: float | None

    @property
    def flops(self) -> float:
        """Operations a token."""
        return sum(self.work.values())


def find_speed(
    config: PretrainedConfig,
    parameters: Parameters,
    settings: TrainSettings,
    workload: Workload,
    hardware: Hardware,
) -> Speed:
    """The speed at the utilisation that `hardware` states; ranks that wait for others come on top."""
    work = _work(config, parameters, settings, workload)
    sizes = _cut_up(workload.step(settings), settings.pack_tokens)
    data_ranks = hardware.gpus // settings.tensor_parallel
    shares = share(sizes, settings.pack_tokens, data_ranks)
    # Ranks compute their packs in step: each pass takes as long as its largest pack.
    slowest = sum(max(sum(sizes[index] for index in pack) for pack in packs) for packs in zip(*shares, strict=True))
    tokens = sum(sizes)
    busy = tokens / (data_ranks * slowest)
    rate = hardware.gpus * hardware.tflops * 1e12 * hardware.utilisation * busy / sum(work.values())
    steps = workload.steps(settings)
    return Speed(
        work=work,
        step_tokens=tokens,
        passes=len(shares[0]),
        busy=busy,
        tokens_per_second=rate,
        steps=steps,
        hours=None if steps is None else steps * tokens / rate / 3600,
    )


def _work(
    config: PretrainedConfig, parameters: Parameters, settings: TrainSettings, workload: Workload
) -> dict[str, float]:
    """Two operations a weight in the forward pass, two in the backward pass for the gradient of its input and, where
    it is trained, two for its own. Queries times keys and scores times values are four operations for each unit of
    all heads, layer and token seen, and eight in the backward pass. Recomputing adds what the forward pass takes.
    """
    text = config.get_text_config()
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    again = int(settings.gradient_checkpointing)
    frozen, trained = parameters.matrices - parameters.trained_matrices, parameters.trained_matrices
    work = {
        f"{2 * (2 + again)} x {frozen:.4g} frozen weights": 2.0 * (2 + again) * frozen,
        f"{2 * (3 + again)} x {trained:.4g} trained weights": 2.0 * (3 + again) * trained,
        f"{4 * (3 + again)} x {parameters.blocks} layers x {width} x {workload.seen:.0f} seen": (
            4.0 * (3 + again) * parameters.blocks * width * workload.seen
        ),
    }
    if isinstance(settings, PolicySettings):
        # Logits, the gradients of states and of the matrix where it is trained; with foils the logits twice.
        each = 2 * (2 + (settings.lora_rank is None) + (settings.contrast > 0))
        size = text.vocab_size * text.hidden_size
        work[f"{each} x {text.vocab_size} x {text.hidden_size} x {workload.trained:.0%} of them"] = (
            each * size * workload.trained
        )
    return {formula: operations for formula, operations in work.items() if operations}


def _cut_up(sizes: list[int], budget: int) -> list[int]:
    """Trees beyond the budget are split."""
    pieces = []
    for size in sizes:
        pieces += [budget] * (size // budget) + ([size % budget] if size % budget else [])
    return pieces
