"""Clients that leave, stall, flood or forge: over real sockets, with nothing lost and nothing held afterwards."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from guarded import HELLO, Guarded, LengthScorer, ScriptedEngine, code_of, eventually, guarded
from steerlm.server import protocol
from steerlm.server.limits import ServerLimits

CHAT = "/v1/chat/completions"


def raw_post(body: Any, path: str = CHAT, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}"
    return head.encode() + f"content-length: {len(data)}\r\n\r\n".encode() + data


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_generation_stops_when_the_client_leaves(stream: bool, reset: bool) -> None:
    engine = ScriptedEngine(pause=0.002)
    with guarded(engine) as server:
        connection = server.connect()
        connection.sendall(raw_post({**HELLO, "n": 3, "max_tokens": 1900, "stream": stream}))
        eventually(lambda: engine.running == 3)
        assert server.guard.admission.running == 3
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        eventually(server.is_free, "a free server")
        eventually(lambda: engine.cancelled == 3)
        eventually(lambda: len(server.requests()) == 1)
        [line] = server.requests()
        assert line["client_left"] is True
        assert line["sequences"] == 3
        assert 0 < line["completion_tokens"] < 3 * 1900


def test_a_body_of_very_many_parts_is_refused_before_it_is_parsed() -> None:
    with guarded(ScriptedEngine(), json_items=1000) as server:
        for body in (
            b'{"messages":[' + b"{}," * 1_000_000 + b"{}]}",
            json.dumps({**HELLO, **{str(number): 0 for number in range(1000)}}).encode(),
        ):
            status, _, answer = server.ask(CHAT, body)
            assert (status, code_of(answer)) == (400, "too_many_items")
        assert server.ask(CHAT, {**HELLO, "max_tokens": 1})[0] == 200


def test_a_client_that_leaves_the_queue_is_never_computed_for() -> None:
    engine = ScriptedEngine()
    with guarded(engine, running=1) as server:
        engine.hold.set()
        first = server.connect()
        first.sendall(raw_post({**HELLO, "max_tokens": 2}, headers="connection: close\r\n"))
        eventually(lambda: engine.running == 1)
        waiting = [server.connect() for _ in range(5)]
        for connection in waiting:
            connection.sendall(raw_post(HELLO))
        eventually(lambda: server.guard.admission.waiting == 5)
        for connection in waiting:
            connection.close()
        eventually(lambda: server.guard.admission.waiting == 0)
        engine.hold.clear()
        assert read_all(first).startswith(b"HTTP/1.1 200")
        first.close()
        eventually(server.is_free)
        assert engine.most == 1
        # The warm-up and the one request.
        assert engine.tokens == 3


def test_ten_times_the_queue_gives_429_only_and_leaves_nothing() -> None:
    engine = ScriptedEngine(pause=0.001)
    with guarded(engine, running=4, waiting=8) as server, ThreadPoolExecutor(80) as clients:
        body = {**HELLO, "max_tokens": 8}
        found = list(clients.map(lambda _: server.ask(CHAT, body), range(160)))
        counted = Counter(status for status, _, _ in found)
        assert set(counted) == {200, 429}
        for status, headers, answer in found:
            if status == 429:
                assert code_of(answer) == "server_busy"
                assert 1 <= int(headers["retry-after"]) <= 120
            else:
                assert json.loads(answer)["usage"]["completion_tokens"] == 8
        assert engine.most <= 4
        eventually(server.is_free)
        assert server.ask(CHAT, body)[0] == 200
        eventually(lambda: len(server.requests()) == 161)
        told = server.metrics()
        assert told["steerlm_requests_total", "POST", CHAT, "200"] == counted[200] + 1
        assert told["steerlm_requests_total", "POST", CHAT, "429"] == counted[429]
        assert told["steerlm_errors_total", "server_busy"] == counted[429]
        assert told["steerlm_completion_tokens_total",] == 8 * (counted[200] + 1)
        assert told["steerlm_sequences_running",] == told["steerlm_sequences_waiting",] == 0


def test_the_queue_for_scores_is_seen() -> None:
    scorer = LengthScorer()
    talk = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Hi!"}]}
    with guarded(ScriptedEngine(), scorer=scorer, scoring=2) as server, ThreadPoolExecutor(5) as clients:
        scorer.hold.set()
        asked = [clients.submit(server.ask, "/v1/score", talk) for _ in range(5)]
        eventually(lambda: server.guard.scoring.waiting == 3)
        told = server.metrics()
        assert (told["steerlm_scoring_running",], told["steerlm_scoring_waiting",]) == (2, 3)
        scorer.hold.clear()
        assert [answer.result()[0] for answer in asked] == [200] * 5
        told = server.metrics()
        assert told["steerlm_scoring_running",] == told["steerlm_scoring_waiting",] == 0


def test_a_request_counts_by_its_answers() -> None:
    engine = ScriptedEngine()
    with guarded(engine, running=6, waiting=6) as server:
        status, _, answer = server.ask(CHAT, {**HELLO, "n": 7, "max_tokens": 2})
        assert (status, code_of(answer)) == (400, "too_many_sequences")
        grid = {"verbosity": [0, 1, 2], "humor": [0, 1]}
        status, _, answer = server.ask("/v1/steer/sweep", {**HELLO, "grid": grid, "max_tokens": 2})
        assert status == 200, server.lines
        assert engine.most == 6
        eventually(lambda: len(server.requests()) == 2)
        line = server.requests()[-1]
        assert (line["sequences"], line["completion_tokens"], len(line["attributes"])) == (6, 12, 6)
        told = server.metrics()
        # What was refused is not counted.
        assert [told["steerlm_steering_values_total", "verbosity", level] for level in "012"] == [2, 2, 2]


def begin_to_read_nothing(server: Guarded, connection: socket.socket) -> None:
    """Ask for much more than the buffers of both ends hold, which `guarded` keeps small."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    body = {**HELLO, "n": 2, "max_tokens": 1900, "stream": True}
    connection.sendall(raw_post(body, headers="connection: close\r\n"))


