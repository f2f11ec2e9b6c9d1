"""`steerlm serve` as an operator starts it: all that its flags ask for holds, from the first token to SIGTERM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guarded import Answer, ask, code_of, eventually, samples
from served import HELLO, make_judge, make_policy
from steerlm.attributes import STEERLM
from steerlm.cli.main import run

CHAT = "/v1/chat/completions"


@dataclass
class Served:
    """A server that listens, what it says on stderr, and the header that opens it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    key: dict[str, str]

    def ask(self, path: str, body: Any = None) -> Answer:
        return ask(self.port, path, body, self.key)

    def chat(self, **fields: Any) -> dict[str, Any]:
        """An answer, which must be one."""
        status, _, answer = self.ask(CHAT, {"messages": HELLO, "max_tokens": 8, "temperature": 0, **fields})
        assert status == 200, answer
        found: dict[str, Any] = json.loads(answer)
        return found

    def refused(self, **fields: Any) -> tuple[int, str]:
        """Status and code of a refusal."""
        status, _, answer = self.ask(CHAT, {"messages": HELLO, "max_tokens": 8, **fields})
        return status, code_of(answer)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


@contextmanager
def served(folder: Path, secret: str, *flags: str) -> Iterator[Served]:
    """A server that has the models and files of a folder."""
    command = [sys.executable, "-m", "steerlm", "serve", str(folder / "policy")]
    command += ["--attribute-model", str(folder / "attribute-model"), "--keys", str(folder / "keys.sqlite")]
    command += ["--policy", str(folder / "rules.yaml"), "--port", "0", *flags]
    log = folder / "stderr"
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            at = re.compile(r"serving tiny at http://127\.0\.0\.1:(\d+)/v1")
            eventually(lambda: process.poll() is not None or at.search(log.read_text()) is not None, "a port")
            found = at.search(log.read_text())
            assert found, log.read_text()
            yield Served(process, int(found[1]), log, {"authorization": f"Bearer {secret}"})
        finally:
            process.kill()


def test_all_that_its_flags_ask_for_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_policy(tmp_path)
    make_judge(tmp_path).save(tmp_path / "attribute-model")
    (tmp_path / "rules.yaml").write_text("attributes: {toxicity: {locked: 0}}\npresets: {funny: {humor: 3}}")
    capsys.readouterr()
    assert run(["keys", "create", "mine", "--file", str(tmp_path / "keys.sqlite")]) == 0
    secret = capsys.readouterr().out.strip()
    flags = ["--name", "tiny", "--answer-tokens", "20", "--running", "2", "--scoring", "3", "--body-bytes", "2048"]
    with served(tmp_path, secret, *flags) as server:
        eventually(lambda: ask(server.port, "/readyz")[0] != 503, "readiness")
        assert [ask(server.port, path)[0] for path in ("/readyz", "/healthz")] == [200, 200]
        _check_keys(server)
        _check_refusals(server)
        _check_answers(server)
        server.process.terminate()
        assert server.process.wait(timeout=300) == 0
        _check_log(server, secret)


def _check_keys(server: Served) -> None:
    body = {"messages": HELLO, "max_tokens": 8}
    for path, sent in ((CHAT, body), ("/v1/models", None), ("/metrics", None)):
        for headers, code in ((None, "missing_api_key"), ({"authorization": "Bearer sk-other"}, "invalid_api_key")):
            status, _, answer = ask(server.port, path, sent, headers)
            assert (status, code_of(answer)) == (401, code)


def _check_refusals(server: Served) -> None:
    status, _, answer = server.ask(CHAT, {"messages": HELLO, "attributes": {"toxicity": 4}})
    assert (status, code_of(answer)) == (403, "operator_policy")
    assert b"rule attributes.toxicity.locked" in answer
    assert server.refused(max_tokens=21)[0] == 400
    assert server.refused(n=3) == (400, "too_many_sequences")
    assert server.refused(messages=[{"role": "user", "content": "a" * 2048}]) == (413, "request_too_large")
    assert not samples(server.ask("/metrics")[2])["steerlm_completion_tokens_total",]


def _check_answers(server: Served) -> None:
    """The second turn goes on from what was computed for the first."""
    models = json.loads(server.ask("/v1/models")[2])["data"]
    assert [item["id"] for item in models] == ["tiny", "tiny:funny"]
    first = server.chat(model="tiny:funny", measure=True, max_tokens=20)
    assert first["model"] == "tiny:funny"
    assert first["steering"]["attributes"] == {**STEERLM.defaults, "toxicity": 0, "humor": 3}
    [measured] = first["steering"]["measured"]
    assert measured.keys() == set(STEERLM.names)
    assert all(isinstance(score, float) for score in measured.values())
    talk = [*HELLO, first["choices"][0]["message"], {"role": "user", "content": "So?"}]
    second = server.chat(messages=talk, n=2)
    kept = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert kept > 0
    status, _, streamed = server.ask(CHAT, {"messages": HELLO, "max_tokens": 8, "stream": True})
    assert (status, b"[DONE]" in streamed) == (200, True)

    def told() -> dict[tuple[str, ...], float]:
        return samples(server.ask("/metrics")[2])

    eventually(lambda: told()["steerlm_requests_total", "POST", CHAT, "200"] == 3)
    found = told()
    assert found["steerlm_queue_seconds_count",] == 3
    assert found["steerlm_time_to_first_token_seconds_count",] == 4
    assert found["steerlm_cached_prompt_tokens_total",] >= kept
    assert found["steerlm_scored_tokens_total",] > 0
    assert found["steerlm_steering_values_total", "humor", "3"] == 1
    assert found["steerlm_errors_total", "operator_policy"] == 1


def _check_log(server: Served, secret: str) -> None:
    """Each request has a line, beside what the server says of itself; what was said and the key are in none."""
    lines = server.lines()
    events = [line["event"] for line in lines if line["event"] not in ("request", "log")]
    assert events == ["ready", "stopping"]
    answered = [line for line in lines if line.get("route") == CHAT and line["status"] == 200]
    assert [line["sequences"] for line in answered] == [1, 2, 1]
    assert len({line["key"] for line in answered}) == 1
    said = server.log.read_text()
    assert "Traceback" not in said
    assert HELLO[0]["content"] not in said
    assert secret not in said
