"""One work item: the data in both forms, every contender in a process of its own, what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import apart, surroundings
from benchmarks.training import check, data, flops, ours, peers, profiling
from benchmarks.training.options import TASKS, Contender, Options, Prepared, Work
from benchmarks.training.results import Run, compared
from steerlm.models.base import resolve

_PEERS = ("trl", "datasets", "peft", "accelerate")


def measure(options: Options, work: Work, folder: Path) -> dict[str, Any]:
    """The record of a work item; `folder` takes what it needs on the way. Raises `SteerLMError` of all its parts."""
    kind, _ = TASKS[work]
    prepared = apart(options.threads, data.prepare, options, work, folder)
    figures = prepared.figures
    say(
        f"{work}: {figures['conversations']} conversations, {figures['trained_responses']} trained responses, "
        f"{figures['trees']['tokens']:,} tokens as trees, {figures['threads']['tokens']:,} as threads"
    )
    contenders = options.contenders_of(kind)
    record: dict[str, Any] = {"kind": kind, **figures, "batch_tokens": prepared.batch_tokens}
    if options.check_conversations:
        record["equal_work"] = apart(options.threads, check.summed_losses, options, prepared, folder)
    rates = [apart(options.threads, _rate, options)]
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for turn in range(options.repeat):
        # A machine may slow down as it works: the order turns round.
        for name in contenders if turn % 2 == 0 else reversed(contenders):
            run = apart(options.threads, _train, options, prepared, name, folder)
            runs[name].append(run)
            say(f"{work}: {name}: {run.epoch_seconds:.1f} s, {run.tokens:,} tokens, {run.peak_mb:,} MB")
    rates.append(apart(options.threads, _rate, options))
    if options.profile_steps and "steerlm" in contenders:
        record["profile"] = apart(options.threads, profiling.profile_steps, options, prepared, folder)
        if not record["profile"]:
            say(f"{work}: fewer than {options.profile_steps + 1} steps: too few to profile")
    return {
        **record,
        "contenders": compared(runs, figures, rates),
        "product_rates": rates,
        "options": options.model_dump(mode="json", exclude={"out", "work"}),
        **surroundings(*_PEERS),
    }


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def _train(options: Options, prepared: Prepared, contender: Contender, folder: Path) -> Run:
    if contender in ("steerlm", "steerlm-threads"):
        return ours.train(options, prepared, contender, folder)
    return peers.train(options, prepared, contender, folder)


def _rate(options: Options) -> dict[str, Any]:
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(resolve(options.base))
        network = AutoModelForCausalLM.from_config(config)
    return flops.product_rate(network, options.pack_tokens, options.precision)
