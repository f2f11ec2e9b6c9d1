"""Two-turn answers of a served model, at one attribute setting or at several."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.mt_bench.client import (
    ChatClient,
    Endpoint,
    Failure,
    RefusedError,
    Reply,
    Usage,
    refusals,
    stamp,
    work_through,
)
from steerlm.evaluation.mt_bench.layouts import AT, Answer, file_name
from steerlm.evaluation.mt_bench.questions import Question
from steerlm.evaluation.mt_bench.rowfile import RowFile
from steerlm.evaluation.mt_bench.served import fingerprint_fields, fingerprints
from steerlm.evaluation.mt_bench.settings import AnswerSettings

ANSWERS = "model_answer"
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
_OTHER_TEMPERATURE = 0.7
_ASSIGNMENT = re.compile(r"([a-z][a-z0-9_]*)=(-?[0-9]+|none)")
DEFAULT = "default"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """Attribute values that all answers are asked with; None leaves an attribute unset, no values at all the server's
    defaults.
    """

    values: Mapping[str, int | None] = field(default_factory=dict)

    def model(self, name: str) -> str:
        """The name under which the model at this setting stands in files and tables."""
        shown = ",".join(f"{key}={'none' if value is None else value}" for key, value in self.values.items())
        return f"{name}{AT}{shown}" if shown else name


def parse_setting(text: str) -> Setting:
    """`verbosity=0,complexity=4` or `default`. Raises `ConfigError` where it is neither."""
    if text.strip() == DEFAULT:
        return Setting()
    values: dict[str, int | None] = {}
    for part in text.split(","):
        match = _ASSIGNMENT.fullmatch(part.strip())
        if not match:
            raise ConfigError(
                f"setting {text!r}: write attribute=value,..., such as verbosity=0,humor=none, or default"
            )
        if match[1] in values:
            raise ConfigError(f"setting {text!r}: {match[1]} is set twice")
        values[match[1]] = None if match[2] == "none" else int(match[2])
    return Setting(values)


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """What was answered: `made` now, `kept` from before, `cut` at the limit of tokens, over all settings; `refused` by
    the server.
    """

    models: tuple[str, ...]
    files: tuple[Path, ...]
    made: int
    kept: int
    cut: int
    usage: Usage
    refused: tuple[Failure[str], ...]


def temperature(category: str, greedy: bool) -> float:
    """The temperature at which a question of the category is answered."""
    return 0.0 if greedy else TEMPERATURES.get(category, _OTHER_TEMPERATURE)


def answer_questions(
    questions: Sequence[Question],
    model: str,
    settings: AnswerSettings,
    out: Path,
    steering: Sequence[Setting] = (Setting(),),
    name: str | None = None,
    progress: Progress = lambda done, total: None,
) -> AnswerReport:
    """Answer all questions at every setting, into `out`/model_answer/NAME[@SETTING].jsonl.

    `model` is what the server calls it, `name` what files and tables do. Answers that are there are kept. A turn that
    the server refuses is missing, with those after it, until it is asked for again; a turn is on the disk before the
    next one is asked for. Raises `EngineError` where some failed otherwise or all at a setting are refused, `DataError`
    where a file holds answers made otherwise.
    """
    endpoint = Endpoint(
        settings.url,
        model,
        settings.key_env,
        json.loads(settings.body),
        settings.retries,
        settings.retry_pause,
        settings.timeout,
    )
    names = [setting.model(name or model) for setting in steering]
    if len(set(names)) < len(names):
        raise ConfigError("the same attribute setting is given twice")
    with ExitStack() as stack:
        files = [
            stack.enter_context(RowFile(out / ANSWERS / f"{file_name(item)}.jsonl", Answer.from_row)) for item in names
        ]
        jobs = [
            _Job(question, setting, item, file, begun)
            for setting, item, file in zip(steering, names, files, strict=True)
            for question, begun in _unanswered(questions, settings.signature(model, bool(setting.values)), item, file)
        ]
        made: list[list[Reply]] = []
        failures = asyncio.run(_answer_all(jobs, endpoint, settings, made, progress))
        for file in files:
            file.replace(_latest(file.rows))
    asked = {question.id for question in questions}
    refused = refusals(
        failures, len(jobs), "answers", lambda job: any(row["question_id"] in asked for row in job.file.rows)
    )
    return AnswerReport(
        tuple(names),
        tuple(file.path for file in files),
        len(made),
        len(questions) * len(names) - len(jobs),
        sum(any(reply.finish == "length" for reply in replies) for replies in made),
        Usage.of_rows(_usage(replies).fields() for replies in made),
        tuple(Failure(str(failure.what), failure.why, failure.refused) for failure in refused),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    question: Question
    setting: Setting
    model: str
    file: RowFile
    begun: tuple[Reply, ...]
    """Turns that were answered before."""

    def __str__(self) -> str:
        return f"question {self.question.id} of {self.model}"


def _unanswered(
    questions: Sequence[Question], signature: Mapping[str, Any], model: str, file: RowFile
) -> Iterator[tuple[Question, tuple[Reply, ...]]]:
    """Questions that the file has no whole answer to, each with the turns that it has.

    Raises `DataError` where it holds answers made with other settings or to other words.
    """
    digests = {question.id: question.digest for question in questions}
    for row in file.rows:
        if row.get("model_id") != model or row.get("asked", signature) != signature:
            raise DataError(
                f"{file.path}: its answer to question {row.get('question_id')} was made by another model or with other "
                "settings; choose another --name or --out, or remove the file"
            )
        digest = digests.get(row["question_id"])
        if digest is not None and row.get("question_digest", digest) != digest:
            raise DataError(
                f"{file.path}: its answer to question {row['question_id']} is to other words than the question now "
                "has; choose another --out, or remove the file"
            )
    answered = {row["question_id"]: row for row in file.rows}
    for question in questions:
        if question.id not in answered:
            yield question, ()
        elif "asked" in (last := answered[question.id]) and len(last["finish"]) < len(question.turns):
            yield question, _replies(last)


def _replies(row: Mapping[str, Any]) -> tuple[Reply, ...]:
    """What a row of ours was made of; the tokens and the fingerprint of all its turns stand at its first."""
    usage, fingerprint = Usage.from_dict(row.get("usage")), next(iter(fingerprints(row)), None)
    first, *others = zip(row["choices"][0]["turns"], row["finish"], strict=True)
    return Reply(*first, usage, fingerprint), *(Reply(*other, Usage()) for other in others)


def _latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of the questions; of ours to one question the last, which goes on from those before it."""
    last = {row["question_id"]: row for row in rows}
    return sorted(
        (row for row in rows if "asked" not in row or row is last[row["question_id"]]),
        key=lambda row: row["question_id"],
    )


