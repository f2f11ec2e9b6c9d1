"""A plan: whether a training fits, what to change if not, how long it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from steerlm.planning.adapted import adapt
from steerlm.planning.architecture import Parameters, build, count_parameters, find_config
from steerlm.planning.changes import Change, ways_to_fit
from steerlm.planning.footprint import Footprint, footprint
from steerlm.planning.hardware import GIB, Hardware
from steerlm.planning.rehearsal import one_run
from steerlm.planning.speed import Speed, find_speed
from steerlm.planning.workload import Workload, find_workload
from steerlm.training.config import PolicySettings, TrainSettings, kind_of
from steerlm.training.steps import require_positions


@dataclass(frozen=True)
class Plan:
    """What a training takes on this hardware.

    footprint   memory of one rank with packs of pack_tokens tokens
    otherwise   the same with activations recomputed where the settings keep them, or kept where they recompute
    changes     where it does not fit, what makes it fit; empty if nothing was found
    """

    settings: TrainSettings
    hardware: Hardware
    parameters: Parameters
    footprint: Footprint
    otherwise: Footprint
    changes: list[Change]
    workload: Workload
    speed: Speed

    @property
    def total(self) -> float:
        """GiB of one rank, the reserve included."""
        return self.footprint.peak / GIB + self.hardware.reserve

    @property
    def fits(self) -> bool:
        return self.total <= self.hardware.memory

    def to_dict(self) -> dict[str, Any]:
        """For JSON: memory in bytes where it is counted, in GiB where it is given."""
        workload = {"tokens_per_conversation": self.workload.tokens, "source": self.workload.source}
        return {
            "kind": kind_of(self.settings),
            "base": self.settings.base,
            "hardware": asdict(self.hardware),
            "parameters": asdict(self.parameters),
            "bytes_per_rank": {
                **asdict(self.footprint),
                "logits": self.footprint.logits,
                "peak": self.footprint.peak,
            },
            "bytes_per_rank_with_gradient_checkpointing_reversed": self.otherwise.peak,
            "total_gib": self.total,
            "fits": self.fits,
            "changes_that_fit": [asdict(change) for change in self.changes],
            "workload": {**workload, "trained": self.workload.trained, "seen": self.workload.seen},
            "speed": {**asdict(self.speed), "flops_per_token": self.speed.flops},
        }


def make_plan(settings: TrainSettings, hardware: Hardware, tokens_per_conversation: float | None = None) -> Plan:
    """Plan a training. `tokens_per_conversation` goes over what is measured or assumed of the data.

    Raises `ModelError` where the base model's configuration cannot be found, `ConfigError` where settings and
    hardware do not go together.
    """
    settings.require_consistent()
    config = find_config(settings.base)

    def measure(settings: TrainSettings, gpus: int) -> Footprint:
        foils = isinstance(settings, PolicySettings) and settings.contrast > 0
        dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
        return footprint(config, settings, one_run(settings.pack_tokens, foils), gpus, dtype)

    with torch.device("meta"):
        network = build(config, settings)
        require_positions(network, settings)
        # Matrices in 4 bits have as many weights as before, in other shapes.
        adapt(network, settings.model_copy(update={"quantize": "none"}))
        parameters = count_parameters(network)
    found = measure(settings, hardware.gpus)
    reversed_ = settings.model_copy(update={"gradient_checkpointing": not settings.gradient_checkpointing})
    otherwise = measure(reversed_, hardware.gpus)
    fits = found.peak / GIB + hardware.reserve <= hardware.memory
    workload = find_workload(settings)
    if tokens_per_conversation is not None:
        workload = workload.scaled(tokens_per_conversation)
    return Plan(
        settings=settings,
        hardware=hardware,
        parameters=parameters,
        footprint=found,
        otherwise=otherwise,
        changes=[] if fits else ways_to_fit(settings, hardware, found, measure),
        workload=workload,
        speed=find_speed(config, parameters, settings, workload, hardware),
    )
