"""SIGKILL in the middle of answering and of judging: what was paid for is kept, and nothing is asked twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Refusal
from small_bench import write_bench

CONCURRENCY = 4
KILLS = 3


class Pace:
    """Answers with delays and refusals; after `limit` answers it holds every further request back until released."""

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        self.answered: Counter[str] = Counter()
        self.limit = 0
        self._answer = answer
        self._random = random.Random(7)
        self._turn = threading.Condition()

    def __call__(self, body: dict[str, Any]) -> str | Refusal:
        with self._turn:
            chance, delay = self._random.random(), self._random.uniform(0, 0.003)
            if chance < 0.2:
                return Refusal(429, headers={"Retry-After": "0"})
            if chance < 0.3:
                return Refusal(503)
            self._turn.wait_for(lambda: sum(self.answered.values()) < self.limit)
            self.answered[body["messages"][-1]["content"]] += 1
        time.sleep(delay)
        return self._answer(body)

    def go_on(self, more: int) -> None:
        with self._turn:
            self.limit += more
            self._turn.notify_all()


def model(body: dict[str, Any]) -> str:
    return f"answer to {body['messages'][-1]['content']}"


def judge(body: dict[str, Any]) -> str:
    return f"[[{sum(body['messages'][1]['content'].encode()) % 10 + 1}]]"


def rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that may be in the middle of being written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("what", ["answer", "judge"])
def test_killed_and_run_again(tmp_path: Path, what: str) -> None:
    bench, out = write_bench(tmp_path / "data", per_category=5), tmp_path / "out"
    everything = 10**9
    pace = Pace(model)
    pace.go_on(everything)
    common = ["--out", str(out), "--bench", str(bench)]
    answers = out / "model_answer" / "m.jsonl"
    with ChatServer(pace) as served:
        command = [sys.executable, "-m", "steerlm", "eval", "mt-bench", "answer", "m", *common, "--url", served.url]
        command += ["--retry-pause", "0.01", "--concurrency", str(CONCURRENCY)]
        if what == "answer":
            pace.limit = 0
            _kill_and_finish(command, pace, answers, 40, each=2)
        else:
            subprocess.run(command, check=True)
    assert [row["question_id"] for row in rows(answers)] == sorted(row["question_id"] for row in rows(answers))
    if what == "answer":
        return
    judgments = out / "model_judgment" / "j_single.jsonl"
    pace = Pace(judge)
    with ChatServer(pace) as judging:
        command = [sys.executable, "-m", "steerlm", "eval", "mt-bench", "judge", *common, "--judge", "j"]
        command += ["--judge-url", judging.url, "--judge-retry-pause", "0.01", "--judge-concurrency", str(CONCURRENCY)]
        _kill_and_finish(command, pace, judgments, 80, each=1)
    for row in rows(judgments):
        assert row["score"] == sum(row["user_prompt"].encode()) % 10 + 1


def _kill_and_finish(command: list[str], pace: Pace, path: Path, wanted: int, each: int) -> None:
    """Kill the command some times while requests wait for their answers, then let it end.

    A row takes `each` answers. Only rows under way at a kill are asked for again: at most one a concurrent request.
    """
    for kill in range(KILLS):
        before = len(rows(path))
        process = subprocess.Popen(command)
        # At most one answer a worker is under way when the server holds back: the other ones make rows.
        pace.go_on(10 * each)
        deadline = time.monotonic() + 300
        while len(rows(path)) < before + 10 - CONCURRENCY:
            assert time.monotonic() < deadline, "no progress"
            assert process.poll() is None, f"ended before kill {kill}"
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert before < len(rows(path)) < wanted
    pace.go_on(10**9)
    subprocess.run(command, check=True)
    found = rows(path)
    keys = {(row["question_id"], row.get("turn")) for row in found}
    assert len(found) == len(keys) == wanted
    twice = sum(pace.answered.values()) - wanted * each
    assert 0 <= twice <= KILLS * CONCURRENCY * each
