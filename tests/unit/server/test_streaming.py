"""Clients that leave, and engines that fail in the middle."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from served import HELLO, Scripted, events, listening, send
from steerlm.engines.base import Piece
from steerlm.errors import EngineError
from steerlm.server.state import ServerState

CHAT = "/v1/chat/completions"
Serve = Callable[..., ServerState]


FIRST = Piece(0, 70, "Salt")


def leave(address: str, body: str, after: bytes) -> None:
    """Send a request, read until `after` has come, and close the connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall((head + body).encode())
        seen = b""
        while after not in seen:
            seen += connection.recv(65536)
    # The server is told by the closing of the socket.


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


MESSAGES = '"messages": [{"role": "user", "content": "Hi"}]'


@pytest.mark.parametrize(
    ("script", "body", "after"),
    [
        ((FIRST,), f'{{{MESSAGES}, "stream": true}}', b"Salt"),
        ((), f'{{{MESSAGES}, "stream": true}}', b""),
        ((FIRST,), f"{{{MESSAGES}}}", b""),
    ],
)
def test_a_client_that_goes_cancels_its_generation(
    serve: Serve, script: tuple[Piece, ...], body: str, after: bytes
) -> None:
    engine = Scripted(*script)
    with listening(serve(engine=engine)) as address:
        if after:
            leave(address, body, after)
        else:
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                wait_for(lambda: len(engine.requests) == 1)
                assert not engine.cancelled
        wait_for(lambda: engine.cancelled == 1)


def test_what_fails_at_once_has_a_status(serve: Serve) -> None:
    for stream in (False, True):
        answer = send(serve(engine=Scripted(EngineError("out of memory"))), CHAT, {"messages": HELLO, "stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"] == {
            "message": "out of memory",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }


def test_what_fails_later_is_told_in_the_stream(serve: Serve) -> None:
    engine = Scripted(FIRST, EngineError("the cable came out"))
    answer = send(serve(engine=engine), CHAT, {"messages": HELLO, "stream": True})
    assert answer.status_code == 200
    told = events(answer.text)
    assert told[1]["choices"][0]["delta"]["content"] == "Salt"
    assert told[-1]["error"]["message"] == "the cable came out"
    assert "[DONE]" not in answer.text
    assert engine.cancelled == 1


def test_a_fault_of_ours_is_not_told_to_clients(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    broken = Piece(7, 70, "no such request")
    answer = send(serve(engine=Scripted(FIRST, broken)), CHAT, {"messages": HELLO, "stream": True})
    assert events(answer.text)[-1]["error"]["code"] == "internal_error"
    assert "IndexError" in caplog.text


def test_white_space_at_the_beginning_is_no_part_of_an_answer(serve: Serve) -> None:
    script = (Piece(0, 70, "\n"), Piece(0, 71, " "), Piece(0, 72, " Salt"), Piece(0, 73, " is", "stop"))
    whole = send(serve(engine=Scripted(*script)), CHAT, {"messages": HELLO}).json()
    assert whole["choices"][0]["message"]["content"] == "Salt is"
    assert whole["usage"]["completion_tokens"] == 4
    raw = send(serve(engine=Scripted(*script)), "/v1/completions", {"prompt": "a"}).json()
    assert raw["choices"][0]["text"] == "\n  Salt is"


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"})],
)
def test_lines_of_a_stream_end_where_events_do(serve: Serve, path: str, body: dict[str, Any]) -> None:
    """Clients that decode a stream before they cut it into lines cut it at all that Unicode ends lines with."""
    text = "a\v\f\x1c\x1d\x1e\x85\u2028\u2029b"
    answer = send(serve(engine=Scripted(Piece(0, 70, text, "stop"))), path, {**body, "stream": True})
    assert answer.text.splitlines() == answer.text.split("\n")[:-1]
    assert json.dumps(text) in json.dumps(events(answer.text))


def test_many_streams_at_once(state: ServerState) -> None:
    from served import client_of

    async def go() -> list[str]:
        async with client_of(state) as client:
            bodies = [{"messages": HELLO, "max_tokens": 8, "seed": seed % 3, "stream": True} for seed in range(12)]
            answers = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
            return [
                "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(answer.text))
                for answer in answers
            ]

    texts = asyncio.run(go())
    assert texts[:3] * 4 == texts
    assert len(set(texts)) == 3
