"""The engine over another server that cannot be reached, breaks off, refuses or keeps silent."""

from __future__ import annotations

import socket
import threading

import pytest

from completions_server import Call, serving
from steerlm.engines.base import Piece, Request, Sampling, batch, stream
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from steerlm.errors import ConfigError, EngineError, SteerLMError
from upstream import END, IDS, RENDERER, Start, ask


def test_a_server_that_cannot_be_reached(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = UpstreamSettings(url=f"http://127.0.0.1:{port}", connect_retries=0)
    with pytest.raises(
        EngineError, match=rf"cannot connect to http://127.0.0.1:{port}/v1: .*; is the server running\?"
    ):
        UpstreamEngine(settings, RENDERER, ())
    engine = UpstreamEngine(
        UpstreamSettings(url=settings.url, model="m", context=99, connect_retries=20), RENDERER, RENDERER.end_ids
    )

    def script(call: Call) -> None:
        call.begin()
        call.tokens(END, finish_reason="stop")
        call.done()

    found: list[Piece | SteerLMError] = []
    answered = threading.Event()

    def deliver(piece: Piece | SteerLMError) -> None:
        found.append(piece)
        answered.set()

    engine.submit([Request((1,), Sampling(max_tokens=5))], deliver)
    with serving(script, port) as server:
        assert answered.wait(60)
        engine.close()
    assert (found, len(server.bodies)) == ([Piece(0, END, "", "stop")], 1)


def test_a_request_that_was_sent_is_not_repeated(start: Start) -> None:
    engine, server = start(Call.drop)
    with pytest.raises(EngineError, match="broke"):
        ask(engine)
    assert len(server.bodies) == 1


def test_a_connection_that_breaks_within_an_answer(start: Start) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def script(call: Call) -> None:
        call.begin()
        call.tokens(IDS[0])
        if call.body["prompt"] == [1]:
            arrived.wait(60)
            call.drop()
        else:
            arrived.set()
            call.wait_until_gone()
            gone.set()

    engine, _ = start(script)
    with pytest.raises(EngineError, match="broke"):
        list(stream(engine, batch([[1], [2]], Sampling())))
    assert gone.wait(60), "the other answer of the submission is stopped"


def test_an_answer_without_an_end(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(IDS[0])
        call.done()

    engine, _ = start(script)
    with pytest.raises(EngineError, match="ended an answer before its end"):
        ask(engine)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, ConfigError), (404, EngineError), (429, EngineError), (500, EngineError)]
)
def test_refusals_say_what_the_server_said(start: Start, status: int, kind: type[Exception]) -> None:
    engine, server = start(lambda call: call.refuse(status, {"error": {"message": "it is Sunday"}}))
    with pytest.raises(kind, match=rf"\({status}\): it is Sunday"):
        ask(engine)
    assert len(server.bodies) == 1


def test_errors_within_an_answer(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(IDS[0])
        call.event({"error": {"message": "out of memory"}})
        call.done()

    engine, server = start(script)
    with pytest.raises(EngineError, match="the server failed: out of memory"):
        ask(engine)

    def no_stream(call: Call) -> None:
        call.begin("application/json")
        call.event({})

    server.script = no_stream
    with pytest.raises(EngineError, match="application/json"):
        ask(engine)


def test_optional_fields_are_left_out_where_they_are_refused(start: Start) -> None:
    def script(call: Call) -> None:
        for name in ("return_token_ids", "stop_token_ids"):
            if name in call.body:
                call.refuse(422, {"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]})
                return
        call.begin()
        call.send("Hi", "stop")
        call.done()

    engine, server = start(script)
    for _ in range(2):
        assert "".join(piece.text for piece in ask(engine)) == "Hi"
    optional = {"return_token_ids", "stop_token_ids"}
    assert [optional & body.keys() for body in server.bodies] == [optional, {"stop_token_ids"}, set(), set()]
    assert all("stream_options" in body for body in server.bodies)


def test_a_field_is_not_given_up_for_a_request_that_is_refused_without_it_too(start: Start) -> None:
    def script(call: Call) -> None:
        if call.body.get("top_k") == 7:
            call.refuse(400, f"top_k=7 is not supported; the request was {call.body}".encode())
            return
        call.begin()
        call.tokens(END, finish_reason="stop")
        call.done()

    engine, server = start(script)
    with pytest.raises(ConfigError, match="top_k=7 is not supported"):
        ask(engine, top_k=7)
    assert [piece.token for piece in ask(engine)] == [END]
    assert server.bodies[-1]["return_token_ids"] is True


@pytest.mark.parametrize("first", [True, False])
def test_servers_that_are_silent_for_too_long(start: Start, first: bool) -> None:
    gone = threading.Event()

    def script(call: Call) -> None:
        call.begin()
        if not first:
            call.tokens(IDS[0])
        call.wait_until_gone()  # comments are no tokens
        gone.set()

    limit = {"first_token_timeout" if first else "token_timeout": 0.3}
    engine, _ = start(script, model="policy", context=99, **limit)
    with pytest.raises(EngineError, match=f"did not send the {'first' if first else 'next'} token within 0.3 s"):
        ask(engine)
    assert gone.wait(60)


def test_what_ends_well_is_not_spoilt_by_what_follows(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(END, finish_reason="stop")
        call.drop()

    engine, _ = start(script)
    assert [piece.finish for piece in ask(engine)] == ["stop"]
