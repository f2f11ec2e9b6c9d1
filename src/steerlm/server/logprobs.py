"""Log-probabilities of tokens in the forms of OpenAI's two APIs."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from steerlm.engines.base import TokenLogprob


class TopLogprob(BaseModel):
    """A token that could have stood there: its text, its bytes, and its log-probability in nats."""

    token: str
    logprob: float
    bytes: list[int]


class TokenScore(TopLogprob):
    """A token of the answer, and the likeliest at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The form of /v1/chat/completions."""

    content: list[TokenScore]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """The form of /v1/completions: lists with an entry for each token; null for one that nothing comes before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


_LISTS = tuple(CompletionLogprobs.model_fields)


class TextPlace:
    """A place in a text that is made of tokens, in whole characters before it."""

    def __init__(self) -> None:
        self.characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def move(self, raw: bytes) -> None:
        """Behind these bytes; while they end within a character, to where that character begins."""
        self.characters += len(self._decoder.decode(raw))

    def copy(self) -> TextPlace:
        """One that is moved apart from this."""
        other = TextPlace()
        other.characters = self.characters
        other._decoder.setstate(self._decoder.getstate())
        return other


def chat_logprobs(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], scores: Sequence[TokenLogprob | None]
) -> ChatLogprobs:
    """`scores[i]` are those of `tokens[i]`."""
    content = []
    for token, score in zip(tokens, scores, strict=True):
        if score is not None:
            top = [TopLogprob(**_entry(tokenizer, other, value)) for other, value in score.top]
            content.append(TokenScore(**_entry(tokenizer, token, score.logprob), top_logprobs=top))
    return ChatLogprobs(content=content)


def completion_logprobs(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    scores: Sequence[TokenLogprob | None],
    place: TextPlace | None = None,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """As `chat_logprobs`; `place` is where in the text the first token stands, and is moved behind the last.

    With `as_ids` tokens are written as vLLM writes them, `token_id:123`, by which they can be told apart.
    """

    def name(token: int) -> str:
        return _name(tokenizer, token, as_ids)

    place = place or TextPlace()
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token, score in zip(tokens, scores, strict=True):
        if score is not None:
            found.tokens.append(name(token))
            found.token_logprobs.append(score.logprob)
            # Several tokens may read alike; the likeliest comes first.
            found.top_logprobs.append({name(other): value for other, value in reversed(score.top)})
            found.text_offset.append(place.characters)
        place.move(token_bytes(tokenizer, token))
    return found


def prompt_logprobs(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    scores: Sequence[TokenLogprob],
    place: TextPlace,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """As `completion_logprobs`, of a whole prompt; `scores` are those of its tokens from the second one on."""
    place.move(token_bytes(tokenizer, tokens[0]))
    rest = completion_logprobs(tokenizer, tokens[1:], scores, place, as_ids)
    return CompletionLogprobs(
        tokens=[_name(tokenizer, tokens[0], as_ids), *rest.tokens],
        token_logprobs=[None, *rest.token_logprobs],
        top_logprobs=[None, *rest.top_logprobs],
        text_offset=[0, *rest.text_offset],
    )


def joined_logprobs(first: CompletionLogprobs, then: CompletionLogprobs) -> CompletionLogprobs:
    """Those of a text and of what follows it."""
    # Both are valid: to look at thousands of entries again would take long.
    return CompletionLogprobs.model_construct(
        None, **{name: [*getattr(first, name), *getattr(then, name)] for name in _LISTS}
    )


class TokenEnds:
    """Where the tokens of an answer end in its text, and with that which of them an excerpt of the text has shown.

    With `trim` the text leaves out the white space that the tokens begin with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, trim: bool = True) -> None:
        self._tokenizer = tokenizer
        self._trim = trim
        self._ids: list[int] = []
        self._from = 0  # first token of the window that is decoded again with each new one
        self._before = 0  # characters before that window
        self._lead = 0  # white space at the beginning, which answers leave out
        self._is_blank = True
        self._ends: deque[int] = deque()  # of the tokens that are not shown yet

    def push(self, token: int) -> None:
        """Add a token. One whose text is not known (-1) is taken to have none."""
        if token >= 0:
            self._ids.append(token)
        text = self._decoded()
        end = self._before + len(text)
        # What looked like several broken characters may be one, once its last byte is there.
        self._ends = deque(min(earlier, end) for earlier in self._ends)
        self._ends.append(end)
        if self._is_blank:
            self._lead = end - len(text.lstrip())
            self._is_blank = self._lead == end
        if len(self._ids) - self._from > 16 and not text.endswith("\ufffd"):
            self._from = len(self._ids) - 4
            self._before = end - len(self._decoded())

    def show(self, text: str) -> int:
        """How many more tokens stand wholly in the text of the answer as far as it is shown."""
        shown = len(text)
        if self._trim:
            words = len(text.lstrip())
            shown = self._lead + words if words else 0
        before = len(self._ends)
        while self._ends and self._ends[0] <= shown:
            self._ends.popleft()
        return before - len(self._ends)

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=True))


def _name(tokenizer: PreTrainedTokenizerBase, token: int, as_ids: bool) -> str:
    return f"token_id:{token}" if as_ids else token_text(tokenizer, token)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token by itself; bytes that are no whole character show as U+FFFD."""
    return token_bytes(tokenizer, token).decode("utf-8", errors="replace")


@lru_cache(maxsize=1 << 16)
def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes that a token stands for, which may be part of a character."""
    word = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.added_tokens_decoder:
        return word.encode()
    if "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder):
        alphabet = _byte_of()
        return bytes(alphabet[char] for char in word)
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", word):
        return bytes.fromhex(byte[1])
    return word.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in bytes_to_unicode().items()}


def _entry(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float) -> dict[str, Any]:
    raw = token_bytes(tokenizer, token)
    return {"token": raw.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(raw)}
