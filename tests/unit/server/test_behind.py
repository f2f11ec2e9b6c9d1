"""The server in front of another one: what its users are told of that one's faults, and of what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from completions_server import Call, serving
from guarded import HELLO, Guarded, code_of, guarded
from served import events
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from upstream import IDS, RENDERER

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@contextmanager
def in_front(script: Callable[[Call], None]) -> Iterator[tuple[Guarded, str]]:
    """Our server, and the address of the one behind it."""

    def warm(call: Call) -> None:
        """The first token, which our server asks for before it is ready."""
        (plain if call.body["prompt"] == [1] else script)(call)

    with serving(warm) as behind:
        engine = UpstreamEngine(UpstreamSettings(url=behind.url), RENDERER, RENDERER.stop_ids)
        try:
            with guarded(engine) as server:
                yield server, behind.url
        finally:
            engine.close()


def plain(call: Call) -> None:
    """An answer without token ids, of a server that knows only OpenAI's own fields."""
    more: dict[str, Any] = {}
    if "logprobs" in call.body:
        more["logprobs"] = {"tokens": ["Because"], "token_logprobs": [-0.1], "top_logprobs": [{"Because": -0.1}]}
    call.begin()
    call.send("Because", **more)
    call.send("", "stop")
    call.done()


@pytest.mark.parametrize("status", [401, 402, 403, 404, 500])
def test_what_the_operator_must_see_to(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """It is no fault of the request, and its details are for the log."""
    with in_front(lambda call: call.refuse(status, {"error": "not with sk-12"})) as (server, url):
        answered, _, body = server.ask(CHAT, HELLO)
    assert (answered, code_of(body)) == (503, "engine_error")
    assert not any(secret in body for secret in (b"sk-12", b"127.0.0.1"))
    assert any(f"{url}/v1" in message and f"({status}): not with sk-12" in message for message in caplog.messages)


def test_a_busy_server() -> None:
    refused = {"error": {"message": "org-12 is too fast"}}
    with in_front(lambda call: call.refuse(429, refused)) as (server, _):
        answered, headers, body = server.ask(CHAT, HELLO)
    assert (answered, headers["retry-after"], code_of(body)) == (503, "1", "engine_busy")
    assert b"org-12" not in body


def test_an_error_within_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.send("Because")
        call.event({"error": {"message": "lost 10.1.2.3"}})
        call.done()

    with in_front(script) as (server, _):
        _, _, body = server.ask(CHAT, {**HELLO, "stream": True})
    assert b"the server that generates failed" in body
    assert b"10.1.2.3" not in body
    assert any("lost 10.1.2.3" in message for message in caplog.messages)


@pytest.mark.parametrize("stream", [False, True])
def test_addresses_are_for_the_log(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    def script(call: Call) -> None:
        if stream:
            call.begin()
            call.send("Because")
        call.drop()

    with in_front(script) as (server, url):
        _, _, body = server.ask(CHAT, {**HELLO, "stream": stream})
    assert b"the server that generates broke the connection" in body
    assert b"127.0.0.1" not in body
    assert any(url in message for message in caplog.messages)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("send", "says"),
    [
        (lambda call: call.raw(b'data: {"choices": [{"text": "my secret"\n\n'), "Invalid JSON"),
        (lambda call: call.raw(b'data: {"choices": [{"text": ["my secret"]}]}\n\n'), "choices.0.text"),
        (lambda call: call.send(logprobs={"top_logprobs": [{"my secret": "a"}]}), "choices.0.logprobs.top_logprobs"),
        (lambda call: call.broken(b"my secret"), "broke the connection: illegal chunk header"),
    ],
)
def test_text_of_answers_is_not_for_the_log(
    stream: bool, send: Callable[[Call], None], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.send("Because")
        send(call)

    with in_front(script) as (server, _):
        _, _, body = server.ask(CHAT, {**HELLO, "stream": stream})
    assert b"the server that generates" in body
    assert any(says in message for message in caplog.messages)
    assert not any("secret" in text for text in (body.decode(), server.stream.getvalue(), *caplog.messages))


def test_a_server_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings = UpstreamSettings(url="http://127.0.0.1:9", model="policy", context=1000, connect_retries=0)
    engine = UpstreamEngine(settings, RENDERER, RENDERER.stop_ids)
    engine.broken = True  # it is not waited for until the server is ready
    with guarded(engine) as server:
        answered, _, body = server.ask(CHAT, HELLO)
    engine.close()
    assert (answered, json.loads(body)["error"]["message"]) == (503, "the server that generates does not answer")


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_that_are_not_told_cannot_be_asked_for(stream: bool) -> None:
    with in_front(plain) as (server, _):
        for path, body, field in (
            (CHAT, {**HELLO, "logprobs": True}, "logprobs"),
            (COMPLETIONS, {"prompt": "Hi", "logprobs": 1}, "logprobs"),
            (COMPLETIONS, {"prompt": "Hi", "return_token_ids": True}, "return_token_ids"),
        ):
            status, _, answer = server.ask(path, {**body, "stream": stream})
            assert (status, code_of(answer), json.loads(answer)["error"]["param"]) == (400, "no_token_ids", field)
        status, _, answer = server.ask(COMPLETIONS, {"prompt": "Hi"})
        assert (status, json.loads(answer)["choices"][0]["text"]) == (200, "Because")


def test_a_server_of_ours_that_gets_no_token_ids() -> None:
    """It refuses to tell them, and is asked again without."""
    with in_front(plain) as (middle, _):
        settings = UpstreamSettings(url=f"http://localhost:{middle.port}")
        engine = UpstreamEngine(settings, RENDERER, RENDERER.stop_ids)
        try:
            with guarded(engine) as server:
                status, _, answer = server.ask(COMPLETIONS, {"prompt": "Hi"})
        finally:
            engine.close()
    assert (status, json.loads(answer)["choices"][0]["text"]) == (200, "Because")


@pytest.mark.parametrize("stream", [False, True])
def test_an_end_without_a_token(stream: bool) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.tokens(*IDS[:2])
        call.tokens(finish_reason="length")
        call.done()

    with in_front(script) as (server, _):
        status, _, answer = server.ask(COMPLETIONS, {"prompt": "Hi", "return_token_ids": True, "stream": stream})
    assert status == 200
    chunks = events(answer.decode()) if stream else [json.loads(answer)]
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == IDS[:2]


def test_guidance_is_not_offered() -> None:
    with in_front(plain) as (server, _):
        assert json.loads(server.ask("/v1/attributes")[2])["guidance"] is False
        status, _, answer = server.ask(CHAT, {**HELLO, "guidance": 2.0})
    assert (status, json.loads(answer)["error"]["param"]) == (400, "guidance")


@pytest.mark.parametrize("stream", [False, True])
def test_raw_prompts_keep_what_was_generated(stream: bool) -> None:
    def script(call: Call) -> None:
        call.begin()
        call.send("\n    return x \n")
        call.send("\n", "length")
        call.done()

    with in_front(script) as (server, _):
        for raw, text in ((True, "\n    return x \n\n"), (False, "return x")):
            _, _, answer = server.ask(COMPLETIONS, {"prompt": "def f(x):", "raw": raw, "stream": stream})
            chunks = events(answer.decode()) if stream else [json.loads(answer)]
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


def test_tokens_are_counted_as_a_server_without_ids_counts_them() -> None:
    """Its chunks may hold several tokens."""

    def script(call: Call) -> None:
        call.begin()
        call.send("Because rivers carry salt ")
        call.send("into it.")
        call.send("", "length")
        call.event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 11, "total_tokens": 20}})
        call.done()

    with in_front(script) as (server, _):
        _, _, body = server.ask(CHAT, HELLO)
        assert json.loads(body)["usage"]["completion_tokens"] == 11
        _, _, metrics = server.ask("/metrics")
    assert b"steerlm_completion_tokens_total 11.0" in metrics


def test_log_probabilities_without_ids_of_the_likeliest_are_refused() -> None:
    def script(call: Call) -> None:
        told = {"tokens": [" Because"], "token_logprobs": [-0.1], "top_logprobs": [{" Because": -0.1}]}
        call.begin()
        call.send(" Because", "length", token_ids=[IDS[0]], logprobs=told)
        call.done()

    with in_front(script) as (server, _):
        answered, _, body = server.ask(CHAT, {**HELLO, "logprobs": True, "top_logprobs": 1})
    assert (answered, code_of(body)) == (400, "no_token_ids")
