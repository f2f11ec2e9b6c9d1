"""Settings of answering and of judging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from steerlm.settings import Settings

OPENAI = "https://api.openai.com/v1"
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


def _checked_body(value: str) -> str:
    if not isinstance(json.loads(value), dict):
        raise ValueError('must be a JSON object, such as {"top_p": 0.9}')
    return value


def _checked_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value.rstrip("/")


class AnswerSettings(Settings):
    """How the judged model is asked."""

    url: str = "http://localhost:8000/v1"
    """Address of the OpenAI-compatible server of the judged model."""
    key_env: str | None = None
    """Environment variable with that server's key, where it asks for one."""
    greedy: bool = False
    """Temperature 0 for all questions, as in the HelpSteer paper, instead of MT-Bench's own: 0.7 for writing and
    roleplay, 0.1 for stem and humanities, 0 for the rest."""
    max_tokens: Count = 1024
    """Most tokens of an answer."""
    attributes_field: Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")] = "attributes"
    """Where a request carries the attribute values; chat_template_kwargs.attributes for vLLM."""
    body: str = "{}"
    """JSON object of further request fields; a null takes one of ours away."""
    concurrency: Count = 8
    """Requests at a time."""
    retries: Annotated[int, Field(ge=0)] = 8
    """Tries after the first, with growing pauses, where the server is busy (429, 5xx, ...) or not reached."""
    retry_pause: Seconds = 1.0
    """Seconds of the first pause between tries; each is twice the one before it, up to a minute."""
    timeout: Seconds = 600.0
    """Seconds to wait for an answer."""

    _body = field_validator("body")(_checked_body)
    _url = field_validator("url")(_checked_url)

    def signature(self, model: str, steered: bool) -> dict[str, Any]:
        """What answers depend on: those made otherwise are not mixed with these.

        A server passes over values in a field that it does not know, so that `steered` answers depend on the field.
        """
        field = {"attributes_field": self.attributes_field} if steered else {}
        body = json.loads(self.body)
        return {"model": model, "greedy": self.greedy, "max_tokens": self.max_tokens, "body": body, **field}


class JudgeSettings(Settings):
    """How the judge is asked."""

    judge: str = "gpt-4"
    """Name of the judge model, as its server knows it."""
    judge_url: str = OPENAI
    """Address of the judge's OpenAI-compatible server."""
    judge_key_env: str | None = None
    """Environment variable with the judge's key; without one, OPENAI_API_KEY for api.openai.com, none for others."""
    mode: Literal["single", "pair-baseline", "pair-all"] = "single"
    """Grade each answer, compare each model with the baseline, or compare all pairs; pairs in both orders."""
    baseline: str | None = None
    """Model that the others are compared with in mode pair-baseline."""
    judge_max_tokens: Count = 2048
    """Most tokens of a judgment."""
    judge_body: str = "{}"
    """JSON object of further request fields; a null takes one of ours away, such as {"temperature": null}."""
    judge_concurrency: Count = 8
    """Requests at a time."""
    judge_retries: Annotated[int, Field(ge=0)] = 8
    """Tries after the first, with growing pauses, where the server is busy (429, 5xx, ...) or not reached."""
    judge_retry_pause: Seconds = 1.0
    """Seconds of the first pause between tries; each is twice the one before it, up to a minute."""
    judge_timeout: Seconds = 300.0
    """Seconds to wait for a judgment."""
    retry_unrated: bool = False
    """Ask again where an earlier judgment holds no rating."""
    price_prompt: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens of the judge, in any currency."""
    price_completion: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million tokens that the judge writes."""

    _body = field_validator("judge_body")(_checked_body)
    _url = field_validator("judge_url")(_checked_url)

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the judge's key; never OpenAI's key for another server unasked."""
        if self.judge_key_env is None and self.judge_url == OPENAI:
            return "OPENAI_API_KEY"
        return self.judge_key_env


class BenchSettings(Settings):
    """Where questions, reference answers and the judge's prompts are read from."""

    bench: str | None = None
    """Directory (a FastChat checkout, or one that holds the files), installed package, or hub:OWNER/NAME (a data set)
    or hub:spaces/OWNER/NAME. Without one, an installed package that has them."""
    references: str = "gpt-4"
    """Reference answers for math, reasoning and coding: the name of a set in the benchmark, or a file."""
    replace_wrong: str | None = None
    """Set or file whose answers replace the 13 of gpt-4 that are known to be wrong; without one they are flagged."""
    judge_prompts: Path | None = None
    """File of the judge's prompts; without one, judge_prompts.jsonl of the benchmark."""


def file_or_name(value: str) -> Path | None:
    """The file that a setting names, or None where it is the name of a set."""
    path = Path(value)
    return path if path.suffix == ".jsonl" or path.is_file() else None
