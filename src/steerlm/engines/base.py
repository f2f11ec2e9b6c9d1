"""The small interface behind which engines differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from steerlm.errors import ConfigError

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in play.

    Request `i` of a batch draws from its own generator, seeded with `seed + i`, so that it does not depend on what
    else is in the batch. The repetition penalty counts the tokens of the answer only. Text stops before any of
    `stop`, which is never shown.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must not be negative; 0 means all tokens")
        if self.repetition_penalty <= 0:
            raise ConfigError(f"repetition_penalty={self.repetition_penalty} must be above 0")
        if any(not text for text in self.stop):
            raise ConfigError("a stop string must not be empty")


class Piece(NamedTuple):
    """The next piece of an answer: text that is certain by now (may be empty), the token behind it, and, with the
    last piece, why it ended. `request` is the number of its prompt.
    """

    request: int
    token: int
    text: str
    finish: Finish | None = None


class Engine(Protocol):
    """Generates from token ids."""

    context: int
    """Most tokens that prompt and answer may have together."""

    def stream(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[Piece]:
        """Continue all prompts at once, yielding pieces as they come. Raises `ConfigError` where one is too long."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: its text without outer white space, its token ids (the end signal included)."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish


def complete(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
    """Run an engine to the end."""
    texts: list[list[str]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    finish: list[Finish] = ["length" for _ in prompts]
    for piece in engine.stream(prompts, sampling):
        texts[piece.request].append(piece.text)
        tokens[piece.request].append(piece.token)
        if piece.finish:
            finish[piece.request] = piece.finish
    return [
        Completion("".join(text).strip(), tuple(ids), why) for text, ids, why in zip(texts, tokens, finish, strict=True)
    ]
