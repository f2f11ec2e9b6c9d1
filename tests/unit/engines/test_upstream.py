"""The engine over another server, against a real one whose answers are written here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import ValidationError

from completions_server import Call, CompletionsServer, serving
from steerlm.dialects import Renderer
from steerlm.engines.base import Guidance, Piece, Request, Sampling, batch, complete, stream
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from steerlm.errors import ConfigError, EngineError, SteerLMError
from tiny import renderer

RENDERER = renderer("chatml", "chatml")
END = RENDERER.end_ids[0]
ANSWER = "Because rivers carry minerals.  Hello, hello!"
IDS: list[int] = RENDERER.tokenizer(ANSWER)["input_ids"]
Start = Callable[..., tuple[UpstreamEngine, CompletionsServer]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Makes an engine over a server with this script: `start(script, renderer=..., **settings)`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:

        def make(
            script: Callable[[Call], None],
            made: Renderer = RENDERER,
            models: Callable[[Call], None] | None = None,
            **settings: Any,
        ) -> tuple[UpstreamEngine, CompletionsServer]:
            server = stack.enter_context(serving(script))
            server.models = models or server.models
            engine = UpstreamEngine(UpstreamSettings(url=server.url, **settings), made, made.end_ids)
            stack.callback(engine.close)
            return engine, server

        yield make


def ask(engine: UpstreamEngine, **sampling: Any) -> list[Piece]:
    return list(stream(engine, [Request((1, 2, 3), Sampling(**{"max_tokens": 50, **sampling}))]))


def test_answers_by_token_ids(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens()
        for token in IDS:
            call.tokens(token)
        call.tokens(END, finish_reason="stop")
        call.event({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}})
        call.done()

    engine, server = start(script)
    assert (engine.model, engine.context) == ("policy", 1000)
    pieces = ask(engine)
    assert [piece.token for piece in pieces] == [*IDS, END]
    assert "".join(piece.text for piece in pieces) == ANSWER
    assert [piece.finish for piece in pieces] == [None] * len(IDS) + ["stop"]
    assert pieces[-1].cached == 2
    [body] = server.bodies
    assert (body["prompt"], body["model"], body["stop_token_ids"]) == ([1, 2, 3], "policy", [END])
    assert complete(engine, [Request((1,), Sampling())])[0].text == ANSWER
    assert server.connections == 1, "a connection is used again"


def test_answers_come_in_pieces_of_many_tokens_and_end_by_length(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(*IDS[:5])
        call.tokens(*IDS[5:], finish_reason="length")
        call.done()

    engine, _ = start(script)
    [answer] = complete(engine, [Request((1,), Sampling(max_tokens=50))])
    assert (answer.text, answer.tokens, answer.finish) == (ANSWER, tuple(IDS), "length")


def test_a_server_that_tells_no_tokens(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        for text in ("Because", " of \u2028 salt", ".  ", "\n"):
            call.send(text)
        call.send("", "length")
        call.done()

    engine, _ = start(script)
    pieces = ask(engine)
    assert "".join(piece.text for piece in pieces) == "Because of \u2028 salt."
    assert {piece.token for piece in pieces} == {-1}
    assert pieces[-1].finish == "length"


@pytest.mark.parametrize("tells_tokens", [True, False])
def test_stop_strings_never_show_and_close_the_connection(start: Start, tells_tokens: bool) -> None:
    gone = threading.Event()

    def script(call: Call) -> None:
        call.begin()
        for token in IDS:
            text = RENDERER.tokenizer.decode([token])
            call.tokens(token) if tells_tokens else call.send(text)
        call.wait_until_gone()
        gone.set()

    engine, server = start(script)
    pieces = ask(engine, stop=("minerals. ", "nowhere"))
    assert "".join(piece.text for piece in pieces) == "Because rivers carry"
    assert pieces[-1].finish == "stop"
    assert server.bodies[0]["stop"] == ["minerals. ", "nowhere"]
    assert gone.wait(60)


def test_an_end_signal_that_is_spelled_out_is_a_stop_string(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        for text in ("Hi", "\n<extra", "_id_1", ">User\nand more"):
            call.send(text)
        call.wait_until_gone()

    plain = renderer("llama2", "nemo", "plain")
    engine, server = start(script, plain)
    assert "".join(piece.text for piece in ask(engine)) == "Hi"
    assert server.bodies[0]["stop"] == ["<extra_id_1>"]


def test_an_end_signal_before_the_least_number_of_tokens_is_passed_over(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(IDS[0], END, IDS[1], END, IDS[2])
        call.wait_until_gone()

    engine, server = start(script)
    assert [piece.token for piece in ask(engine, min_tokens=3)] == [IDS[0], END, IDS[1], END]
    assert server.bodies[0]["min_tokens"] == 3


def test_log_probabilities(start: Start) -> None:
    def script(call: Call) -> None:
        told = {"tokens": ["token_id:9"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:9": -0.5}]}
        text = {"tokens": ["x", "y"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"x": -1.0}, {"y": -2.0}]}
        call.begin()
        if len(call.body["prompt"]) == 1:
            call.send("not looked at", "length", logprobs=told)
        else:
            call.send("xy", "length", logprobs=text)
        call.done()

    engine, _ = start(script)
    [piece] = stream(engine, [Request((1,), Sampling(logprobs=1))])
    assert (piece.token, piece.logprob) == (9, (-0.5, ((9, -0.5),)))
    first, second = stream(engine, [Request((1, 2), Sampling(logprobs=1))])
    assert (first.text + second.text, first.logprob, second.logprob) == (
        "xy",
        (-1.0, ((-1, -1.0),)),
        (-2.0, ((-1, -2.0),)),
    )


def test_several_answers_at_a_time(start: Start) -> None:
    together = threading.Barrier(4)

    def script(call: Call) -> None:
        together.wait(60)
        call.begin()
        call.tokens(*IDS[: call.body["prompt"][0]], finish_reason="length")
        call.done()

    engine, server = start(script)
    answers = complete(engine, batch([[1], [2], [3], [4]], Sampling(temperature=1.0, seed=7)))
    assert [len(answer.tokens) for answer in answers] == [1, 2, 3, 4]
    assert sorted((body["prompt"][0], body["seed"]) for body in server.bodies) == [(1, 7), (2, 8), (3, 9), (4, 10)]


def test_no_more_connections_than_allowed(start: Start) -> None:
    now, most = [], []

    def script(call: Call) -> None:
        now.append(1)
        most.append(len(now))
        call.begin()
        call.tokens(END, finish_reason="stop")
        now.pop()
        call.done()

    engine, server = start(script, connections=1)
    complete(engine, batch([[1]] * 5, Sampling()))
    assert (max(most), server.connections) == (1, 1)


def test_cancelling_is_seen_by_the_server(start: Start) -> None:
    gone = threading.Event()

    def script(call: Call) -> None:
        call.begin()
        call.tokens(IDS[0])
        call.wait_until_gone()
        gone.set()

    engine, server = start(script)
    pieces = stream(engine, [Request((1,), Sampling())])
    assert next(pieces).token == IDS[0]
    pieces.close()  # type: ignore[attr-defined]
    assert gone.wait(60)
    server.script = lambda call: call.refuse(500, {})
    delivered: list[Piece | SteerLMError] = []
    engine.submit([Request((1,), Sampling())], delivered.append)()
    engine.close()
    assert delivered == []


def test_closing_ends_what_goes_on(start: Start) -> None:
    arrived = threading.Event()

    def script(call: Call) -> None:
        call.begin()
        arrived.set()
        call.wait_until_gone()

    engine, _ = start(script)
    delivered: list[Piece | SteerLMError] = []
    cancel = engine.submit(batch([[1], [2]], Sampling()), delivered.append)
    assert arrived.wait(60)
    engine.close()
    engine.close()
    cancel()
    [error] = delivered
    assert isinstance(error, EngineError)
    assert "was closed" in str(error)
    with pytest.raises(EngineError, match="has been closed"):
        engine.submit([Request((1,), Sampling())], delivered.append)
    assert not any(thread.name == "steerlm-upstream" for thread in threading.enumerate())


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
    ("status", "kind"), [(400, ConfigError), (404, ConfigError), (429, EngineError), (500, EngineError)]
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


def test_model_and_context(start: Start) -> None:
    def models(call: Call) -> None:
        call.refuse(200, {"data": [{"id": "base", "max_model_len": 64}, {"id": "tuned"}]})

    engine, server = start(Call.drop, models=models, api_key="secret")
    assert (engine.model, engine.context) == ("base", 64)
    assert server.headers[0]["authorization"] == "Bearer secret"
    engine, server = start(Call.drop, models=models, model="tuned", context=32)
    assert (engine.model, engine.context, server.headers) == ("tuned", 32, [])
    for settings, kind, says in (
        ({"model": "tuned"}, ConfigError, "does not tell the context of 'tuned'"),
        ({"model": "other"}, ConfigError, "serves no model 'other'; it has base, tuned"),
    ):
        with pytest.raises(kind, match=says):
            start(Call.drop, models=models, **settings)
    for answer, kind, says in (
        ({"data": []}, ConfigError, "serves no model"),
        ({"models": 3}, EngineError, "no OpenAI-compatible server"),
    ):
        with pytest.raises(kind, match=says):
            start(Call.drop, models=lambda call, answer=answer: call.refuse(200, answer))
    with pytest.raises(ConfigError, match="refuses the API key"):
        start(Call.drop, models=lambda call: call.refuse(401, {"error": "who are you?"}))


def test_what_is_refused_before_anything_is_sent(start: Start) -> None:
    engine, server = start(Call.drop)
    for request, says in (
        (Request((1,) * 900, Sampling(max_tokens=101)), "exceed the model's context of 1000"),
        (Request((1,), Sampling(), Guidance((1,), 2.0)), "use engine torch"),
    ):
        with pytest.raises(ConfigError, match=says):
            engine.submit([request], lambda _: None)
    assert server.bodies == []
    assert list(stream(engine, [])) == []


def test_addresses() -> None:
    for given in ("http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"):
        assert UpstreamSettings(url=given).url == "http://host:8000/v1"
    assert UpstreamSettings(url="https://host/llm").url == "https://host/llm/v1"
    for wrong in ("host:8000", "http://", "ftp://host", "http://me:secret@host"):
        with pytest.raises(ValidationError):
            UpstreamSettings(url=wrong)
    assert "secret" not in repr(UpstreamSettings(url="http://host", api_key="secret"))
