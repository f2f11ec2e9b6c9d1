"""Rows of a matrix that no process holds whole."""

from __future__ import annotations

import torch

from processes import launch
from sharded import move_rows_in_process
from steerlm.parallel.local import local_part, read_rows, write_rows


def test_rows_over_four_processes() -> None:
    whole = torch.arange(10.0).view(5, 2)
    changed = whole.clone()
    changed[[4, 0, 3]] += 100
    for read, after in launch(4, move_rows_in_process):
        assert torch.equal(read, whole[[4, 0, 3]])
        assert torch.equal(after, changed)


def test_rows_of_an_ordinary_matrix() -> None:
    matrix = torch.arange(6.0).view(3, 2)
    rows = torch.tensor([2, 0])
    read = read_rows(matrix, rows)
    assert torch.equal(read, torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    write_rows(matrix, rows, -read)
    assert torch.equal(matrix, torch.tensor([[0.0, -1.0], [2.0, 3.0], [-4.0, -5.0]]))
    assert torch.equal(read, torch.tensor([[4.0, 5.0], [0.0, 1.0]]))


def test_an_ordinary_tensor_is_its_own_part() -> None:
    tensor = torch.zeros(2, 3)
    part, where = local_part(tensor)
    assert part is tensor
    assert where == (slice(0, 2), slice(0, 3))
