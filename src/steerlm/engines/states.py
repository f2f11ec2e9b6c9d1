"""Keys and values that a network computed for tokens: of one row, of a batch of rows, and kept for later.

Shapes: B rows, H heads for keys and values, T tokens, D head dimension.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Keys and values [H, T, D] of each layer; empty before the first token.
States = tuple[tuple[Tensor, Tensor], ...]
Ids = npt.NDArray[np.int64]
_ROOM = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of a batch with room for tokens to come, so that a step copies its own tokens only.

    It keeps all tokens where a layer attends to the last few: the network's mask sees to that, and a row can be cut
    and continued anywhere.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor]

    def hold(self, keys: Tensor, values: Tensor, used: int) -> None:
        """Take over buffers [B, H, room, D] whose first `used` columns are filled."""
        self.lazy_initialization(keys, values)
        self._buffers = (keys, values)
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        if not self.is_initialized:
            self.hold(_larger(key_states, end), _larger(value_states, end), 0)
        elif self._buffers[0].shape[-2] < end:
            keys, values = self._buffers
            self.hold(_larger(keys[:, :, :used], end), _larger(values[:, :, :used], end), used)
        keys, values = self._buffers
        keys[:, :, used:end], values[:, :, used:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values


def _larger(states_BHTD: Tensor, room: int) -> Tensor:
    """A buffer with these states at its beginning."""
    batch, heads, used, size = states_BHTD.shape
    buffer = states_BHTD.new_empty((batch, heads, max(room, used) + _ROOM, size))
    buffer[:, :, :used] = states_BHTD
    return buffer


def stack(rows: Sequence[States]) -> Cache:
    """A batch of rows, aligned at their ends, with zeros before the shorter ones."""
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    width = max(length(states) for states in rows)
    for index in range(max(map(len, rows))):
        layer = GrowingLayer()
        known = [states[index] if states else None for states in rows]
        keys = _aligned([pair and pair[0] for pair in known], width)
        layer.hold(keys, _aligned([pair and pair[1] for pair in known], width), width)
        cache.layers.append(layer)
    return cache


def _aligned(rows: Sequence[Tensor | None], width: int) -> Tensor:
    some = next(row for row in rows if row is not None)
    buffer = some.new_zeros((len(rows), some.shape[0], width + _ROOM, some.shape[-1]))
    for number, row in enumerate(rows):
        if row is not None:
            buffer[number, :, width - row.shape[-2] : width] = row
    return buffer


def row_states(cache: Cache, row: int, start: int, end: int) -> States:
    """A row's part of a batch, as a view."""
    layers = cast(list[Any], cache.layers)
    return tuple((layer.keys[row, :, start:end], layer.values[row, :, start:end]) for layer in layers)


def length(states: States) -> int:
    """How many tokens there are states of."""
    return states[0][0].shape[-2] if states else 0


class StateStore:
    """States of rows that are no longer computed with, of at most `room` tokens; the least recently used go first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: OrderedDict[int, tuple[Ids, States]] = OrderedDict()
        self._next = 0
        self.tokens = 0

    def put(self, ids: Sequence[int], states: States) -> None:
        """Keep a copy of the states of `ids`."""
        known = np.asarray(ids, dtype=np.int64)
        if len(known) > self._room or any(_shared(known, other) == len(known) for other, _ in self._kept.values()):
            return
        for name in [name for name, (other, _) in self._kept.items() if _shared(known, other) == len(other)]:
            self._forget(name)  # what it knows is the beginning of this
        while self.tokens + len(known) > self._room:
            self._forget(next(iter(self._kept)))
        self._kept[self._next] = (known, tuple((keys.clone(), values.clone()) for keys, values in states))
        self._next += 1
        self.tokens += len(known)

    def longest(self, ids: Sequence[int]) -> States:
        """States of the longest known beginning of `ids`, short of its last token."""
        wanted = np.asarray(ids[:-1], dtype=np.int64)
        best, name = max(((_shared(wanted, known), name) for name, (known, _) in self._kept.items()), default=(0, -1))
        if not best:
            return ()
        self._kept.move_to_end(name)
        return tuple((keys[:, :best], values[:, :best]) for keys, values in self._kept[name][1])

    def clear(self) -> None:
        self._kept.clear()
        self.tokens = 0

    def _forget(self, name: int) -> None:
        ids, _ = self._kept.pop(name)
        self.tokens -= len(ids)


def _shared(one: Ids, other: Ids) -> int:
    """How many ids two sequences have in common at their beginning."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size
