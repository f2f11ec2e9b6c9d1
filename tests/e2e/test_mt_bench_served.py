"""MT-Bench with our own server as the judged model: the setting of every answer reaches the policy's prompt."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from chat_server import ChatServer
from served import Recorder, listening, make_policy, make_state
from small_bench import write_bench
from steerlm.attributes import STEERLM
from steerlm.cli.main import run
from steerlm.engines import TorchEngine
from steerlm.evaluation.mt_bench.layouts import read_answers


def test_a_served_policy_at_two_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values that a setting does not name are the policy's defaults."""
    policy = make_policy(tmp_path / "model")
    engine = Recorder(TorchEngine(policy))
    out, names = tmp_path / "out", ["tiny@verbosity=0,humor=3", "tiny@verbosity=4"]
    command = ["eval", "mt-bench", "run", "tiny", "--out", str(out), "--bench", str(write_bench(tmp_path / "data"))]
    command += ["--setting", "verbosity=0,humor=3", "--setting", "verbosity=4", "--greedy", "--max-tokens", "6"]
    try:
        with listening(make_state(policy, engine=engine)) as url, ChatServer(lambda body: "[[5]]") as judging:
            judge = ["--judge", "j", "--judge-url", judging.url, "--json"]
            assert run([*command, "--url", f"{url}/v1", *judge]) == 0
    finally:
        engine.close()
    prompts = [policy.renderer.tokenizer.decode(request.prompt) for request in engine.requests]
    # The values of the turn to be answered stand last; 8 questions of two turns at each setting.
    values = Counter(
        tuple(re.findall(rf"{name}:(\d)", text)[-1] for name in ("verbosity", "humor")) for text in prompts
    )
    default = str(STEERLM.defaults["humor"])
    assert values == {("0", "3"): 16, ("4", default): 16}
    texts = [[answer.turns for answer in read_answers(out / "model_answer" / f"{name}.jsonl")] for name in names]
    rows = [answer.row for name in names for answer in read_answers(out / "model_answer" / f"{name}.jsonl")]
    assert {tuple(row["fingerprints"]) for row in rows} == {(policy.info.fingerprint,)}
    assert len(texts[0]) == len(texts[1]) == 8
    assert texts[0] != texts[1]
    found = json.loads(capsys.readouterr().out)
    assert {score["model"]: score["counts"]["rated"] for score in found["scores"]} == dict.fromkeys(names, 16)
