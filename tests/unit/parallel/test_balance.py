"""Packs shared among ranks: equally many, of like size, nothing lost, nothing counted twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlm.errors import ConfigError
from steerlm.packing import lay_out, pack
from steerlm.parallel.balance import blank, is_blank, share, share_packs
from steerlm.tokens import Segment, Span, TokenTree


def tree(name: str, size: int, foil: bool = False) -> TokenTree:
    def response(number: int, foil_of: int = -1) -> Segment:
        spans = (Span("marker", 1), Span("response", size - 2), Span("end", 1))
        return Segment(tuple(range(size)), spans, -1, number, size - 1, weight=1.0, foil_of=foil_of)

    return TokenTree(name, (response(0), response(0, 0)) if foil else (response(0),))


def on(rank: int, world: int) -> Any:
    return SimpleNamespace(data_rank=rank, data_world=world)


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(SIZES, st.integers(50, 120), st.integers(1, 9))
def test_shares_are_a_partition_within_the_budget(sizes: list[int], budget: int, world: int) -> None:
    shares = share(sizes, budget, world)
    assert len(shares) == world
    assert len({len(packs) for packs in shares}) == 1
    found = Counter(index for packs in shares for members in packs for index in members)
    assert found == Counter(range(len(sizes)))
    loads = [[sum(sizes[index] for index in members) for members in packs] for packs in shares]
    assert max(max(load) for load in loads) <= budget
    # What is computed together is alike: the least of one turn is no less than the most of the next.
    turns = [sorted(turn) for turn in zip(*loads, strict=True)]
    assert all(before[0] >= after[-1] for before, after in pairwise(turns))


@given(SIZES, st.integers(50, 120), st.integers(2, 9))
def test_packs_are_as_even_as_their_items_allow(sizes: list[int], budget: int, world: int) -> None:
    """Graham's argument: when the last item went into the fullest pack, no pack was emptier than that one."""
    packs = [members for packs in share(sizes, budget, world) for members in packs]
    loads = [sum(sizes[index] for index in members) for members in packs]
    smallest = min(sizes[index] for index in packs[loads.index(max(loads))])
    # Unless evenness found no room, where first fit filled what it could.
    assert max(loads) - smallest <= min(loads) or max(loads) > budget - max(sizes)
    assert share(sizes, budget, world) == share(list(sizes), budget, world)


@given(SIZES, st.integers(50, 120), st.integers(1, 9))
def test_as_few_passes_as_first_fit_allows(sizes: list[int], budget: int, world: int) -> None:
    fewest = len(pack([tree(str(index), max(3, size)) for index, size in enumerate(sizes)], budget))
    passes = len(share([max(3, size) for size in sizes], budget, world)[0])
    assert passes == -(-fewest // world)


def test_first_fit_where_the_emptiest_first_finds_no_room() -> None:
    """In two packs of 12, the emptiest first lays 7 4 | 5 4 and has no room for the last 4; 7 5 | 4 4 4 fits."""
    assert share([7, 5, 4, 4, 4], 12, 2) == [[[0, 1]], [[2, 3, 4]]]


def test_a_rank_without_trees_computes_what_does_not_count() -> None:
    trees = [tree("big", 9), tree("small", 5, foil=True)]
    packs = [share_packs(trees, 20, on(rank, 4)) for rank in range(4)]
    assert [len(mine) for mine in packs] == [1, 1, 1, 1]
    assert [is_blank(mine[0]) for mine in packs] == [False, False, True, True]
    spare = packs[3][0]
    ordinary = lay_out([trees[0]])
    assert spare.size == 9
    assert np.array_equal(spare.rows_N, ordinary.rows_N)
    assert not spare.weights_N.any()
    assert [response.conversation for response in spare.responses] == ["big"]


def test_a_blank_pack_has_no_foils() -> None:
    made = blank(lay_out([tree("t", 5, foil=True)]))
    assert [response.foil_of for response in made.responses] == [-1, -1]
    assert made.weights_N.dtype == np.float32
    assert not made.weights_N.any()
    assert replace(made, weights_N=made.weights_N + 1).weights_N.all()


def test_nothing_to_share() -> None:
    assert share_packs([], 10, on(1, 2)) == []


def test_trees_that_were_not_fitted_are_refused() -> None:
    with pytest.raises(ConfigError, match="conversation big: a tree of 11 tokens in packs of 10; fit it first"):
        share_packs([tree("small", 4), tree("big", 11)], 10, on(0, 2))


def test_a_single_rank_packs_as_tightly_as_can_be() -> None:
    trees = [tree(str(size), size) for size in (3, 5, 4, 6, 2)]
    alone = share_packs(trees, 10, on(0, 1))
    assert [list(made.ids_T) for made in alone] == [list(made.ids_T) for made in pack(trees, 10)]
