"""Blocks of the cache: shared, counted, given back."""

from __future__ import annotations

import random

import pytest

from steerlm.engines.blocks import BLOCK, Pool, Table
from steerlm.errors import EngineError


def test_forks_share_whole_blocks() -> None:
    pool = Pool(8)
    first = Table(pool)
    first.grow(2 * BLOCK + 5)
    second = first.fork(2 * BLOCK + 5)
    assert second.blocks == first.blocks[:2]
    second.grow(2 * BLOCK + 5)
    assert second.blocks[2] != first.blocks[2]
    assert pool.free == 4
    del first
    assert pool.free == 5
    del second
    assert pool.free == 8


def test_a_full_pool_says_so() -> None:
    table = Table(Pool(1))
    with pytest.raises(EngineError, match="cache of keys and values is full"):
        table.grow(BLOCK + 1)


def test_nothing_is_lost_or_given_twice() -> None:
    generator, pool = random.Random(0), Pool(64)
    tables: list[Table] = []
    for _ in range(500):
        if tables and generator.random() < 0.5:
            tables.pop(generator.randrange(len(tables)))
        elif tables and generator.random() < 0.6:
            parent = generator.randrange(len(tables))
            tables.append(tables[parent].fork(generator.randint(0, len(tables[parent].blocks) * BLOCK)))
        else:
            tables.append(Table(pool))
        if tables and pool.free > 2:
            tables[-1].grow(len(tables[-1].blocks) * BLOCK + generator.randint(0, 2 * BLOCK))
        used = {block for table in tables for block in table.blocks}
        assert len(used) + pool.free == 64