def test_a_slow_reader_holds_no_place_and_gets_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READER_SECONDS", 1000.0)
    engine = ScriptedEngine()
    with guarded(engine) as server, socket.socket() as connection:
        begin_to_read_nothing(server, connection)
        eventually(lambda: engine.tokens == 2 * 1900 + 1)
        eventually(lambda: server.guard.admission.running == 0)
        assert server.guard.lifecycle.busy == 1
        text = read_all(connection)
        assert text.count(b'"content":"a ') == 2 * 1900
        assert b"[DONE]" in text


def test_who_reads_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READER_SECONDS", 0.3)
    with guarded(ScriptedEngine(pause=0.001)) as server, socket.socket() as connection:
        begin_to_read_nothing(server, connection)
        eventually(lambda: len(server.requests()) == 1, "the end of an answer that nobody reads")
        assert server.requests()[0]["client_left"] is True
        eventually(server.is_free)


def test_slow_headers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    with guarded(ScriptedEngine()) as server:
        silent, dribbling = server.connect(), server.connect()
        dribbling.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
        for connection in (silent, dribbling):
            with connection:
                try:
                    assert connection.recv(100) == b""
                except ConnectionResetError:
                    continue
        # What is computed may take longer than that.
        engine_time = {**HELLO, "max_tokens": 5}
        assert server.ask(CHAT, engine_time)[0] == 200


def test_a_slow_body_is_given_up() -> None:
    with guarded(ScriptedEngine(), body_seconds=0.2) as server, server.connect() as connection:
        connection.sendall(raw_post({**HELLO})[:-5])
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert code_of(answer.partition(b"\r\n\r\n")[2]) == "request_timeout"


def test_large_bodies_that_do_not_end_are_held_up_to_a_limit() -> None:
    """Three quarters of a megabyte each: one and a third fit beside their first 64 KiB, a short one always does."""
    large = {**HELLO, "messages": [{"role": "user", "content": "a" * 750_000}]}
    with guarded(ScriptedEngine(), body_bytes=1_000_000, arriving_bytes=1_000_000) as server:
        with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                connection.sendall(raw_post(large)[:-5])
            # Whichever is read later is refused, with nothing more sent.
            refused, *others = select.select([first, second], [], [], 300)[0]
            assert not others
            answer = b""
            while not answer.endswith(b"}}"):
                answer += refused.recv(65536)
            assert answer.startswith(b"HTTP/1.1 429")
            assert b"retry-after: 30\r\n" in answer
            assert code_of(answer.partition(b"\r\n\r\n")[2]) == "server_busy"
            assert server.ask(CHAT, {**HELLO, "max_tokens": 1})[0] == 200
            assert server.ask(CHAT, large)[0] == 429
        eventually(lambda: server.ask(CHAT, large)[0] == 400, "room for another body")


def test_oversized_bodies_announced_and_chunked() -> None:
    with guarded(ScriptedEngine(), body_bytes=2048) as server:
        status, _, answer = server.ask(CHAT, b" " * 4_000_000)
        assert (status, code_of(answer)) == (413, "request_too_large")
        with server.connect() as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            chunks = (b"64\r\n" + b" " * 100 + b"\r\n") * 40
            # All at once: what is sent after the refusal may find the connection closed.
            connection.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode() + chunks)
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 413")
        assert server.ask("/v1/models")[0] == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"messages": "\xff"}', "invalid_utf8"),
        (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', "invalid_utf8"),
        (b"[" * 200_000, "invalid_json"),
        (b'{"a":' * 20_000, "invalid_json"),
        (b'{"a":' * 200_000, "too_many_items"),
        (b"{", "invalid_json"),
        (b"", "missing_field"),
        (b"\x00", "invalid_json"),
        (b"NaN", None),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', None),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', None),
        (b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}", None),
        (b'{"messages": [{"role": "user", "content": "a"}], "n": 1e30}', None),
        (b'{"messages": [{"role": "user", "content": "a"}], "\\u0000": 1}', None),
    ],
)
def test_broken_bodies_are_the_clients_fault(body: bytes, code: str | None) -> None:
    engine = ScriptedEngine()
    with guarded(engine) as server:
        status, _, answer = server.ask(CHAT, body)
        assert 400 <= status < 500, answer
        assert code_of(answer) == code or code is None
        assert engine.tokens == 1


