"""From the fields of a request to the engine, and from its pieces to answers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from steerlm.engines.base import Finish, Guidance, Piece, Request, Sampling, TokenLogprob
from steerlm.server.errors import ApiError
from steerlm.server.fields import GenerationFields
from steerlm.server.logprobs import TokenEnds
from steerlm.server.state import ServerState
from steerlm.server.work import admitted

_MANY = 10**12  # more digits than anybody reads, and Python refuses to write a number of thousands of them
_COLDEST = 1e-6  # scores divided by less may not be finite; clients that cannot send 0 send this


@dataclass(frozen=True)
class Prompt:
    """Token ids to answer, and those to be pushed away from."""

    ids: tuple[int, ...]
    guidance: Guidance | None = None


@dataclass(frozen=True)
class Called:
    """What a request calls its prompt, the most tokens of an answer, and how many of the likeliest tokens are listed at
    each place, for errors that name them.
    """

    prompt: str = "messages"
    most: str = "max_tokens"
    likeliest: str = "logprobs"


MESSAGES = Called()


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each prompt: `n` answers of at most `max_tokens`, without outer white space (`trim`), going on
    only from what was computed with the same `salt`.
    """

    n: int
    max_tokens: int | None
    trim: bool = True
    salt: str | None = None
    called: Called = MESSAGES


