"""Bytes of tokens against the tokenizer's own decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from steerlm.engines.base import Piece, Request, Sampling, TokenLogprob
from steerlm.engines.text import TextStream
from steerlm.server.generation import add, new_answers
from steerlm.server.logprobs import TextPlace, TokenEnds, completion_logprobs, token_bytes, token_text
from steerlm.server.state import ServerState
from tiny import TOKENIZERS

TEXT = "Why is the sea salty?\n\nÜber 12 – naïve 🌊  def f(x):\n    return 1"


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_bytes_of_tokens_are_the_bytes_of_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    raw = b"".join(token_bytes(tokenizer, token) for token in ids)
    assert raw.decode().strip() == tokenizer.decode(ids).strip() == TEXT


def test_added_tokens_read_as_they_are() -> None:
    tokenizer = TOKENIZERS["chatml"]()
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("<|im_end|>")) == "<|im_end|>"


def test_half_a_character_shows_as_a_replacement() -> None:
    tokenizer = TOKENIZERS["chatml"]()
    first, *_ = tokenizer.encode("🌊", add_special_tokens=False)
    assert token_bytes(tokenizer, first) == "🌊".encode()[: len(token_bytes(tokenizer, first))]
    assert token_text(tokenizer, first) == "\ufffd"


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("pieces", [1, 100])
def test_tokens_begin_where_their_character_does(name: str, pieces: int) -> None:
    """Also those that go on with one, and in as many pieces as the answer may arrive in."""
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    found, place = [], TextPlace()
    for start in range(0, len(ids), pieces):
        part = ids[start : start + pieces]
        found += completion_logprobs(tokenizer, part, [TokenLogprob(-1.0, ())] * len(part), place).text_offset
    raw = [token_bytes(tokenizer, token) for token in ids]
    assert found == [len(b"".join(raw[:count]).decode(errors="ignore")) for count in range(len(ids))]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_tokens_are_shown_once_all_of_their_text_is(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(TEXT * 3, add_special_tokens=False)
    text = tokenizer.decode(ids)
    lengths = [len(tokenizer.decode(ids[: end + 1])) for end in range(len(ids))]
    for shown in range(0, len(text) + 1, 7):
        ends = TokenEnds(tokenizer)
        for token in ids:
            ends.push(token)
        # Half a character may read as several.
        assert ends.show(text[:shown]) == sum(min(lengths[at:]) <= shown for at in range(len(ids)))
        assert ends.show(text) == len(ids) - sum(min(lengths[at:]) <= shown for at in range(len(ids)))


@pytest.mark.parametrize(("trim", "shown"), [(False, 2), (True, 0)])
def test_white_space_before_a_stop_string_is_listed_where_it_is_shown(trim: bool, shown: int) -> None:
    """Two line breaks, and then what the answer is to end before."""
    tokenizer = TOKENIZERS["chatml"]()
    renderer = SimpleNamespace(tokenizer=tokenizer, stop_ids=frozenset())
    state = cast(ServerState, SimpleNamespace(prompting=SimpleNamespace(renderer=renderer)))
    [answer] = new_answers(state, [Request((1,), Sampling(logprobs=0), trim=trim)])
    text = TextStream(tokenizer, ("H",), trim)
    for part in ("\n", "\n", "H"):
        [token] = tokenizer.encode(part, add_special_tokens=False)
        made = text.push(token)
        add(state, answer, Piece(0, token, made, "stop" if text.stopped else None))
    assert answer.text == "\n\n"[:shown]
    assert len(answer.listed()[0]) == shown