def test_what_asks_for_too_much_is_refused_before_it_is_computed() -> None:
    engine = ScriptedEngine()
    many = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2000
    with guarded(engine, ServerLimits(answers=16)) as server:
        for change in (
            {"n": 10**9},
            {"n": 17},
            {"max_tokens": 10**12},
            {"max_tokens": 2**63},
            {"logprobs": True, "top_logprobs": 10**6},
            {"stop": ["x"] * 10_000},
            {"stop": "x" * 100_000},
            {"messages": [*many, {"role": "user", "content": "c"}]},
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            {"chat_template": "{{ 1 }}"},
        ):
            status, _, answer = server.ask(CHAT, {**HELLO, **change})
            assert (change.keys(), status) == (change.keys(), 400)
            code_of(answer)
        assert engine.tokens == 1


@pytest.mark.parametrize(
    ("sent", "noted"),
    [
        ("trace-7:a/b.c_d", "trace-7:a/b.c_d"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("a b", None),
        ('"},{"event":"forged', None),
        ("", None),
        ("req_\xe9", None),
        ("a\tb", None),
    ],
)
def test_a_request_has_our_id_whatever_the_client_calls_it(sent: str, noted: str | None) -> None:
    with guarded(ScriptedEngine()) as server:
        answers = [server.ask(CHAT, {**HELLO, "max_tokens": 1}, {"x-request-id": sent}) for _ in range(2)]
        ids = [headers["x-request-id"] for _, headers, _ in answers]
        assert [status for status, _, _ in answers] == [200, 200]
        assert ids[0] != ids[1]
        assert all(len(id_) == 36 and id_.startswith("req_") for id_ in ids)
        eventually(lambda: len(server.requests()) == 2)
        assert [line["request_id"] for line in server.requests()] == ids
        assert [line.get("client_request_id") for line in server.requests()] == [noted, noted]


def test_an_engine_that_breaks_is_told_in_both_forms() -> None:
    engine = ScriptedEngine(pause=0.01)
    with guarded(engine) as server:
        connection = server.connect()
        connection.sendall(raw_post({**HELLO, "max_tokens": 1000, "stream": True}, headers="connection: close\r\n"))
        assert connection.recv(100)
        engine.broken = True
        rest = read_all(connection)
        connection.close()
        assert b'"error":{' in rest
        assert b"[DONE]" not in rest
        status, _, answer = server.ask(CHAT, HELLO)
        assert (status, code_of(answer)) == (503, "engine_error")
        eventually(lambda: len(server.requests()) == 2)
        assert server.requests()[0]["failed"] is True
        eventually(server.is_free)


def test_bugs_are_answered_with_an_id_and_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(ScriptedEngine()) as server:

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("a secret of the prompt")

        monkeypatch.setattr(type(server.guard.admission), "enter", broken)
        status, headers, answer = server.ask(CHAT, HELLO)
        assert (status, code_of(answer)) == (500, "internal_error")
        assert b"Traceback" not in answer
        assert b"secret" not in answer
        assert headers["x-request-id"].encode() in answer
        eventually(lambda: len(server.requests()) == 1)
        assert "ZeroDivisionError at " in server.requests()[0]["error"]
        assert "secret" not in server.stream.getvalue()


def test_what_is_logged_and_what_is_not() -> None:
    spoken = {**HELLO, "messages": [{"role": "user", "content": "my secret"}], "max_tokens": 3}
    for contents in (False, True):
        with guarded(ScriptedEngine(), log_contents=contents) as server:
            _, _, answer = server.ask(CHAT, {**spoken, "n": 2, "attributes": {"verbosity": 1}})
            counts = json.loads(answer)["usage"]
            eventually(lambda: len(server.requests()) == 1)
            [line] = server.requests()
            assert (line["status"], line["route"], line["sequences"]) == (200, CHAT, 2)
            assert line["prompt_tokens"] == counts["prompt_tokens"]
            assert line["completion_tokens"] == counts["completion_tokens"] == 6
            assert line["cached_tokens"] == counts["prompt_tokens_details"]["cached_tokens"] == 3
            assert line["attributes"]["verbosity"] == 1
            assert 0 <= line["first_token_seconds"] <= line["seconds"]
            assert ("my secret" in server.stream.getvalue()) == contents


def test_names_that_clients_make_up_do_not_grow_the_metrics() -> None:
    with guarded(ScriptedEngine()) as server:
        samples = []
        for i in range(10):
            server.ask(f"/v1/made-up-{i}", None, None, f"VERB{i}")
            server.ask(f"/v1/models/{i}")
            samples.append(server.metrics().keys())
        assert samples[2] == samples[-1]
        assert not any("made-up" in part or "VERB" in part for sample in samples[-1] for part in sample)
