"""Where the time of our training goes, by PyTorch's profiler on a few steps of the real loop.

Every operation belongs to the first of these that holds of it or of what called it:

    data            rendering, laying out packs, attention tables
    optimizer       the optimiser's step, gradient norm and clipping
    attention       tree attention, its copies of keys and values included, and its backward pass
    cross-entropy   softmax and likelihood of the trained tokens, without the output layer's product
    products        matrix products of all linear layers
    rest            all other operations (norms, activations, embeddings, residuals), and Python between operations
"""

from __future__ import annotations

import functools
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import steerlm.attention
import steerlm.dialects
import steerlm.packing
from benchmarks.measure import StepClock
from benchmarks.training import ours
from benchmarks.training.options import Options, Prepared

PARTS = ("products", "attention", "cross-entropy", "optimizer", "data", "rest")
_RANGE = "benchmark: "
_DATA: tuple[tuple[Any, str], ...] = (
    (steerlm.dialects.Renderer, "tree"),
    (steerlm.packing, "lay_out"),
    (steerlm.attention.TreeLayout, "run_mask"),
)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul")
_CROSS_ENTROPY = ("log_softmax", "linearnll", "linearweightednll")


def profile_steps(options: Options, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Profile `options.profile_steps` steps after the first one.

    Returns seconds and shares of `PARTS`, and the operations that take longest.
    """
    profiler = profile(activities=[ProfilerActivity.CPU])
    times: list[float] = []

    def on_step(done: int) -> None:
        if done == 1:
            profiler.start()
            times.append(time.perf_counter())
        elif done == 1 + options.profile_steps:
            times.append(time.perf_counter())
            profiler.stop()

    with _named(), StepClock(on_step):
        ours.run(options, prepared, "steerlm", folder / "profile", max_steps=1 + options.profile_steps)
    shutil.rmtree(folder / "profile")
    if len(times) == 1:  # the data ended before the steps that were asked for
        profiler.stop()
        return {}
    return _summary(profiler, times[1] - times[0])


def _summary(profiler: profile, elapsed: float) -> dict[str, Any]:
    events = profiler.events() or []
    attention = {
        event.sequence_nr for event in events if event.sequence_nr >= 0 and _part_by_range(event) == "attention"
    }
    seconds = dict.fromkeys(PARTS, 0.0)
    longest: dict[str, float] = defaultdict(float)
    for event in events:
        own = event.self_cpu_time_total / 1e6
        seconds[_part(event, attention)] += own
        longest[event.name] += own
    # Whatever no operation accounts for is Python.
    seconds["rest"] += max(0.0, elapsed - sum(seconds.values()))
    total = sum(seconds.values())
    top = sorted(longest.items(), key=lambda item: -item[1])[:12]
    return {
        "seconds": seconds,
        "shares": {part: part_seconds / total for part, part_seconds in seconds.items()},
        "elapsed": elapsed,
        "operations": dict(top),
    }


def _part(event: FunctionEvent, attention: set[int]) -> str:
    """`attention` are the sequence numbers of forward operations within attention; backward ones carry the same."""
    if found := _part_by_range(event):
        return found
    for caller in _callers(event):
        if caller.name.startswith("autograd::engine") and caller.sequence_nr in attention:
            return "attention"
    names = [caller.name.lower() for caller in _callers(event)]
    if any(name in _PRODUCTS for name in names):
        return "products"
    if any(mark in name for name in names for mark in _CROSS_ENTROPY):
        return "cross-entropy"
    return "rest"


def _part_by_range(event: FunctionEvent) -> str | None:
    for caller in _callers(event):
        if caller.name.startswith(_RANGE):
            return caller.name.removeprefix(_RANGE)
        if caller.name.startswith("Optimizer."):
            return "optimizer"
    return None


def _callers(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event itself, and what called it, innermost first."""
    caller: FunctionEvent | None = event
    while caller is not None:
        yield caller
        caller = caller.cpu_parent


@contextmanager
def _named() -> Iterator[None]:
    """Give ranges of the profile names by wrapping functions that have none of their own."""
    forms = {name: function for name, function in ALL_ATTENTION_FUNCTIONS.items() if name.startswith("steerlm_")}
    patches = [patch.object(owner, name, _in_range("data", getattr(owner, name))) for owner, name in _DATA]
    patches.append(patch.object(nn.utils, "clip_grad_norm_", _in_range("optimizer", nn.utils.clip_grad_norm_)))
    for each in patches:
        each.start()
    for name, function in forms.items():
        AttentionInterface.register(name, _in_range("attention", function))
    try:
        yield
    finally:
        for each in patches:
            each.stop()
        for name, function in forms.items():
            AttentionInterface.register(name, function)


def _in_range(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        with record_function(_RANGE + part):
            return function(*arguments, **keywords)

    return wrapped
