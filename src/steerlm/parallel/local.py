"""Reading and writing sharded tensors, of which each process holds a part. Shapes: R rows, D columns."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_part(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """The share of `tensor` that this process holds (the same memory), and where in the whole it lies.

    The share is one box: FSDP cuts what tensor parallelism left whole, or what it left to this rank. An ordinary
    tensor is its own share.
    """
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, size) for size in tensor.shape)
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), tuple(slice(at, at + size) for at, size in zip(offsets, shape, strict=True))


@torch.no_grad()
def write_whole(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor these values, which every process has in full; each keeps its share of them."""
    local, where = local_part(tensor)
    local.copy_(values[where])


@torch.no_grad()
def read_rows(weight: Tensor, rows_R: Tensor) -> Tensor:
    """Copies of these rows of a matrix, [R, D], on every process that shares it; all must ask."""
    local, (held, *_) = local_part(weight)
    mine_R = _held(rows_R, held)
    values_RD = local.new_zeros(len(rows_R), *local.shape[1:])
    values_RD[mine_R] = local[rows_R[mine_R] - held.start]
    for group in _row_groups(weight):
        distributed.all_reduce(values_RD, group=group)
    return values_RD


@torch.no_grad()
def write_rows(weight: Tensor, rows_R: Tensor, values_RD: Tensor) -> None:
    """Put values into these rows of a matrix, each process into those that it holds."""
    local, (held, *_) = local_part(weight)
    mine_R = _held(rows_R, held)
    local[rows_R[mine_R] - held.start] = values_RD[mine_R].to(local.dtype)


def _held(rows_R: Tensor, held: slice) -> Tensor:
    held_R: Tensor = (rows_R >= held.start) & (rows_R < held.stop)
    return held_R


def _row_groups(weight: Tensor) -> list[distributed.ProcessGroup]:
    """The processes among which rows are spread; raises `ValueError` where columns are."""
    if not isinstance(weight, DTensor):
        return []
    sharded = [number for number, placement in enumerate(weight.placements) if not placement.is_replicate()]
    if not all(weight.placements[number].is_shard(0) for number in sharded):
        raise ValueError(f"rows of a matrix placed as {weight.placements} are not whole on any process")
    return [weight.device_mesh.get_group(number) for number in sharded]
