"""/v1/responses against /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from served import HELLO, Scripted, events, send
from steerlm.engines.base import Piece
from steerlm.server.state import ServerState

PATH = "/v1/responses"
Post = Callable[..., httpx2.Response]


def test_answers_as_chat_does(post: Post) -> None:
    chat = post(
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "Be a sailor."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Ahoy!"},
                {"role": "user", "content": "Why?"},
            ],
            "max_tokens": 8,
            "temperature": 0,
            "verbosity": "low",
        },
    ).json()
    found = post(
        PATH,
        {
            "instructions": "Be a sailor.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "Ahoy!", "annotations": [], "logprobs": []}]},
                {"role": "user", "content": "Why?"},
            ],
            "max_output_tokens": 8,
            "temperature": 0,
            "text": {"verbosity": "low", "format": {"type": "text"}},
            "store": False,
        },
    ).json()  # fmt: skip
    [item] = found["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert found["steering"]["attributes"] == item["attributes"] == chat["steering"]["attributes"]
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_stream_tells_the_same(post: Post) -> None:
    body = {"input": "Why is the sea salty?", "max_output_tokens": 10, "seed": 1, "measure": True}
    whole = post(PATH, body).json()
    told = events(post(PATH, {**body, "stream": True}).text)
    assert [item["sequence_number"] for item in told] == list(range(len(told)))
    kinds = [item["type"].removeprefix("response.") for item in told]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(item["delta"] for item in told[4:-4]) == told[-4]["text"] == text
    last = told[-1]["response"]
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    for name in ("status", "steering", "incomplete_details"):
        assert last[name] == whole[name]
    assert last["output"][0]["id"] == told[2]["item"]["id"]


@pytest.mark.parametrize(
    "body",
    [
        {"previous_response_id": "resp_1"},
        {"tools": [{"type": "web_search"}]},
        {"background": True},
        {"text": {"format": {"type": "json_schema"}}},
        {"include": ["reasoning.encrypted_content"]},
        {"truncation": "auto"},
        {"input": [{"type": "reasoning", "summary": []}]},
        {"input": []},
        {"n": 2},
        {"stream": True, "verified": 2},
    ],
)
def test_what_it_cannot_do_is_refused(post: Post, body: dict[str, Any]) -> None:
    answer = post(PATH, {"input": "Hi", **body})
    assert answer.status_code == 400
    named = next(iter(set(body) - {"stream"}))
    assert answer.json()["error"]["message"].startswith(named)


def test_answers_go_on_from_those_with_their_salt_only(serve: Callable[..., ServerState]) -> None:
    for path, body in (
        (PATH, {"input": "Hi"}),
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/steer/sweep", {"messages": HELLO, "settings": [{"humor": 1}]}),
    ):
        engine = Scripted(Piece(0, 5, "a", "length"))
        assert send(serve(engine=engine), path, {**body, "cache_salt": "mine"}).status_code == 200
        assert [request.salt for request in engine.requests] == ["mine"]
