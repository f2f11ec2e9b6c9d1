"""The small interface behind which engines differ: requests in, pieces of their answers out, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Literal, NamedTuple, Protocol

from steerlm.errors import ConfigError, SteerLMError

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in play.

    A request draws from its own generator, so that what it gets does not depend on what else is computed with it.
    The repetition penalty counts the tokens of the answer only. Text stops before any of `stop`, which is never
    shown. `logprobs` asks for the log-probability of each token and of that many of the likeliest, before temperature.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None

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
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ConfigError(f"min_tokens={self.min_tokens} must lie between 0 and max_tokens={self.max_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ConfigError(f"logprobs={self.logprobs} must lie between 0 and 20")


@dataclass(frozen=True, slots=True)
class Guidance:
    """Steering made stronger: scores are pushed from those after `prompt` (the same conversation under the model's
    default setting) towards those after the request's own, by `factor`: other + factor * (own - other). 1 is none.
    """

    prompt: tuple[int, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate: token ids to continue, and how. With `trim` its text has no outer white space, which is
    wrong for text that is to be read right after the prompt's. `prompt_logprobs` asks for the log-probability of each
    token of the prompt but the first, and of that many of the likeliest at its place. What was computed for a request
    is only taken up again for others of the same `salt`, so that nobody learns from times and counts what others sent.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    guidance: Guidance | None = None
    trim: bool = True
    prompt_logprobs: int | None = None
    salt: str = ""

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """What is computed for it: its own prompt and, with guidance, the other one."""
        return [self.prompt, *([self.guidance.prompt] if self.guidance else [])]


def batch(prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Request]:
    """A request for each prompt; request `i` draws with seed `sampling.seed + i`."""
    return [Request(tuple(ids), replace(sampling, seed=sampling.seed + i)) for i, ids in enumerate(prompts)]


class TokenLogprob(NamedTuple):
    """Log-probability of a token in nats, and the likeliest tokens at its place with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """The next piece of an answer: text that is certain by now (may be empty), the token behind it (-1 where another
    server does not tell), and, with the last piece, why it ended. `request` is the number of its request among those
    submitted with it; `cached` is how many tokens of the prompt were not computed again. With the first piece come the
    log-probabilities of the prompt's tokens from the second one on, where they were asked for. `untold` comes with the
    last piece: the tokens that another server says to have made, less the pieces, which can be more; 0 of a server that
    tells each token.
    """

    request: int
    token: int
    text: str
    finish: Finish | None = None
    logprob: TokenLogprob | None = None
    cached: int = 0
    prompt: tuple[TokenLogprob, ...] = ()
    untold: int = 0


Deliver = Callable[[Piece | SteerLMError], None]
"""Takes the pieces of a submission in order, from a thread of the engine: it must be quick, wait for no other thread
and not raise. An error is the last thing that it is given."""


class Engine(Protocol):
    """Generates from token ids."""

    context: int
    """Most tokens that prompt and answer may have together."""
    guides: bool
    """Whether requests may have guidance."""
    guided_context: int
    """The context of requests with guidance, whose tokens are computed twice."""

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        """Begin to answer; requests submitted together share the computation of what their prompts begin with, where
        their salts are the same.

        Returns what cancels those that have not ended: nothing more is delivered of them, and their memory is freed.
        Raises `ConfigError` where a prompt is too long or the engine lacks what is asked for.
        """

    def close(self) -> None:
        """Stop everything and free the model. Unfinished submissions get an error."""


def stream(engine: Engine, requests: Sequence[Request]) -> Iterator[Piece]:
    """The pieces of all answers as they come. Leaving the iterator early cancels the rest."""
    arrived: SimpleQueue[Piece | SteerLMError] = SimpleQueue()
    cancel = engine.submit(requests, arrived.put)
    try:
        going = len(requests)
        while going:
            piece = arrived.get()
            if isinstance(piece, SteerLMError):
                raise piece
            going -= piece.finish is not None
            yield piece
    finally:
        cancel()


async def stream_async(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[Piece, None]:
    """As `stream`, for an event loop."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Piece | SteerLMError] = asyncio.Queue()

    def deliver(piece: Piece | SteerLMError) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, piece)

    cancel = engine.submit(requests, deliver)
    try:
        going = len(requests)
        while going:
            piece = await arrived.get()
            if isinstance(piece, SteerLMError):
                raise piece
            going -= piece.finish is not None
            yield piece
    finally:
        cancel()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: its text, its token ids (the end signal included), and why it ended."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish


def completions(engine: Engine, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
    """Whole answers as they end, each after the number of its request. Leaving the iterator early cancels the rest."""
    texts: list[list[str]] = [[] for _ in requests]
    tokens: list[list[int]] = [[] for _ in requests]
    for piece in stream(engine, requests):
        number = piece.request
        texts[number].append(piece.text)
        tokens[number].append(piece.token)
        if piece.finish:
            text = "".join(texts[number])
            shown = text.strip() if requests[number].trim else text
            yield number, Completion(shown, tuple(tokens[number]), piece.finish)


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Run requests to their end."""
    found = dict(completions(engine, requests))
    return [found[number] for number in range(len(requests))]


def check_room(request: Request, context: int) -> None:
    """Raise `ConfigError` where a prompt is empty, or prompt and answer together exceed the context."""
    if not all(request.prompts):
        raise ConfigError("an empty prompt cannot be continued")
    longest = max(map(len, request.prompts))
    if longest + request.sampling.max_tokens > context:
        raise ConfigError(
            f"a prompt of {longest} tokens and {request.sampling.max_tokens} to generate exceed the model's context of "
            f"{context}; shorten the conversation or lower max_tokens"
        )
