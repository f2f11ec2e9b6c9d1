"""What PyTorch's own allocator hands out on the CPU, as its profiler records it."""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time while `work` ran, over those that were before.

    What other threads free is not seen, and makes the figure too large.
    """
    gc.collect()  # what is left of earlier work would be freed while this is measured
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    recorded = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(recorded, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