async def _answer_all(
    jobs: Sequence[_Job],
    endpoint: Endpoint,
    settings: AnswerSettings,
    made: list[list[Reply]],
    progress: Progress,
) -> list[Failure[_Job]]:
    async with ChatClient(endpoint) as client:

        async def work(job: _Job) -> None:
            replies = list(job.begun)
            try:
                while len(replies) < len(job.question.turns):
                    replies.append(await _answer(client, job, settings, replies))
                    job.file.append(_row(client.model, job, settings, replies))
            except RefusedError as error:
                raise RefusedError(f"turn {len(replies) + 1}: {error}") from error
            finally:
                if len(replies) > len(job.begun):
                    made.append(replies[len(job.begun) :])
                    progress(len(made), len(jobs))

        return await work_through(jobs, work, settings.concurrency)


async def _answer(client: ChatClient, job: _Job, settings: AnswerSettings, replies: Sequence[Reply]) -> Reply:
    """The reply to the first turn that has none; it sees those before it, with what the model itself answered."""
    messages: list[dict[str, str]] = []
    for turn, reply in zip(job.question.turns, replies, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply.text}]
    messages.append({"role": "user", "content": job.question.turns[len(replies)]})
    fields = _nested(settings.attributes_field, dict(job.setting.values)) if job.setting.values else {}
    return await client.complete(
        messages,
        temperature=temperature(job.question.category, settings.greedy),
        max_tokens=settings.max_tokens,
        **fields,
    )


def _row(model: str, job: _Job, settings: AnswerSettings, replies: Sequence[Reply]) -> dict[str, Any]:
    """The row of a question, of as many turns as there are replies."""
    return {
        "question_id": job.question.id,
        "answer_id": uuid.uuid4().hex,
        "model_id": job.model,
        "choices": [{"index": 0, "turns": [reply.text for reply in replies]}],
        "tstamp": stamp(),
        "attributes": dict(job.setting.values),
        "asked": settings.signature(model, bool(job.setting.values)),
        "question_digest": job.question.digest,
        "finish": [reply.finish for reply in replies],
        **fingerprint_fields(reply.fingerprint for reply in replies),
        **_usage(replies).fields(),
    }


def _usage(replies: Sequence[Reply]) -> Usage:
    return sum((reply.usage for reply in replies), Usage())


def _nested(path: str, value: object) -> dict[str, Any]:
    """`a.b` as {"a": {"b": value}}."""
    name, _, rest = path.partition(".")
    return {name: _nested(rest, value) if rest else value}
