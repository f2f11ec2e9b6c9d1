"""What to change where a training does not fit, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from steerlm.errors import ConfigError
from steerlm.planning.footprint import Footprint
from steerlm.planning.hardware import GIB, Hardware
from steerlm.training.config import PolicySettings, TrainSettings

_LORA_RANK = 16
_MOST_GPUS = 4096
_MOST_PARTS = 8
"""Tensor parallelism exchanges activations in every block, for which only the links inside a node are fast enough."""


@dataclass(frozen=True)
class Change:
    """Settings, and a number of GPUs, with which a training fits, and the memory that it then takes."""

    settings: dict[str, Any]
    gpus: int
    total: float
    """GiB"""


def ways_to_fit(
    settings: TrainSettings, hardware: Hardware, now: Footprint, measure: Callable[[TrainSettings, int], Footprint]
) -> list[Change]:
    """The first that fits of: recomputed activations, smaller packs, matrices split over more ranks, one after the
    other and together. Where none does, more GPUs; and an adapter, if need be on one GPU with the base in 4 bits.

    `now` is the footprint as things stand, `measure` gives that of other settings and another number of GPUs.
    """
    room = (hardware.memory - hardware.reserve) * GIB

    def tried(changes: dict[str, Any], gpus: int) -> Change | None:
        try:
            found = measure(settings.model_copy(update=changes), gpus)
        except ConfigError:  # such as heads that cannot be divided by so many ranks
            return None
        return Change(changes, gpus, found.peak / GIB + hardware.reserve) if found.peak <= room else None

    if now.steady < room:
        for changes in _smaller(settings, hardware.gpus):
            if change := tried(changes, hardware.gpus):
                return [change]
    leaner = {} if settings.gradient_checkpointing else {"gradient_checkpointing": True}
    found = []
    gpus = 2 * hardware.gpus
    while gpus <= _MOST_GPUS and settings.quantize == "none":
        # What is alive all the time is shared by all; without room for that there is none for the rest.
        if now.steady * hardware.gpus / gpus < room and (change := tried(leaner, gpus)):
            found.append(change)
            break
        gpus *= 2
    if settings.quantize == "none":
        rank = settings.lora_rank or _LORA_RANK
        adapter = {**leaner, "lora_rank": rank}
        alone = {**adapter, "quantize": "4bit"} | ({"tensor_parallel": 1} if settings.tensor_parallel > 1 else {})
        if change := (None if settings.lora_rank else tried(adapter, hardware.gpus)) or tried(alone, 1):
            found.append(change)
    return found


def _smaller(settings: TrainSettings, gpus: int) -> Iterator[dict[str, Any]]:
    changes: dict[str, Any] = {}
    if not settings.gradient_checkpointing:
        changes = {"gradient_checkpointing": True}
        yield changes
    foils = isinstance(settings, PolicySettings) and settings.contrast > 0
    least = settings.context * (2 if foils else 1)
    tokens = settings.pack_tokens
    while tokens > least:
        tokens = max(least, tokens // 2)
        changes = {**changes, "pack_tokens": tokens}
        yield changes
    parts = 2 * settings.tensor_parallel
    while parts <= _MOST_PARTS and gpus % parts == 0:
        changes = {**changes, "tensor_parallel": parts}
        yield changes
        parts *= 2
