"""Keys and values that a network computed for tokens: of one row, and of a batch of rows.

Shapes: B rows, H heads for keys and values, T tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Keys and values [H, T, D] of each layer; empty before the first token.
States = tuple[tuple[Tensor, Tensor], ...]
_ROOM = 64


class GrowingLayer(DynamicLayer):
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


def token_bytes(states: States) -> int:
    """Bytes that the states of one token take."""
    return sum(keys.nbytes + values.nbytes for keys, values in states) // length(states)


def beginning(states: States, size: int) -> States:
    """The states of the first tokens, as a view."""
    return tuple((keys[:, :size], values[:, :size]) for keys, values in states)


def copied(states: States) -> States:
    """The same states in memory of their own."""
    return tuple((keys.clone(), values.clone()) for keys, values in states)
