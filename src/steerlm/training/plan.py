"""Which conversations make up which optimiser step: a pure function of the data, the settings and the seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step: its epoch and the indices of its conversations."""

    epoch: int
    members: tuple[int, ...]


def plan_steps(
    sizes: Sequence[int],
    epochs: float,
    seed: int,
    batch_tokens: int,
    batch_conversations: int | None = None,
    max_steps: int | None = None,
) -> list[Step]:
    """Shuffle each epoch anew and cut it into steps of about `batch_tokens` tokens (or of whole conversations).

    `sizes` are the conversations' tree tokens. A step takes conversations until the next would exceed the batch,
    and at least one. Since a step is made of conversations, not of packs, how they are packed cannot change it.
    """
    steps: list[Step] = []
    for epoch in range(math.ceil(epochs)):
        if max_steps is not None and len(steps) >= max_steps:
            break
        order = list(range(len(sizes)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        # Rounded first, as 1.1 - 1 is a little more than a tenth.
        order = order[: math.ceil(round(len(order) * min(1.0, epochs - epoch), 6))]
        members: list[int] = []
        tokens = 0
        for index in order:
            full = len(members) == batch_conversations if batch_conversations else tokens + sizes[index] > batch_tokens
            if members and full:
                steps.append(Step(epoch, tuple(members)))
                members, tokens = [], 0
            members.append(index)
            tokens += sizes[index]
        if members:
            steps.append(Step(epoch, tuple(members)))
    return steps[:max_steps]


def learning_rate(step: int, total: int, peak: float, low: float, warmup: int, schedule: str) -> float:
    """The learning rate of step `step` (counted from 0) of `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, total - warmup)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))


def random_for(*key: object) -> random.Random:
    """A generator of its own for each (seed, epoch, conversation, ...): resuming needs no state of it."""
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
