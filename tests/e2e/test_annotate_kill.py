"""SIGKILL at ten random moments, then run to the end: the same bytes as a run that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from steerlm.annotation.journal import Journal
from steerlm.files import load_conversations, write_conversations
from tiny_judge import annotate_process, random_trees, save_tiny_judge

KILLS = 10


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that have torch imported when they start, so that a kill meets work rather than imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_judge", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_killed_ten_times(processes: multiprocessing.context.ForkServerContext, tmp_path: Path, suffix: str) -> None:
    model = save_tiny_judge(tmp_path)
    write_conversations(tmp_path / "in.jsonl", random_trees(600, seed=11))
    with (tmp_path / "in.jsonl").open("ab") as stream:
        stream.write(b"a torn line {\n")
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    annotate_process(tmp_path / "in.jsonl", model, whole)

    journal = out.with_name(out.name + ".journal")
    generator = random.Random(suffix)
    sizes = []
    for kill in range(KILLS):
        process = processes.Process(target=annotate_process, args=(tmp_path / "in.jsonl", model, out))
        process.start()
        before = _size(journal)
        # One kill falls into the start; the others come once some more windows are through, at any point of the next.
        growth = generator.randrange(200, 40_000) if kill else 0
        deadline = time.monotonic() + 120
        while process.is_alive() and _size(journal) < before + growth:
            assert time.monotonic() < deadline, "the process makes no progress"
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, 0.02))
        assert process.is_alive(), f"kill {kill} came too late"
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
        sizes.append(_size(journal))
    assert len(set(sizes)) > KILLS // 2, "most kills fell into the middle of the work"

    process = processes.Process(target=annotate_process, args=(tmp_path / "in.jsonl", model, out))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(load_conversations(out)) == 600
    for name in (".rejects.jsonl", ".report.json"):
        assert out.with_name(out.name + name).read_bytes().count(b"\n") == (
            whole.with_name(whole.name + name).read_bytes().count(b"\n")
        )
    assert not journal.exists()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_two_processes_at_once(processes: multiprocessing.context.ForkServerContext, tmp_path: Path) -> None:
    """The second is refused as long as the first is there."""
    model = save_tiny_judge(tmp_path)
    write_conversations(tmp_path / "in.jsonl", random_trees(20))
    out = tmp_path / "out.jsonl"

    def attempt() -> int | None:
        process = processes.Process(target=annotate_process, args=(tmp_path / "in.jsonl", model, out))
        process.start()
        process.join()
        return process.exitcode

    with Journal(tmp_path / "out.jsonl.journal", {}):
        assert attempt() == 1
        assert not out.exists()
    assert attempt() == 0
    assert len(load_conversations(out)) == 20
