"""SIGKILL a training at ten random moments, then run to the end: the same weights as a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from processes import forkserver
from steerlm.files import write_conversations
from steerlm.models.directory import ModelInfo
from steerlm.training import checkpoint
from steerlm.training.run import train_policy
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees
from tiny_policy import policy_settings, train_process

KILLS = 10


def steps_done(out: Path) -> int:
    """-1 before the log is there, which is made before the first step is prepared."""
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b'"kind":"train"') if log.is_file() else -1


@pytest.mark.parametrize("task", ["policy", "attributes"])
def test_killed_ten_times(tmp_path: Path, task: str) -> None:
    """An attribute model begins with a ridge regression, in which the first kill falls, and ends with its best weights,
    which are kept beside the checkpoints.
    """
    save_base(tmp_path / "base", TOKENIZERS["chatml"]())
    write_conversations(tmp_path / "data.jsonl", random_trees(150, seed=5))
    processes = forkserver()
    whole = processes.Process(target=train_process, args=(tmp_path, "whole", task))
    whole.start()
    whole.join(timeout=300)
    assert whole.exitcode == 0
    total = steps_done(tmp_path / "whole")

    generator = random.Random(0)
    # The steps that are left after the last goal take longer than the sleep.
    goals = [0, *sorted(generator.sample(range(1, total * 3 // 4), KILLS - 1))]
    for kill, goal in enumerate(goals):
        process = processes.Process(target=train_process, args=(tmp_path, "parts", task))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and steps_done(tmp_path / "parts") < goal:
            assert time.monotonic() < deadline, "the process makes no progress"
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.05))
        assert process.is_alive(), f"kill {kill} came too late"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
    last = processes.Process(target=train_process, args=(tmp_path, "parts", task))
    last.start()
    last.join(timeout=300)
    assert last.exitcode == 0

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "parts" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert steps_done(tmp_path / "parts") == total
    metrics = [ModelInfo.load(tmp_path / name).metrics for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("call", ["torch.save", "os.fsync", "pathlib.Path.rename"])
def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save_base(tmp_path / "base", TOKENIZERS["chatml"]())
    write_conversations(tmp_path / "data.jsonl", random_trees(60, seed=5))
    whole = train_policy(policy_settings(tmp_path, "whole"))
    written = 0
    genuine = checkpoint.save

    def save(*arguments: Any, **keywords: Any) -> None:
        nonlocal written
        written += 1
        if written > 2:
            monkeypatch.setattr(call, full)
        genuine(*arguments, **keywords)

    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(OSError, match="No space left"):
        train_policy(policy_settings(tmp_path, "out"))
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert [name for name in names if not name.endswith(".partial")] == ["step-00000002", "step-00000004"]
    resumed = train_policy(policy_settings(tmp_path, "out"))
    expected = whole.network.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in resumed.network.state_dict().items())