@dataclass
class Answer:
    """An answer as it grows: its text, its tokens, how many of the prompt's were kept, and why it ended.

    `ended` says that the last token is the end signal, which is counted but is no part of the text. The first `shown`
    tokens are those whose text is shown; they are counted where log-probabilities are asked for. `every` says that the
    ids of all tokens are told, so that each stands beside its log-probability; `with_end` that the end signal is listed
    too. `prompt` are the log-probabilities of the prompt's tokens from the second one on, where they are asked for.
    `made` counts the tokens, also those of a server that does not tell them.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] = field(default_factory=list)
    cached: int = 0
    finish: Finish = "length"
    ended: bool = False
    shown: int = 0
    ends: TokenEnds | None = None
    every: bool = False
    with_end: bool = False
    prompt: tuple[TokenLogprob, ...] = ()
    made: int = 0

    def listed(self, start: int = 0) -> tuple[list[int], list[TokenLogprob | None]]:
        """The tokens whose text is shown, from number `start`, with their log-probabilities."""
        return self.tokens[start : self.shown], self.logprobs[start : self.shown]


def read_sampling(
    state: ServerState, fields: GenerationFields, logprobs: int | None = None, called: Called = MESSAGES
) -> Sampling:
    """How to choose tokens; `max_tokens` is still to be fitted to the prompt. Raises `ApiError` beyond the limits."""
    limits = state.limits
    stop = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    if len(stop) > limits.stop:
        raise ApiError(f"stop: {len(stop)} strings are more than {limits.stop}", param="stop")
    if any(not 0 < len(text) <= limits.stop_characters for text in stop):
        raise ApiError(f"stop: each string must have 1 to {limits.stop_characters} characters", param="stop")
    if logprobs is not None and not 0 <= logprobs <= limits.top_logprobs:
        field = called.likeliest
        raise ApiError(f"{field}: at most {limits.top_logprobs} tokens can be listed", param=field)
    seed = secrets.randbelow(2**32) if fields.seed is None else fields.seed % 2**63
    temperature = 1.0 if fields.temperature is None else fields.temperature
    top_k = max(fields.top_k or 0, 0)
    return Sampling(
        max_tokens=max(1, fields.min_tokens or 0),
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=1.0 if not fields.top_p else fields.top_p,
        # A share of nothing leaves the likeliest token, as in NVIDIA's API.
        top_k=1 if fields.top_p == 0 else top_k if top_k < len(state.prompting.renderer.tokenizer) else 0,
        repetition_penalty=fields.repetition_penalty or 1.0,
        seed=seed,
        stop=tuple(stop),
        min_tokens=fields.min_tokens or 0,
        logprobs=logprobs,
    )


def check_answers(state: ServerState, answers: int, field: str = "n") -> None:
    """Raise `ApiError` where a request asks for more answers than it may."""
    if answers > state.most_answers:
        asked = answers if answers < _MANY else "so many"
        raise ApiError(
            f"{field}: {asked} answers are more than the {state.most_answers} of a request",
            param=field,
            code="too_many_sequences",
        )


def plan(state: ServerState, prompts: Iterable[Prompt], sampling: Sampling, wanted: Wanted) -> list[Request]:
    """`wanted.n` requests for each prompt, in order; answer k of a prompt draws with seed + k.

    Prompts may be rendered as they are taken: none is taken after one that is too long. Raises `ApiError` with the
    numbers where the context is too short for prompt and answer.
    """
    found = []
    for prompt in prompts:
        longest = max(len(prompt.ids), len(prompt.guidance.prompt) if prompt.guidance else 0)
        context = state.engine.guided_context if prompt.guidance else state.engine.context
        fitted = replace(sampling, max_tokens=_fitted_tokens(state, longest, context, wanted, sampling.min_tokens))
        found += [
            Request(
                prompt.ids,
                replace(fitted, seed=(sampling.seed + k) % 2**63),
                prompt.guidance,
                wanted.trim,
                salt=wanted.salt or "",
            )
            for k in range(wanted.n)
        ]
    return found


def _fitted_tokens(state: ServerState, prompt: int, context: int, wanted: Wanted, at_least: int) -> int:
    """Most tokens of an answer to a prompt of so many, in a context of so many."""
    limits, asked, most = state.limits, wanted.max_tokens, wanted.called.most
    for name, amount in ((most, asked or 0), ("min_tokens", at_least)):
        if limits.answer_tokens and amount > limits.answer_tokens:
            raise ApiError(f"{name}={amount} is more than the {limits.answer_tokens} of an answer", param=name)
    least = max(1, at_least if asked is None else asked)
    if prompt + least > context:
        guided = " with guidance" if context < state.engine.context else ""
        raise ApiError(
            f"the prompt has {prompt} tokens and the answer may have {least}, together more than the model's context "
            f"of {context}{guided}; shorten {wanted.called.prompt} or lower {most}",
            param=most if prompt < context and asked is not None else wanted.called.prompt,
            code="context_length_exceeded",
        )
    if asked is not None and asked < at_least:
        raise ApiError(f"min_tokens={at_least} is more than {most}={asked}", param="min_tokens")
    default = min(limits.default_tokens, limits.answer_tokens or limits.default_tokens, context - prompt)
    return max(default, at_least) if asked is None else asked


async def pieces(state: ServerState, requests: Sequence[Request], ids: bool = False) -> AsyncGenerator[Piece, None]:
    """The pieces of all answers as they come; those to be trimmed do not begin with white space.

    Closing it cancels what is not done. Raises `ApiError` where token ids are needed, for themselves (`ids`) or for
    log-probabilities, and whatever generates does not tell them.
    """
    begun = [not request.trim for request in requests]
    needs = [ids or request.sampling.logprobs is not None for request in requests]
    async with aclosing(admitted(state.engine, state.admission, requests)) as arriving:
        async for piece in arriving:
            _check_ids(piece, needs, "return_token_ids" if ids else "logprobs")
            if begun[piece.request]:
                yield piece
                continue
            text = piece.text.lstrip()
            begun[piece.request] = bool(text)
            yield piece._replace(text=text)


def _check_ids(piece: Piece, needs: list[bool], field: str) -> None:
    """`needs` says of which answers an id must still come. A server that tells ids tells them with the first piece, of
    the likeliest tokens too where they are listed; an end may have none.
    """
    likeliest = piece.logprob.top if piece.logprob else ()
    if piece.token >= 0 and all(token >= 0 for token, _ in likeliest):
        needs[piece.request] = False
    elif needs[piece.request] and (piece.text or not piece.finish):
        raise ApiError(
            f"{field}: the server that generates tells no token ids; leave it out", param=field, code="no_token_ids"
        )


def new_answers(
    state: ServerState, requests: Sequence[Request], ids: bool = False, with_end: bool = False
) -> list[Answer]:
    """An answer for each request, still empty; `ids` says that token ids are told too, `with_end` that the end signal
    is listed.
    """
    tokenizer = state.prompting.renderer.tokenizer
    found = []
    for request in requests:
        scores = request.sampling.logprobs is not None
        ends = TokenEnds(tokenizer, request.trim) if scores and not ids else None
        found.append(Answer(ends=ends, every=scores and ids, with_end=with_end))
    return found


def add(state: ServerState, answer: Answer, piece: Piece) -> tuple[list[int], list[TokenLogprob | None]]:
    """Take a piece into its answer; returns the tokens whose text it shows, as `Answer.listed` does."""
    before = answer.shown
    answer.text += piece.text
    answer.cached = answer.cached or piece.cached
    answer.tokens.append(piece.token)
    answer.made += 1 + piece.untold
    answer.logprobs.append(piece.logprob)
    answer.prompt = answer.prompt or piece.prompt
    answer.ended = _ends(state, piece)
    listed = len(answer.tokens) - (answer.ended and not answer.with_end)
    if piece.finish:
        answer.finish = piece.finish
    if answer.every:
        answer.shown = listed
    elif answer.ends:
        answer.ends.push(piece.token)
        answer.shown += answer.ends.show(answer.text)
        # White space at the end is no part of the text, but its tokens are listed. Where a stop string ended the text
        # they may belong to that, which never shows, and are not.
        if answer.ended or piece.finish == "length":
            answer.shown = listed
    return answer.listed(before)


def _ends(state: ServerState, piece: Piece) -> bool:
    """Whether the token of a piece is the end signal, which is no part of the answer, or none at all."""
    if piece.token < 0:
        return piece.finish is not None
    return piece.finish == "stop" and piece.token in state.prompting.renderer.stop_ids


async def collect(
    state: ServerState, requests: Sequence[Request], ids: bool = False, with_end: bool = False
) -> list[Answer]:
    """All answers, whole."""
    answers = new_answers(state, requests, ids, with_end)
    async with aclosing(pieces(state, requests, ids)) as arriving:
        async for piece in arriving:
            add(state, answers[piece.request], piece)
    return answers
