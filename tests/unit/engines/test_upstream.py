"""The engine over another server, against a real one whose answers are written here."""

from __future__ import annotations

import threading

import pytest
from pydantic import ValidationError

from completions_server import Call
from steerlm.engines.base import Guidance, Piece, Request, Sampling, batch, complete, stream
from steerlm.engines.upstream import UpstreamSettings
from steerlm.errors import ConfigError, EngineError, SteerLMError
from tiny import renderer
from upstream import ANSWER, END, IDS, RENDERER, Start, ask


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
    with pytest.raises(EngineError, match="refuses the API key"):
        start(Call.drop, models=lambda call: call.refuse(401, {"error": "who are you?"}))


def test_what_is_refused_before_anything_is_sent(start: Start) -> None:
    engine, server = start(Call.drop)
    for request, says in (
        (Request((1,) * 900, Sampling(max_tokens=101)), "exceed the model's context of 1000"),
        (Request((1,), Sampling(), Guidance((1,), 2.0)), "no other server gives"),
        (Request((1,), Sampling(), prompt_logprobs=0), "not asked of another server"),
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


def test_salts_are_sent_without_the_names_in_them(start: Start) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(END, finish_reason="stop")
        call.done()

    engine, server = start(script)
    complete(engine, [Request((number,), salt=salt) for number, salt in ((1, "anna"), (2, "anna"), (3, "b"), (4, ""))])
    salts = {body["prompt"][0]: body.get("cache_salt") for body in server.bodies}
    assert salts[1] == salts[2] != salts[3]
    assert salts[4] is None
    assert "anna" not in str(salts)
