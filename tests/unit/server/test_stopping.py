"""How a server begins and ends: ready from the first token, drained when told to stop, gone when told twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guarded import (
    HELLO,
    Answer,
    Guarded,
    LengthScorer,
    ScriptedEngine,
    ask,
    code_of,
    eventually,
    guarded,
    serve_process,
)
from processes import forkserver
from steerlm.server import health
from steerlm.server.database import open_database
from steerlm.server.keys import Limits, create_key
from steerlm.server.quotas import Quotas

CHAT = "/v1/chat/completions"


def test_ready_only_after_a_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_RETRY_S", 0.01)
    engine = ScriptedEngine(broken=True)
    with guarded(engine) as server:
        eventually(lambda: any(line["event"] == "not-ready" for line in server.lines))
        status, _, answer = server.ask("/readyz")
        assert (status, json.loads(answer)) == (503, {"status": "starting"})
        assert server.ask("/healthz")[0] == 200
        engine.broken = False
        eventually(lambda: server.ask("/readyz")[0] == 200)
        engine.hold.set()
        with ThreadPoolExecutor(1) as client:
            under_way = client.submit(server.ask, CHAT, {**HELLO, "max_tokens": 1})
            eventually(lambda: server.guard.lifecycle.busy == 1)
            server.guard.lifecycle.stop()
            _check_stopping(server)
            engine.hold.clear()
            assert under_way.result()[0] == 200


def _check_stopping(server: Guarded) -> None:
    status, headers, answer = server.ask(CHAT, HELLO)
    assert (status, code_of(answer), headers["retry-after"]) == (503, "server_stopping", "30")
    assert server.ask("/readyz")[0] == 503
    assert server.ask("/healthz")[0] == 200


def test_scores_that_take_longer_than_draining_end_with_an_error() -> None:
    scorer = LengthScorer()
    with guarded(ScriptedEngine(), scorer=scorer, drain_seconds=0.1) as server, ThreadPoolExecutor(1) as client:
        scorer.hold.set()
        talk = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Aye"}]}
        under_way = client.submit(server.ask, "/v1/score", talk)
        try:
            eventually(lambda: scorer.scoring == 1)
            server.guard.lifecycle.stop()
            status, _, answer = under_way.result(timeout=60)
        finally:
            scorer.hold.clear()
    assert (status, json.loads(answer)["error"]["message"]) == (503, "the server is stopping")


class Process:
    """A server in a process of its own, whose port and log are in files."""

    def __init__(self, folder: Path, pause: float, drain_seconds: float, keys: Path | None = None) -> None:
        self.log = folder / "log"
        ready = folder / "port"
        ready.unlink(missing_ok=True)
        arguments = (ready, self.log, pause, {"drain_seconds": drain_seconds, "keys": keys})
        self.process = forkserver().Process(target=serve_process, args=arguments)
        self.process.start()
        eventually(lambda: ready.is_file() or not self.process.is_alive(), "a port")
        self.port = int(ready.read_text())
        eventually(lambda: self.ask("/readyz")[0] == 200, "readiness")

    def ask(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
        return ask(self.port, path, body, headers)

    def begin(self, tokens: int, headers: str = "") -> socket.socket:
        """A streamed answer under way."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        body = json.dumps({**HELLO, "max_tokens": tokens, "stream": True}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}"
        connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        return connection

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.process.pid or 0, number)

    def code(self) -> int | None:
        self.process.join(timeout=300)
        return self.process.exitcode


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers, of which none outlives a test that fails."""
    started: list[Process] = []

    def make(pause: float, drain_seconds: float, keys: Path | None = None) -> Process:
        started.append(Process(tmp_path, pause, drain_seconds, keys))
        return started[-1]

    yield make
    for server in started:
        server.process.kill()
        server.process.join()


def rest_of(connection: socket.socket) -> bytes:
    found = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_is_finished_and_nothing_new_begun(start: Start, number: signal.Signals) -> None:
    server = start(pause=0.02, drain_seconds=60)
    connection = server.begin(100)
    server.kill(number)
    eventually(lambda: server.ask("/readyz")[0] == 503)
    status, headers, answer = server.ask(CHAT, HELLO)
    assert (status, code_of(answer), headers["retry-after"]) == (503, "server_stopping", "60")
    text = rest_of(connection)
    assert text.count(b'"content":"a ') == 100
    assert b"[DONE]" in text
    assert server.code() == 0


def test_draining_has_an_end(start: Start) -> None:
    server = start(pause=0.05, drain_seconds=0.3)
    connection = server.begin(1900)
    server.kill(signal.SIGTERM)
    assert b"[DONE]" not in rest_of(connection)
    assert server.code() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert any(line["event"] == "stopping" and line["unfinished"] == 1 for line in lines)
    assert any(line["event"] == "request" and line.get("route") == CHAT and line["failed"] for line in lines)


def test_a_second_signal_ends_at_once(start: Start) -> None:
    server = start(pause=0.05, drain_seconds=10_000)
    connection = server.begin(1900)
    server.kill(signal.SIGTERM)
    eventually(lambda: server.ask("/readyz")[0] == 503)
    server.kill(signal.SIGTERM)
    assert server.code() == 128 + signal.SIGTERM
    assert b"[DONE]" not in rest_of(connection)


def test_a_killed_server_has_counted_what_it_took(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.sqlite"
    database = open_database(keys, create=True)
    key, secret = create_key(database, "mine", Limits(quota_requests=5))
    header = {"authorization": f"Bearer {secret}"}
    server = start(pause=0.02, drain_seconds=60, keys=keys)
    assert server.ask(CHAT, {**HELLO, "max_tokens": 2}, header)[0] == 200
    connections = [server.begin(1900, f"authorization: Bearer {secret}\r\n") for _ in range(3)]
    server.kill(signal.SIGKILL)
    assert server.code() == -signal.SIGKILL
    for connection in connections:
        connection.close()
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert Quotas(database).usage(key).requests == 4
    again = start(pause=0, drain_seconds=60, keys=keys)
    statuses = [again.ask(CHAT, {**HELLO, "max_tokens": 2}, header)[0] for _ in range(3)]
    assert statuses == [200, 429, 429]
    again.kill(signal.SIGTERM)
    assert again.code() == 0
