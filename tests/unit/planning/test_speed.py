"""Operations by the usual rules, and ranks that wait for each other."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from steerlm.planning.architecture import Parameters
from steerlm.planning.hardware import Hardware
from steerlm.planning.speed import Speed, find_speed
from steerlm.planning.workload import Workload
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings

CONFIG = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8)
PARAMETERS = Parameters(
    total=2_000_000,
    trainable=2_000_000,
    embeddings=64_000,
    head=64_000,
    blocks=4,
    matrices=10**6,
    trained_matrices=10**6,
)
WORKLOAD = Workload(sizes=(100, 300), trained=0.5, seen=50, source="test")


def speed(settings: TrainSettings, gpus: int = 1, parameters: Parameters = PARAMETERS, **changes: Any) -> Speed:
    hardware = Hardware(gpus, 80, tflops=1e-6, utilisation=0.5, reserve=0)
    return find_speed(CONFIG, parameters, settings, WORKLOAD, hardware)


def test_six_operations_a_weight() -> None:
    """6 N; attention: 4 layers of 64 units see 50 tokens, 4 operations forward and 8 backward; no logits."""
    assert speed(AttributeSettings()).flops == 6e6 + 12 * 4 * 64 * 50


def test_recomputing_adds_a_forward_pass() -> None:
    assert speed(AttributeSettings(gradient_checkpointing=True)).flops == 8e6 + 16 * 4 * 64 * 50


def test_logits_are_those_of_trained_tokens() -> None:
    """Three products with the matrix of 1000 x 64 for half of the tokens; with foils one more."""
    without = speed(AttributeSettings()).flops
    assert speed(PolicySettings()).flops == without + 6 * 64_000 / 2
    assert speed(PolicySettings(contrast=1.0)).flops == without + 8 * 64_000 / 2


def test_frozen_weights_have_no_gradients() -> None:
    adapted = Parameters(
        total=2_010_000,
        trainable=10**4,
        embeddings=64_000,
        head=64_000,
        blocks=4,
        matrices=1_010_000,
        trained_matrices=10**4,
    )
    found = speed(PolicySettings(lora_rank=4), parameters=adapted)
    assert found.flops == 4e6 + 6e4 + 12 * 4 * 64 * 50 + 4 * 64_000 / 2


def test_time_is_work_over_rate() -> None:
    """Two conversations of 400 tokens; half of a million operations a second."""
    found = speed(AttributeSettings(batch_conversations=2, max_steps=9))
    assert found.step_tokens == 400
    assert found.busy == 1
    assert found.tokens_per_second == pytest.approx(5e5 / found.flops)
    assert found.hours == pytest.approx(9 * 400 * found.flops / 5e5 / 3600)


def test_ranks_wait_for_the_largest_pack() -> None:
    """100 and 300 tokens on two ranks: one of them waits for two thirds of the time."""
    found = speed(AttributeSettings(batch_conversations=2), gpus=2)
    assert found.passes == 1
    assert found.busy == pytest.approx(400 / 600)
    split = speed(AttributeSettings(batch_conversations=2, tensor_parallel=2), gpus=2)
    assert split.busy == 1
    assert split.tokens_per_second == pytest.approx(found.tokens_per_second * 1.5)


def test_without_steps_there_are_no_hours() -> None:
    found = speed(AttributeSettings())
    assert found.steps is None
    assert found.hours is None
