"""Stop `steerlm train` by signals, then run it to the end: the same weights as a run that nobody disturbed."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from processes import forkserver
from steerlm.files import write_conversations
from tiny import TOKENIZERS, save_base
from tiny_judge import random_trees
from tiny_policy import train_command


def steps_done(out: Path) -> int:
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b'"kind":"train"') if log.is_file() else 0


def stop(folder: Path, number: signal.Signals) -> tuple[int | None, int, str]:
    """Send a signal after some steps; returns exit code, the steps done in all, and what was said last."""
    out = folder / "parts"
    process = forkserver().Process(target=train_command, args=(folder, "parts"))
    goal = steps_done(out) + 3
    process.start()
    deadline = time.monotonic() + 200
    while process.is_alive() and steps_done(out) < goal:
        assert time.monotonic() < deadline, "the process makes no progress"
        time.sleep(0.001)
    os.kill(process.pid or 0, number)
    process.join(timeout=200)
    told = " ".join((folder / "parts.stderr").read_text(encoding="utf-8").split())
    return process.exitcode, steps_done(out), told


def test_stopped_by_sigterm_and_by_sigint(tmp_path: Path) -> None:
    save_base(tmp_path / "base", TOKENIZERS["chatml"]())
    write_conversations(tmp_path / "data.jsonl", random_trees(150, seed=5))
    whole = forkserver().Process(target=train_command, args=(tmp_path, "whole"))
    whole.start()
    whole.join(timeout=300)
    assert whole.exitcode == 0

    before = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        exitcode, steps, told = stop(tmp_path, number)
        assert exitcode == code
        assert before < steps < steps_done(tmp_path / "whole")
        saved = tmp_path / "parts" / "checkpoints" / f"step-{steps:08d}"
        says = (
            rf"error: stopped after step {steps}, saved in {re.escape(str(saved))}; run the same command again to go on"
        )
        assert re.search(says + "$", told), told
        assert (saved / "manifest.json").is_file()
        before = steps

    last = forkserver().Process(target=train_command, args=(tmp_path, "parts"))
    last.start()
    last.join(timeout=300)
    assert last.exitcode == 0
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "parts" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert steps_done(tmp_path / "parts") == steps_done(tmp_path / "whole")
