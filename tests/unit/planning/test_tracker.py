"""Bytes alive are those of storages: views share them, and what is freed or resized counts no more."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from allocations import peak_bytes
from steerlm.planning.tracker import LiveBytes


def test_storages_are_counted_while_they_live() -> None:
    with LiveBytes() as live:
        first = torch.empty(100)
        view = first[50:].view(5, 10)
        second = torch.empty(10, dtype=torch.bfloat16)
        assert live.now == 400 + 20
        del first
        assert live.now == 400 + 20
        del view, second
        assert live.now == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.ones(10, 10)
    with LiveBytes([weight]) as live:
        transposed = weight.T
        assert live.now == 0
        product = weight @ transposed
        assert live.now == 400
    assert product.shape == (10, 10)


def test_the_peak_starts_anew_when_asked_for() -> None:
    with LiveBytes() as live:
        kept = torch.empty(10)
        big = torch.empty(1000)
        del big
        assert live.peak() == 4040
        assert live.peak() == 40
        assert kept.numel() == 10


def test_a_resized_storage_counts_what_it_has() -> None:
    resize = torch.UntypedStorage.resize_
    with LiveBytes() as live:
        tensor = torch.empty(100)
        tensor.untyped_storage().resize_(0)
        assert live.now == 0
        tensor.untyped_storage().resize_(400)
        assert live.now == 400
    assert torch.UntypedStorage.resize_ is resize


def test_fake_tensors_take_what_real_ones_would() -> None:
    def work() -> None:
        inputs = torch.ones(64, 32, requires_grad=True)
        hidden = torch.nn.functional.gelu(inputs @ torch.ones(32, 128))
        hidden.square().sum().backward()

    with FakeTensorMode(), LiveBytes() as live:
        work()
    assert live.peak() == peak_bytes(work)
