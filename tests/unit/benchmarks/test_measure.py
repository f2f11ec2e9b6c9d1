"""What the benchmarks share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.measure import StepClock, apart, bytes_read, surroundings
from steerlm.errors import TrainingError


def test_the_clock_counts_any_optimizer() -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen: list[int] = []
    with StepClock(seen.append) as clock:
        for _ in range(3):
            layer(torch.ones(2)).backward()
            optimizer.step()
    layer(torch.ones(2)).backward()
    optimizer.step()
    assert seen == [1, 2, 3]
    assert len(clock.ends) == 3
    assert clock.began is not None
    assert clock.epoch_seconds == clock.ends[-1] - clock.began > 0


def test_a_clock_without_steps() -> None:
    with StepClock() as clock:
        pass
    with pytest.raises(TrainingError, match="no step"):
        _ = clock.epoch_seconds


def test_apart_is_another_process() -> None:
    assert apart(1, os.getpid) != os.getpid()


def test_a_killed_process_is_told() -> None:
    with pytest.raises(TrainingError, match="was killed"):
        apart(1, os.abort)


def test_bytes_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    before = bytes_read()
    path.read_bytes()
    assert bytes_read() - before >= 100_000


def test_surroundings_name_versions_and_the_processor() -> None:
    record = surroundings("numpy", "not-a-package")
    assert record["libraries"]["numpy"]
    assert record["libraries"]["not-a-package"] is None
    assert record["machine"]["processor"]
