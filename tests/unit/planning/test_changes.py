"""What is advised fits, and is the first that does in the order told: here with a made-up memory of 10 GiB a pack of
4,096 tokens and 32 GiB of what is alive all the time, both shared as the real ones are.
"""

from __future__ import annotations

from typing import Any

import pytest

from steerlm.errors import ConfigError
from steerlm.planning.changes import Change, ways_to_fit
from steerlm.planning.footprint import Footprint
from steerlm.planning.hardware import GIB, Hardware
from steerlm.training.config import PolicySettings, TrainSettings


def made_up(settings: TrainSettings, gpus: int) -> Footprint:
    if settings.tensor_parallel > 4:
        raise ConfigError("only so many heads")
    steady = 32 * GIB / gpus
    if settings.lora_rank:
        steady /= 8 if settings.quantize == "4bit" else 4
    activations = 10 * GIB * settings.pack_tokens / 4096 / settings.tensor_parallel
    if settings.gradient_checkpointing:
        activations *= 0.5
    return Footprint(int(steady), 0, 0, 0, int(activations), 0, int(activations), 0, 0)


def ways(memory: float, gpus: int = 4, **settings: Any) -> list[Change]:
    chosen = PolicySettings(**{"pack_tokens": 4096, "context": 1024, **settings})
    hardware = Hardware(gpus, memory, 312, 0.4, reserve=1)
    return ways_to_fit(chosen, hardware, made_up(chosen, gpus), made_up)


@pytest.mark.parametrize(
    ("memory", "changes", "total"),
    [
        (14, {"gradient_checkpointing": True}, 8 + 5 + 1),
        (13, {"gradient_checkpointing": True, "pack_tokens": 2048}, 8 + 2.5 + 1),
        (10.5, {"gradient_checkpointing": True, "pack_tokens": 1024}, 8 + 1.25 + 1),
        (9.7, {"gradient_checkpointing": True, "pack_tokens": 1024, "tensor_parallel": 2}, 8 + 0.625 + 1),
    ],
)
def test_the_first_change_that_fits(memory: float, changes: dict[str, Any], total: float) -> None:
    assert ways(memory) == [Change(changes, 4, total)]


def test_a_pack_holds_a_response_with_its_foil() -> None:
    assert [change.settings["pack_tokens"] for change in ways(12, contrast=0.5)] == [2048]
    (first, *_) = ways(10.5, contrast=0.5)
    assert first.settings["pack_tokens"] == 2048
    assert first.settings["tensor_parallel"] == 2


def test_where_weights_alone_do_not_fit_there_are_more_gpus_or_an_adapter() -> None:
    """16 GiB of what is alive all the time on each of 2 GPUs, of which 9.5 have room: 8 GPUs have 4 each, and with an
    adapter 2 have.
    """
    more, adapter = ways(10.5, gpus=2)
    assert more == Change({"gradient_checkpointing": True}, 8, 4 + 5 + 1)
    assert adapter == Change({"gradient_checkpointing": True, "lora_rank": 16}, 2, 4 + 5 + 1)


def test_an_adapter_gets_more_gpus_or_a_base_in_4_bits_on_one() -> None:
    """8 GiB all the time, of which 7 have room: 4 on each of 2 GPUs, and in 4 bits on one."""
    more, four_bit = ways(8, gpus=1, lora_rank=16, gradient_checkpointing=True, pack_tokens=2048)
    assert more == Change({}, 2, 4 + 2.5 + 1)
    assert four_bit == Change({"lora_rank": 16, "quantize": "4bit"}, 1, 4 + 2.5 + 1)


def test_nothing_helps() -> None:
    assert ways(1.5, gpus=1, lora_rank=8, quantize="4bit") == []
