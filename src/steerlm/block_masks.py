"""FlexAttention's block masks, reckoned from the runs of a pack rather than from all pairs of its tokens.

A mask of T x T pairs, which `create_block_mask` goes through, would take more memory than the attention that it saves.

Shapes: T tokens, B blocks of `BLOCK` tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steerlm.packing import Run

BLOCK = 128
"""Tokens of a block, of queries and of keys: what FlexAttention's kernels are made for."""

Counts = npt.NDArray[np.int64]


def block_mask(
    runs: Sequence[Run],
    positions_T: npt.NDArray[np.integer[Any]],
    window: int | None,
    visible: Callable[..., Tensor],
    device: torch.device,
) -> Any:
    """The `BlockMask` of a pack. Blocks that hold no visible pair are never computed, `visible` (batch, head, query,
    key) is asked only in those of which a part is visible.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = len(positions_T)
    pairs_BB = visible_pairs(runs, size)
    some_BB, all_BB = pairs_BB > 0, pairs_BB == BLOCK * BLOCK
    if window is not None:
        low_B, high_B = _extremes(positions_T)
        # Of all tokens of a block, also those that do not see each other: what is left undecided stays a part.
        some_BB &= low_B[:, None] - high_B[None, :] < window
        all_BB &= high_B[:, None] - low_B[None, :] < window
    mask = BlockMask.from_kv_blocks(
        *_ordered(some_BB & ~all_BB),
        *_ordered(all_BB),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(size, size),
    )
    return mask.to(device)


def visible_pairs(runs: Sequence[Run], size: int) -> Counts:
    """[B, B], how many pairs of a query (row) and a key (column) see each other, of `size` tokens."""
    blocks = -(-size // BLOCK)
    pairs_BB = np.zeros((blocks, blocks), dtype=np.int64)
    for run in runs:
        rows, queries = _overlaps(run.start, run.stop)
        for start, stop in run.prefix:
            columns, keys = _overlaps(start, stop)
            pairs_BB[rows, columns] += np.outer(queries, keys)
        pairs_BB[rows, rows] += np.tril(np.outer(queries, queries), -1) + np.diag(queries * (queries + 1) // 2)
    return pairs_BB


def _overlaps(start: int, stop: int) -> tuple[slice, Counts]:
    """The blocks that hold the tokens from `start` to `stop`, and how many of them each holds."""
    first, last = start // BLOCK, -(-stop // BLOCK)
    borders = np.clip(np.arange(first, last + 1) * BLOCK, start, stop)
    return slice(first, last), np.diff(borders)


def _extremes(positions_T: npt.NDArray[np.integer[Any]]) -> tuple[Counts, Counts]:
    """The lowest and the highest position in each block."""
    starts = np.arange(0, len(positions_T), BLOCK)
    return np.minimum.reduceat(positions_T, starts), np.maximum.reduceat(positions_T, starts)


def _ordered(chosen_BB: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """How many columns each row has chosen [1, 1, B], and all columns with the chosen ones first [1, 1, B, B]."""
    columns_BB = np.argsort(~chosen_BB, axis=1, kind="stable")
    counts_B = torch.from_numpy(chosen_BB.sum(axis=1).astype(np.int32))
    return counts_B[None, None], torch.from_numpy(columns_BB.astype(np.int32))[None, None]
