"""Which conversations make up which optimiser step: a pure function of the data, the settings and the seed."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the data: conversation `at` of the order of epoch `epoch`."""

    epoch: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One optimiser step: its epoch, what its conversations (and those passed over before the next step) were rendered
    to, and where the next step begins.
    """

    epoch: int
    items: list[T] = field(default_factory=list)
    after: Position = Position()


def plan_steps(
    count: int,
    render: Callable[[int, int], tuple[int, T]],
    epochs: float,
    seed: int,
    batch_tokens: int,
    batch_conversations: int | None = None,
    start: Position = Position(),
) -> Iterator[Step[T]]:
    """Shuffle each epoch anew and cut it into steps of about `batch_tokens` tokens (or of whole conversations).

    `render(index, epoch)` gives the size in tree tokens of conversation `index` of `count`, and what it was rendered
    to; those of size 0 are not trained on and count for nothing. A step takes conversations until the next would
    exceed the batch, and at least one. Since a step is made of conversations, not of packs, how they are packed
    cannot change it. Nothing is rendered before it is needed, and a plan from `start`, where a step of another plan
    began, goes on like that one.
    """
    for epoch in range(start.epoch, math.ceil(epochs)):
        order = epoch_order(count, epochs, epoch, seed)
        items: list[T] = []
        taken = tokens = 0
        for at in range(start.at if epoch == start.epoch else 0, len(order)):
            size, item = render(int(order[at]), epoch)
            full = taken == batch_conversations if batch_conversations else tokens + size > batch_tokens
            if size and taken and full:
                yield Step(epoch, items, Position(epoch, at))
                items, taken, tokens = [], 0, 0
            items.append(item)
            taken += size > 0
            tokens += size
        if taken:
            yield Step(epoch, items, Position(epoch + 1))


def epoch_order(count: int, epochs: float, epoch: int, seed: int) -> NDArray[np.int64]:
    """The conversations of an epoch in their order; of a last, partial epoch only its part."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    # Rounded first, as 1.1 - 1 is a little more than a tenth.
    return order[: math.ceil(round(count * min(1.0, epochs - epoch), 6))]


def fraction_done(position: Position, count: int, epochs: float) -> float:
    """The part of all conversations of a plan that come before `position`."""
    return min(1.0, (position.epoch * count + position.at) / max(1.0, count * epochs))


def learning_rate(step: int, done: float, peak: float, low: float, warmup: int, schedule: str) -> float:
    """The learning rate of step `step` (counted from 0), before which the fraction `done` of the training lies."""
    rate = peak if schedule == "constant" else low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))
    return rate * min(1.0, (step + 1) / (warmup + 1))


def random_for(*key: object) -> random.Random:
    """A generator of its own for each (seed, epoch, conversation, ...): resuming needs no state of it."""
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
