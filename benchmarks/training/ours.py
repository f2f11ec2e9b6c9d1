"""Our own training, on trees or on flattened threads."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure import PassLengths, PeakWhereComputed, StepClock, resident_mb
from benchmarks.training.options import Contender, Options, Prepared
from benchmarks.training.results import Run
from steerlm.files import read_records
from steerlm.models.load import SteerModel
from steerlm.training.attribute_model import AttributeTask
from steerlm.training.config import AttributeSettings, PolicySettings
from steerlm.training.policy import PolicyTask
from steerlm.training.run import train_attribute_model, train_policy
from steerlm.training.task import Task

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
CLIP = 1.0
_NEVER = 10**9


def train(options: Options, prepared: Prepared, contender: Contender, folder: Path) -> Run:
    """Train for one epoch, measured."""
    out = folder / "ours"
    resident = resident_mb()
    began = time.perf_counter()
    with PeakWhereComputed() as memory, StepClock() as clock, PassLengths() as computed:
        run(options, prepared, contender, out)
    seconds = time.perf_counter() - began
    steps = [record for _, record in read_records(out / "metrics.jsonl") if record["kind"] == "train"]
    shutil.rmtree(out)
    return Run(
        seconds=seconds,
        epoch_seconds=clock.epoch_seconds,
        first_step_seconds=clock.first_step_seconds,
        steps=len(clock.ends),
        passes=sum(step["packs"] for step in steps),
        tokens=sum(step["tokens"] for step in steps),
        computed_tokens=sum(computed.lengths),
        loss=fmean(step["loss"] for step in steps),
        peak_mb=memory.peak_mb,
        resident_before_mb=resident,
    )


def run(
    options: Options, prepared: Prepared, contender: Contender, out: Path, max_steps: int | None = None
) -> SteerModel:
    """One epoch of ours, or its first steps."""
    own: dict[str, Any] = {
        "data": [prepared.trees if contender == "steerlm" else prepared.threads],
        "out": out,
        "base": str(prepared.start),
        "batch_tokens": prepared.batch_tokens[contender],
        "max_steps": max_steps,
    }
    if prepared.kind == "policy":
        return train_policy(_policy_settings(options, contender, **own))
    return train_attribute_model(_attribute_settings(options, **own))


def make_task(model: SteerModel, options: Options, contender: Contender) -> Task:
    """The task of `run`, to render and to check with."""
    if model.info.kind == "policy":
        return PolicyTask(model, _policy_settings(options, contender))
    return AttributeTask(model, _attribute_settings(options))


def _policy_settings(options: Options, contender: Contender, **own: Any) -> PolicySettings:
    return PolicySettings(
        labels="ratings-first",
        level_tokens=options.level_tokens,
        # A flattened thread trains each of its responses once; a tree has them once and must weigh them.
        thread_weights=contender == "steerlm",
        **_common(options),
        **own,
    )


def _attribute_settings(options: Options, **own: Any) -> AttributeSettings:
    return AttributeSettings(head="random", **_common(options), **own)


def _common(options: Options) -> dict[str, Any]:
    return {
        "context": options.context,
        "pack_tokens": options.pack_tokens,
        "validation_fraction": 0.0,
        "epochs": 1,
        "learning_rate": options.learning_rate,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": WEIGHT_DECAY,
        "betas": BETAS,
        "clip": CLIP,
        "precision": options.precision,
        "compile": options.compile,
        "seed": options.seed,
        "validate_every": _NEVER,
        "checkpoint_every": _NEVER,
    }
