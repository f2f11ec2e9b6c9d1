"""Packs shared among data ranks: as many for each, and of about as many tokens.

A forward pass gathers weights from all ranks, so that all must run equally many, and the slowest sets the pace.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steerlm.packing import Pack, by_decreasing_size, first_fit, lay_out, require_fitting
from steerlm.parallel.ranks import Ranks
from steerlm.tokens import TokenTree


def share_packs(trees: Sequence[TokenTree], budget: int, ranks: Ranks) -> list[Pack]:
    """The packs of this rank, of at most `budget` tokens; all data ranks get the same number (0 where no trees are).

    A rank for which there is no tree left gets the smallest tree a second time, with no weight (see `blank`). Trees
    must fit (see `packing.fit`); all ranks must pass the same.
    """
    if not trees:
        return []
    sizes = [tree.size for tree in trees]
    require_fitting(trees, sizes, budget)
    mine = share(sizes, budget, ranks.data_world)[ranks.data_rank]
    spare = min(range(len(trees)), key=sizes.__getitem__)
    return [
        lay_out([trees[index] for index in members]) if members else blank(lay_out([trees[spare]])) for members in mine
    ]


def all_packs(trees: Sequence[TokenTree], budget: int, world: int) -> list[Pack]:
    """The packs of all of `world` data ranks together (see `share_packs`), without blank ones."""
    sizes = [tree.size for tree in trees]
    require_fitting(trees, sizes, budget)
    shares = share(sizes, budget, world)
    return [lay_out([trees[index] for index in members]) for packs in shares for members in packs if members]


def share(sizes: Sequence[int], budget: int, world: int) -> list[list[list[int]]]:
    """Of each of `world` ranks the packs, of each pack the indices of what goes into it (perhaps nothing).

    No size may be above `budget`. There are as few packs as first fit needs, rounded up to a multiple of `world`;
    each tree, largest first, goes into the emptiest, or where it would find no room, all go where first fit puts
    them. Packs of a like size stand at the same place of all ranks' lists, as they are computed together.
    """
    packs = first_fit(sizes, budget)
    if world == 1:
        return [[sorted(members) for members in packs]]
    packs += [[] for _ in range(-len(packs) % world)]
    packs = _even(sizes, budget, len(packs)) or packs
    packs.sort(key=lambda members: -sum(sizes[index] for index in members))
    shares: list[list[list[int]]] = [[] for _ in range(world)]
    for number, members in enumerate(packs):
        turn, place = divmod(number, world)
        shares[place if turn % 2 == 0 else world - 1 - place].append(sorted(members))
    return shares


def _even(sizes: Sequence[int], budget: int, count: int) -> list[list[int]] | None:
    """Spread over `count` packs, each item into the emptiest; None where one finds no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    for index in by_decreasing_size(sizes):
        size, number = filled[0]
        if size + sizes[index] > budget:
            return None
        packs[number].append(index)
        heapq.heapreplace(filled, (size + sizes[index], number))
    return packs


def blank(pack: Pack) -> Pack:
    """The same forward and backward pass, of which nothing counts: all weights are 0 and no response is a foil."""
    responses = tuple(replace(response, foil_of=-1) for response in pack.responses)
    return replace(pack, weights_N=np.zeros_like(pack.weights_N), responses=responses)


def is_blank(pack: Pack) -> bool:
    """Whether a pack came from `blank`; others have only responses with a weight."""
    return not pack.weights_N.any()
