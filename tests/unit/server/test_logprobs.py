"""Bytes of tokens against the tokenizer's own decoding."""

from __future__ import annotations

import pytest

from steerlm.server.logprobs import token_bytes, token_text
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
