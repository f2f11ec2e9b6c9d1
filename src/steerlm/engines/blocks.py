"""Memory for keys and values in blocks, which rows share: what a paged network computes with."""

from __future__ import annotations

from collections.abc import Sequence

from steerlm.errors import EngineError

BLOCK = 32
"""Tokens of a block."""


def blocks_for(tokens: int) -> int:
    """How many blocks so many tokens take."""
    return -(-tokens // BLOCK)


class Pool:
    """All blocks, and how many tables use each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._users = [0] * size
        # The block freed last is taken next: memory that was never needed stays untouched.
        self._free = list(range(size - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        if not self._free:
            raise EngineError(
                "the cache of keys and values is full; give it more memory or the engine shorter requests"
            )
        block = self._free.pop()
        self._users[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)


class Table:
    """The blocks of one row, in order. Its hold on them ends with it."""

    def __init__(self, pool: Pool, blocks: Sequence[int] = ()) -> None:
        self.blocks = list(blocks)
        self._pool = pool

    def __del__(self) -> None:
        self._pool.release(self.blocks)

    def missing(self, tokens: int) -> int:
        """How many blocks it lacks for so many tokens."""
        return blocks_for(tokens) - len(self.blocks)

    def grow(self, tokens: int) -> None:
        """Take the blocks that it lacks."""
        for _ in range(self.missing(tokens)):
            self.blocks.append(self._pool.take())

    def fork(self, tokens: int) -> Table:
        """A table that begins with the first tokens of this one, as many as fill whole blocks."""
        whole = self.blocks[: tokens // BLOCK]
        self._pool.share(whole)
        return Table(self._pool, whole)

    def hold(self, place: int) -> Table:
        """A hold on one block of this table, for as long as it is read, whatever becomes of the others."""
        block = self.blocks[place : place + 1]
        self._pool.share(block)
        return Table(self._pool, block)
