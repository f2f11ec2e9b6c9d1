"""Bodies and chunks of /v1/completions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from steerlm.engines.base import Request, Sampling, TokenLogprob
from steerlm.engines.completions_api import Chunk, read_chunk, read_models, refusal, request_body, unknown_fields
from steerlm.errors import ConfigError, EngineError


def chunk(likeliest: int | None = None, **choice: Any) -> Chunk:
    return read_chunk(json.dumps({"choices": [{"index": 0, "text": "", **choice}]}), likeliest)


def test_what_is_left_at_its_default_is_not_sent() -> None:
    assert request_body(Request((1, 2)), "policy", (), ()) == {
        "model": "policy",
        "prompt": [1, 2],
        "max_tokens": 512,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


def test_sampling_is_passed_on() -> None:
    sampling = Sampling(
        max_tokens=9,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        repetition_penalty=1.1,
        seed=3,
        min_tokens=2,
        logprobs=4,
    )
    body = request_body(Request((1,), sampling), "policy", ("END",), (7, 8), without={"stream_options"})
    assert body == {
        "model": "policy",
        "prompt": [1],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "seed": 3,
        "min_tokens": 2,
        "logprobs": 4,
        "stop": ["END"],
        "stop_token_ids": [7, 8],
        "stream": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def test_chunks_with_and_without_token_ids() -> None:
    assert chunk(text="salt", token_ids=[5, 6]) == Chunk("salt", (5, 6))
    assert chunk(text="salt") == Chunk("salt", None)
    assert chunk(text="", token_ids=[], finish_reason="length") == Chunk("", (), finish="length")
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 8}}
    assert read_chunk(json.dumps({"choices": [], "usage": usage}), None) == Chunk(tokens=(), cached=8)


def test_log_probabilities() -> None:
    told = {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-0.5, -2.0],
        "top_logprobs": [{"token_id:9": -1.5, "token_id:5": -0.5}, {"token_id:6": -2.0, "token_id:1": -0.25}],
    }
    # The chosen 6 is not among the likeliest one, but servers add it.
    assert chunk(1, text="ab", logprobs=told) == Chunk(
        "ab", (5, 6), (TokenLogprob(-0.5, ((5, -0.5),)), TokenLogprob(-2.0, ((1, -0.25),)))
    )
    assert chunk(None, text="ab", logprobs=told).logprobs == ()
    text = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": None}
    assert chunk(1, text="a", logprobs=text) == Chunk("a", None, (TokenLogprob(-math.inf, ()),))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "no chunk of a completion"),
        ('{"choices": 3}', "no chunk of a completion"),
        ('{"error": {"message": "out of memory", "code": 500}}', "the server failed: out of memory"),
        ('{"choices": [{"text": "", "finish_reason": "abort"}]}', "for the reason 'abort'"),
    ],
)
def test_chunks_that_are_errors(data: str, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        read_chunk(data, None)


@pytest.mark.parametrize(
    ("status", "said", "kind", "says"),
    [
        (
            400,
            b'{"error": {"message": "max_tokens is too large", "type": "BadRequestError"}}',
            ConfigError,
            "too large",
        ),
        (400, b'{"object": "error", "message": "too long", "code": 400}', ConfigError, r"request \(400\): too long"),
        (422, b'{"detail": [{"loc": ["body", "seed"], "msg": "no"}]}', ConfigError, r'\["body", "seed"\]'),
        (404, b'{"error": {"message": "no model `x`"}}', EngineError, "http://up/v1 does not have.*no model `x`"),
        (401, b"", EngineError, r"http://up/v1 refuses the API key \(401\): it gave no reason"),
        (403, b"", EngineError, r"http://up/v1 refuses the API key \(403\)"),
        (307, b"elsewhere", EngineError, "elsewhere"),
        (429, b"queue full", EngineError, r"too busy \(429\): queue full; try again later"),
        (500, b'{"error": {"message": "CUDA"}}', EngineError, r"failed \(500\): CUDA"),
        (503, b"\xff" * 9000, EngineError, r"failed \(503\): "),
        (500, b"[" * 100_000, EngineError, r"failed \(500\): \["),
    ],
)
def test_refusals(status: int, said: bytes, kind: type[Exception], says: str) -> None:
    error = refusal(status, said, "http://up/v1")
    assert type(error) is kind
    assert len(str(error)) < 600
    with pytest.raises(kind, match=says):
        raise error


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), (None, 1.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0), ("9" * 400, 3600.0)]
)
def test_busy_servers_say_when_to_come_back(header: str | None, seconds: float) -> None:
    error = refusal(429, b"", "http://up/v1", header)
    assert isinstance(error, EngineError)
    assert error.retry_after == seconds


FORBIDDEN = {"type": "extra_forbidden", "loc": ["body", "return_token_ids"], "msg": "Extra inputs are not permitted"}
BODY = {"prompt": [1], "return_token_ids": True, "stop_token_ids": [2]}
OTHER_FAULT = {"type": "value_error", "loc": ["body"], "msg": "logprobs is not supported", "input": BODY}


@pytest.mark.parametrize(
    ("status", "said", "fields"),
    [
        (422, {"detail": [FORBIDDEN]}, {"return_token_ids"}),
        (400, {"error": {"message": f"{[FORBIDDEN]}"}}, {"return_token_ids"}),
        (400, {"error": {"message": "Unrecognized request argument supplied: stop_token_ids"}}, {"stop_token_ids"}),
        (400, {"error": {"message": "unknown field: top_k"}}, set()),
        # Another fault, with the request as it came.
        (400, {"message": [{"type": "value_error", "msg": "top_k must not be 7", "input": BODY}]}, set()),
        (422, {"detail": [{"type": "value_error", "msg": "top_k is not supported", "input": BODY}]}, set()),
        (400, {"message": f"1 validation error: {[OTHER_FAULT]}"}, set()),
        (400, {"message": f"1 validation error: {[OTHER_FAULT, FORBIDDEN]}"}, {"return_token_ids"}),
        (400, f"{BODY}: top_k is not supported; the request was {BODY}", set()),
        (400, {"message": "top_k is not supported", "param": "top_k", "request": BODY}, set()),
        (400, {"error": {"message": "return_token_ids is not a valid parameter"}}, {"return_token_ids"}),
        (400, {"error": {"message": "Invalid parameter: stop_token_ids"}}, {"stop_token_ids"}),
        (400, {"error": {"message": "it is of no use; leave it out", "param": "stream_options"}}, {"stream_options"}),
        # What a server of ours says where it gets no ids itself.
        (400, {"error": {"message": "no", "param": "return_token_ids", "code": "no_token_ids"}}, {"return_token_ids"}),
        (400, {"error": {"message": "no", "param": "logprobs", "code": "no_token_ids"}}, set()),
        (500, {"detail": [FORBIDDEN]}, set()),
        (400, "stop_token_ids must be short", set()),
    ],
)
def test_fields_that_a_refusal_calls_unknown(status: int, said: Any, fields: set[str]) -> None:
    assert unknown_fields(status, json.dumps(said).encode()) == fields


def test_models() -> None:
    [model] = read_models(b'{"object": "list", "data": [{"id": "m", "max_model_len": 9, "root": "/x"}]}')
    assert (model.id, model.max_model_len) == ("m", 9)
    with pytest.raises(EngineError, match="no OpenAI-compatible server"):
        read_models(b"<html>")
