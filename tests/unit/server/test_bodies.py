"""Bodies: every limit on its own, against Python's own parser where there is something to compare with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from steerlm.server.bodies import BodyLimits, check_json
from steerlm.server.refusals import RefusedError

STRINGS = st.text(st.sampled_from('[]{}"\\,: aé\n'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def items_of(value: Any) -> int:
    """Lists, objects and their members, but for numbers after the first of a list."""
    if isinstance(value, dict):
        return max(1, len(value)) + sum(map(items_of, value.values()))
    if isinstance(value, list):
        numbers = sum(type(item) is int for item in value[1:])
        return max(1, len(value) - numbers) + sum(map(items_of, value))
    return 0


def passes(body: bytes, depth: int = 32, items: int = 1000) -> bool:
    try:
        check_json(body, depth, items)
    except RefusedError:
        return False
    return True


@given(VALUES, st.integers(1, 5), st.booleans())
def test_depth_is_that_of_the_parsed_value(value: Any, limit: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert passes(body, limit) == (depth_of(value) <= limit)


@given(VALUES, st.integers(1, 8), st.booleans())
def test_items_are_those_of_the_parsed_value(value: Any, limit: int, spaced: bool) -> None:
    body = json.dumps(value, indent=1 if spaced else None, separators=None if spaced else (",", ":")).encode()
    assert passes(body, items=limit) == (items_of(value) <= limit)


def test_a_prompt_of_many_token_ids_is_no_long_list() -> None:
    assert passes(json.dumps({"prompt": [list(range(50_000))] * 4}).encode())


def test_no_other_encoding_hides_what_a_body_holds() -> None:
    """In UTF-16 the letter has the byte of a quotation mark, behind which brackets would look like text."""
    body = json.dumps(["\u0122", [[[[]]]]], ensure_ascii=False)
    assert json.loads(body.encode("utf-16-le"))
    assert not passes(body.encode("utf-16-le"), depth=3)
    assert not passes(body.encode("utf-16-be"), depth=3)


@given(st.binary(max_size=40) | st.text(st.sampled_from('[]{}"\\ud83e,:1a'), max_size=40).map(str.encode))
def test_what_python_parses_into_text_passes_and_what_it_cannot_decode_does_not(body: bytes) -> None:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        assert not passes(body)
        return
    try:
        value = json.loads(body.decode())
    except ValueError:
        return  # the route that parses it answers
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert not passes(body)
    else:
        assert passes(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 4_000_000,
        b"{}," * 1_000_000,
        b'"",' * 1_000_000,
        b", " * 1_000_000,
        b"{}" * 500_000 + b"]" * 100,
        b'"' + b'\\"' * 500_000,
        b"\\" * 1_000_000 + b'"[',
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 100_000,
        b'"' * 999_999 + b"[",
    ],
)
def test_hostile_bodies_are_refused_by_us_or_by_the_parser(body: bytes) -> None:
    if passes(body):
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)


@pytest.mark.parametrize(
    ("body", "fine"),
    [
        (rb'{"a": "\ud83d\ude00"}', True),
        (rb'{"a": "\\ud83d"}', True),
        (rb'{"a": "\ud83d"}', False),
        (rb'{"a": "\ude00\ud83d"}', False),
        (rb'{"\udfff": 1}', False),
        ('{"a": "😀"}'.encode(), True),
        (b'{"a": "\xed\xa0\x80"}', False),
        (b'{"a": "\xff"}', False),
        (b'{"a": "\xc0\x80"}', False),
    ],
)
def test_half_characters_and_bad_utf8(body: bytes, fine: bool) -> None:
    assert passes(body) == fine


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(
    chunks: Iterable[bytes], headers: dict[str, str] | None = None, seconds: float = 5.0, ends: str = "whole"
) -> tuple[int, bytes, int]:
    """Status and body of the answer, and how many chunks were read; `ends` is whole, stalled or gone."""
    read = 0

    async def scene() -> list[Message]:
        async def arriving() -> AsyncIterator[Message]:
            nonlocal read
            for chunk in chunks:
                read += 1
                yield {"type": "http.request", "body": chunk, "more_body": True}
            if ends == "stalled":
                await asyncio.Event().wait()
            if ends == "whole":
                yield {"type": "http.request", "body": b"", "more_body": False}
            yield {"type": "http.disconnect"}

        messages = arriving()
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        app = BodyLimits(echo, most_bytes=1000, seconds=seconds, most_held=1000, depth=8, items=100, keep=False)
        await app({"type": "http", "headers": raw}, lambda: anext(messages), send)
        return sent

    sent = asyncio.run(scene())
    body = b"".join(message.get("body", b"") for message in sent)
    return next((message["status"] for message in sent if "status" in message), 0), body, read


def code(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["code"])


def test_a_body_in_pieces_arrives_whole() -> None:
    text = json.dumps({"a": "b" * 500}).encode()
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    assert ask(pieces)[:2] == (200, text)
    assert ask([])[:2] == (200, b"")


def test_the_size_is_counted_whatever_was_announced() -> None:
    status, body, read = ask([b" " * 100] * 1000)
    assert (status, code(body), read) == (413, "request_too_large", 11)
    status, body, read = ask([b" " * 100] * 1000, {"content-length": "5"})
    assert (status, read) == (413, 11)
    for announced in ("1001", "9" * 5000):
        assert ask([b"x"], {"content-length": announced})[::2] == (413, 0)
    assert ask([b'"' + b"x" * 998 + b'"'])[0] == 200


def test_a_body_that_dribbles_or_stops_is_given_up() -> None:
    status, body, _ = ask([b'{"a":'], seconds=0.05, ends="stalled")
    assert (status, code(body)) == (408, "request_timeout")


def test_a_client_that_leaves_before_its_body_is_whole_is_not_answered() -> None:
    assert ask([b'{"a":'], ends="gone")[:2] == (0, b"")


def test_only_json_is_looked_into() -> None:
    deep = b"[" * 9 + b"]" * 9
    assert ask([deep])[0] == 400
    assert ask([deep], {"content-type": "application/vnd.api+JSON; charset=utf-8"})[0] == 400
    assert ask([b"\xff" + deep], {"content-type": "application/octet-stream"})[0] == 200
