"""The faults that hit other servers: each is answered with 4xx before the engine is asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from served import HELLO, Recorder, client_of, send
from steerlm.engines import TorchEngine
from steerlm.models.load import SteerModel
from steerlm.server.limits import ServerLimits
from steerlm.server.state import ServerState

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
Serve = Callable[..., ServerState]


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        (CHAT, {"n": 10**9}, "1000000000 answers are more than the 32 of a request"),
        (CHAT, {"n": 0}, "n: "),
        (CHAT, {"max_tokens": 10**12}, "1000000000000, together more than the model's context of 2048"),
        (CHAT, {"max_tokens": 0}, "max_tokens: "),
        (CHAT, {"max_tokens": 5, "min_tokens": 6}, "min_tokens=6 is more than max_tokens=5"),
        (CHAT, {"min_tokens": 10**9}, "context of 2048"),
        (CHAT, {"logprobs": True, "top_logprobs": 10**9}, "at most 20 tokens can be listed"),
        (CHAT, {"top_logprobs": 2}, "needs logprobs=true"),
        (CHAT, {"stop": ["x"] * 10_000}, "10000 strings are more than 16"),
        (CHAT, {"stop": "x" * 10_000}, "1 to 256 characters"),
        (CHAT, {"stop": ""}, "1 to 256 characters"),
        (CHAT, {"stop": [""]}, "1 to 256 characters"),
        (CHAT, {"stop": 5}, "stop: Input should be a valid string"),
        (CHAT, {"stop": ["a", 5]}, "stop.1: Input should be a valid string"),
        (RESPONSES, {"input": 5}, "input: Input should be a valid string"),
        (RESPONSES, {"input": [5]}, "input.0: Input should be a valid dictionary"),
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 20_000}, "20000 messages are more than the 1024"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2_000_000}]}, "2000000 characters are more than"),
        (CHAT, {"messages": [{"role": "user", "content": "salt " * 3000}]}, "more than the model's context of 2048"),
        (CHAT, {"temperature": -1}, "temperature: "),
        (CHAT, {"temperature": 1e30}, "temperature: "),
        (CHAT, {"top_p": 1.5}, "top_p: "),
        (CHAT, {"top_k": -2}, "top_k: "),
        (CHAT, {"repetition_penalty": 0}, "repetition_penalty: "),
        (CHAT, {"seed": 2**63}, "seed: "),
        (CHAT, {"seed": "a"}, "seed: "),
        (CHAT, {"frequency_penalty": 1}, "frequency_penalty: this server cannot do that; leave it out or set it to 0"),
        (CHAT, {"logit_bias": {"5": 100}}, "logit_bias: this server cannot do that"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools: this server cannot do that"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format: this server cannot do that"),
        (CHAT, {"temprature": 1}, "temprature: unknown field 'temprature'"),
        (CHAT, {"stream_options": {"a": 1}}, "stream_options.a: unknown field 'a'"),
        (TEXT, {"prompt": ["a"] * 10_000}, "10000 answers are more than the 32"),
        # The longest number that Python reads or writes; eleven times it is longer.
        (TEXT, {"prompt": ["a"] * 11, "n": int("9" * 4300)}, "n: so many answers are more than the 32"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "at most 20 tokens"),
        (TEXT, {"prompt": [5] * 3000}, "the prompt has 3000 tokens"),
        (RESPONSES, {"input": "a", "max_output_tokens": 10**12}, "context of 2048"),
    ],
)  # fmt: skip
def test_too_much_is_refused_before_anything_is_computed(
    serve: Serve, path: str, body: dict[str, Any], complaint: str
) -> None:
    engine = Recorder()
    answer = send(serve(engine=engine), path, {**({"messages": HELLO} if path == CHAT else {}), **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert complaint in error["message"]
    assert error["type"] == "invalid_request_error"
    assert re.fullmatch(r"[a-z_0-9.]+", error["param"])
    assert not engine.requests


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
    ],
)
def test_a_refusal_names_the_field_of_the_request(serve: Serve, path: str, body: dict[str, Any], field: str) -> None:
    error = send(serve(engine=Recorder()), path, body).json()["error"]
    assert (error["param"], error["message"].split(":")[0]) == (field, field)


def test_a_prompt_with_guidance_has_the_room_of_two(serve: Serve, served_policy: SteerModel) -> None:
    """An answer is fitted to what memory holds of both rows, or refused with the numbers."""
    engine = Recorder(TorchEngine(served_policy))
    state = serve(engine=engine)
    body = {"messages": HELLO, "attributes": {"verbosity": 0}, "guidance": 2}
    assert send(state, CHAT, {**body, "max_tokens": 1}).status_code == 200
    assert engine.requests[0].guidance is not None
    size = max(len(engine.requests[0].prompt), len(engine.requests[0].guidance.prompt))
    engine.guided_context = size + 4
    assert send(state, CHAT, body).status_code == 200
    assert engine.requests[1].sampling.max_tokens == 4
    error = send(state, CHAT, {**body, "max_tokens": 5}).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert f"context of {size + 4} with guidance" in error["message"]
    assert send(state, CHAT, {"messages": HELLO, "max_tokens": 5}).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b"[" * 100_000,
        b'{"messages": ' * 50_000,
        b'{"metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"max_tokens": ' + b"9" * 100_000 + b"}",
        b'{"temperature": NaN, "messages": []}',
        b'{"temperature": 1e999, "messages": []}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\\udfff", "\\udfff": 1}], "\\udfff": "\\udfff"}',
        b'{"attributes": {"\\ud800": 1}, "messages": [{"role": "user", "content": "a"}]}',
        b'{"model": "\\ud800", "messages": []}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES, "/v1/score", "/v1/steer/sweep", "/pooling"])
def test_what_is_no_request_is_answered_in_the_one_form(serve: Serve, path: str, raw: bytes) -> None:
    answer = send(serve(engine=Recorder()), path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [{}] * 3}, "messages"),
        (CHAT, {"messages": HELLO, "stop": [1, 2, 3]}, "stop"),
        (TEXT, {"prompt": [-1, -1, -1]}, "prompt"),
        (RESPONSES, {"input": [{"content": "a"}] * 3}, "input"),
        ("/v1/score", {"conversations": [{}] * 3}, "conversations"),
        ("/v1/steer/sweep", {"messages": HELLO, "settings": [1, 2, 3]}, "settings"),
    ],
)
def test_of_a_list_only_the_first_fault_is_looked_for(
    serve: Serve, path: str, body: dict[str, Any], field: str
) -> None:
    message = send(serve(engine=Recorder()), path, body).json()["error"]["message"]
    places = [fault.partition(": ")[0] for fault in message.split("; ") if fault.startswith(field)]
    assert any(".0" in place for place in places)
    assert not any(f".{number}" in place for place in places for number in (1, 2))


def test_another_content_type_is_refused(serve: Serve) -> None:
    body = json.dumps({"messages": HELLO}).encode()
    answer = send(serve(engine=Recorder()), CHAT, content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert "content-type" in answer.json()["error"]["message"]


def test_the_operator_may_set_limits(serve: Serve) -> None:
    limits = ServerLimits(answers=2, answer_tokens=10, messages=1, stop=1, top_logprobs=0)
    state = serve(limits=limits, engine=Recorder())
    for body in (
        {"n": 3},
        {"max_tokens": 11},
        {"messages": HELLO * 2},
        {"stop": ["a", "b"]},
        {"logprobs": True, "top_logprobs": 1},
    ):
        assert send(state, CHAT, {"messages": HELLO, **body}).status_code == 400


def test_all_text_of_a_request_counts(serve: Serve) -> None:
    state = serve(limits=ServerLimits(characters=10), engine=Recorder())
    talk = [{"role": "user", "text": "abc"}, {"role": "assistant", "text": "abc", "parent": 0}]
    for path, body in (
        (CHAT, {"messages": [{"role": "system", "content": "abcde"}, {"role": "user", "content": "abcdef"}]}),
        (RESPONSES, {"input": "abcde", "instructions": "abcdef"}),
        ("/v1/score", {"conversations": [{"messages": talk, "system": "abcde"}]}),
    ):
        answer = send(state, path, body)
        assert answer.status_code == 400
        assert "11 characters are more than the 10" in answer.json()["error"]["message"]


def test_an_answer_has_what_room_there_is(serve: Serve, served_policy: Any) -> None:
    """Without max_tokens the default, or less where the context is short."""
    prompt = len(served_policy.renderer.tokenizer.encode("a b " * 3))
    engine = Recorder(context=prompt + 20)

    async def ask(limit: int) -> None:
        state = serve(engine=engine, limits=ServerLimits(default_tokens=limit))
        async with client_of(state) as client:
            task = asyncio.create_task(client.post(TEXT, json={"prompt": "a b " * 3}))
            while not engine.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(ask(100))
    assert engine.requests.pop().sampling.max_tokens == 20
    asyncio.run(ask(7))
    assert engine.requests.pop().sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("path", "body", "prompt", "most"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "salt " * 3000}], "max_tokens": 5}, "messages", "max_tokens"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "salt " * 3000}], "max_completion_tokens": 5},
            "messages",
            "max_completion_tokens",
        ),
        (TEXT, {"prompt": "salt " * 3000, "max_tokens": 5}, "prompt", "max_tokens"),
        (RESPONSES, {"input": "salt " * 3000, "max_output_tokens": 5}, "input", "max_output_tokens"),
    ],
)
def test_what_has_no_room_is_called_as_the_request_calls_it(
    serve: Serve, path: str, body: dict[str, Any], prompt: str, most: str
) -> None:
    state = serve(engine=Recorder())
    short = {**body, prompt: HELLO if path == CHAT else "Hi", most: 5000}
    for sent, field in ((body, prompt), (short, most)):
        error = send(state, path, sent).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", field)
        assert f"shorten {prompt} or lower {most}" in error["message"]
