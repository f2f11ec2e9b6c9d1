"""What OpenAI-compatible servers speak at /v1/completions: bodies of requests out, chunks of streamed answers in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from steerlm.engines.base import Finish, Request, TokenLogprob
from steerlm.errors import ConfigError, EngineError, SteerLMError

# Beyond OpenAI's own interface, and of use without being needed: a server that refuses one is asked without it.
OPTIONAL_FIELDS = ("return_token_ids", "return_tokens_as_token_ids", "stop_token_ids", "stream_options", "cache_salt")
_TOKEN_ID = "token_id:"
_UNKNOWN = re.compile(
    r"extra_forbidden|extra inputs|unknown|unrecogni[sz]ed|unexpected|unsupported|not (supported|permitted|allowed)"
    r"|not a valid (parameter|field|argument)|invalid (parameter|field|argument)|leave it out|no_token_ids",
    re.IGNORECASE,
)
_INPUT = re.compile(r"""['"]input['"]:.*?(?=\{['"]type['"]:|$)""", re.DOTALL)
"""What a validator was given, up to the next fault that it found."""
_NEAR = 60  # characters within which a field stands beside the words about it
_LONGEST_WAIT_S = 3600.0
_FAILED = "the server that generates failed"
_FINISHES: dict[str, Finish] = {"stop": "stop", "length": "length"}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one answer.

    tokens     its token ids; none where the server does not tell them, and then `text` is all there is
    logprobs   of each token, where they were asked for
    finish     why the answer ended, with its last chunk
    cached     tokens of the prompt that were not computed again, where the server tells
    made       tokens of the answer, where the server tells, after its end
    """

    text: str = ""
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    cached: int = 0
    made: int | None = None


class _Logprobs(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(BaseModel):
    text: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class ServedModel(BaseModel):
    """An entry of /v1/models: its name, and the most tokens that prompt and answer may have, where it is told."""

    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[ServedModel]


def request_body(
    request: Request, model: str, stop: Sequence[str], end_ids: Sequence[int], without: Collection[str] = ()
) -> dict[str, Any]:
    """A streamed request; what is left at its default is left out, and so are the optional fields in `without`."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    if end_ids:
        body["stop_token_ids"] = list(end_ids)
    if stop:
        body["stop"] = list(stop)
    if sampling.temperature > 0:
        body["seed"] = sampling.seed
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    if sampling.min_tokens:
        body["min_tokens"] = sampling.min_tokens
    if request.salt:  # it may have the id of a key in it, which is no business of another server's
        body["cache_salt"] = hashlib.sha256(request.salt.encode()).hexdigest()
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return {name: value for name, value in body.items() if name not in without}


def read_chunk(data: str, likeliest: int | None) -> Chunk:
    """The data of one server-sent event; `likeliest` is how many log-probabilities were asked for at each place.

    Raises `EngineError` where it is an error of the server's or nothing that is known.
    """
    try:
        event = _Event.model_validate_json(data)
    except ValidationError as error:
        what = "sent what is no chunk of a completion"
        # It may be text of an answer, which has no business in a log; deep places are named by tokens.
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"][:4])) or "the whole"
        raise EngineError(
            f"the server {what}: {len(data)} characters, at fault {place}: {fault['msg']}",
            f"the server that generates {what}",
        ) from error
    if event.error is not None:
        raise EngineError(f"the server failed: {_message(event.error)}", _FAILED)
    counts = event.usage or _Usage()
    details = counts.prompt_tokens_details or _Details()
    cached, made = details.cached_tokens or 0, counts.completion_tokens
    if not event.choices:
        return Chunk(tokens=(), cached=cached, made=made)
    choice = event.choices[0]
    told = choice.logprobs or _Logprobs()
    tokens = choice.token_ids
    if tokens is None and told.tokens and all(_id(text) >= 0 for text in told.tokens):
        tokens = [_id(text) for text in told.tokens]
    logprobs = () if likeliest is None else _logprobs(told, likeliest)
    finish = _finish(choice.finish_reason)
    return Chunk(choice.text or "", None if tokens is None else tuple(tokens), logprobs, finish, cached, made)


def read_models(data: bytes) -> list[ServedModel]:
    """The answer to /v1/models. Raises `EngineError` where it is none."""
    try:
        return _Models.model_validate_json(data).data
    except ValidationError as error:
        raise EngineError(f"what answers is no OpenAI-compatible server: it sent {data[:200]!r}") from error


def refusal(status: int, data: bytes, url: str, retry_after: str | None = None) -> SteerLMError:
    """What an answer with a status other than 200 means: `ConfigError` where the request is at fault.

    `url` is the server's, `retry_after` its header of that name. Its words may hold accounts, keys and addresses; they
    are for its operator, unless they are about the request.
    """
    message = _message(data.decode("utf-8", "replace")) or "it gave no reason"
    if status in (401, 402, 403):
        public = "the server that generates refuses this one"
        return EngineError(f"{url} refuses the API key ({status}): {message}", public)
    if status == 404:
        public = "the server that generates does not have the model"
        return EngineError(f"{url} does not have the model or the path ({status}): {message}", public)
    if status in (408, 429):
        seconds = min(float(retry_after), _LONGEST_WAIT_S) if retry_after and retry_after.isdecimal() else 1.0
        public = "the server that generates is too busy; try again later"
        return EngineError(f"{url} is too busy ({status}): {message}; try again later", public, seconds)
    if 400 <= status < 500:
        return ConfigError(f"the server refuses the request ({status}): {message}")
    return EngineError(f"{url} failed ({status}): {message}", _FAILED)


def unknown_fields(status: int, data: bytes) -> set[str]:
    """Which of the optional fields a refusal calls unknown. That of another fault may repeat the whole request."""
    if status not in (400, 422):
        return set()
    text = data.decode("utf-8", "replace")
    try:
        return _unknown(json.loads(text))
    except (ValueError, RecursionError):
        return _unknown(text)


def _unknown(said: Any) -> set[str]:
    if isinstance(said, str):
        return _unknown_in_words(said)
    if isinstance(said, list):
        return set().union(*map(_unknown, said))
    if not isinstance(said, dict):
        return set()
    told = {key: value for key, value in said.items() if key != "input"}
    found: set[str] = set().union(*map(_unknown, told.values()))
    if any(isinstance(value, str) and _UNKNOWN.search(value) for value in told.values()):
        place = told.get("loc")
        found |= {*OPTIONAL_FIELDS} & {str(part) for part in (place if isinstance(place, list) else [])}
        found |= {*OPTIONAL_FIELDS} & {str(told.get("param"))}
    return found


def _unknown_in_words(text: str) -> set[str]:
    """Fields named near the words that call one unknown, but not within a request that is repeated beside them."""
    text = _INPUT.sub("{", text)
    found = set()
    for words in _UNKNOWN.finditer(text):
        before = re.split(r"[{}]", text[max(0, words.start() - _NEAR) : words.start()])[-1]
        after = re.split(r"[{};\n]", text[words.end() : words.end() + _NEAR])[0]
        found |= {name for name in OPTIONAL_FIELDS if re.search(rf"\b{name}\b", f"{before} {after}")}
    return found


def _message(said: Any) -> str:
    """The words in an error, in any of the forms that servers give it."""
    if isinstance(said, str):
        try:
            parsed = json.loads(said)
        except (ValueError, RecursionError):
            return said.strip()[:500]
        return _message(parsed) if isinstance(parsed, dict) else said.strip()[:500]
    if isinstance(said, dict):
        found = next((said[key] for key in ("error", "message", "detail") if said.get(key)), said)
        if found is not said:
            return _message(found)
    return json.dumps(said, ensure_ascii=False)[:500]


def _finish(reason: str | None) -> Finish | None:
    if reason and reason not in _FINISHES:
        public = "the server that generates ended an answer for an unknown reason"
        raise EngineError(f"the server ended an answer for the reason {reason!r}", public)
    return _FINISHES[reason] if reason else None


def _id(text: str) -> int:
    """The id in vLLM's way of writing a token as `token_id:123`; -1 for text."""
    digits = text.removeprefix(_TOKEN_ID)
    return int(digits) if digits != text and digits.isdecimal() else -1


def _logprobs(told: _Logprobs, likeliest: int) -> tuple[TokenLogprob, ...]:
    found = []
    for place, value in enumerate(told.token_logprobs):
        top = (told.top_logprobs[place] if told.top_logprobs and place < len(told.top_logprobs) else None) or {}
        # A token that is not among the likeliest comes in addition to them.
        ranked = sorted(((_id(text), chance) for text, chance in top.items()), key=lambda item: -item[1])[:likeliest]
        found.append(TokenLogprob(float("-inf") if value is None else value, tuple(ranked)))
    return tuple(found)
