"""Asks the judge, and keeps what it says in FastChat's files; what is there already is not asked again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.mt_bench.answers import Progress
from steerlm.evaluation.mt_bench.client import (
    ChatClient,
    Endpoint,
    Failure,
    Reply,
    Usage,
    refusals,
    stamp,
    work_through,
)
from steerlm.evaluation.mt_bench.layouts import PairJudgment, SingleJudgment, file_name
from steerlm.evaluation.mt_bench.matches import Answers, Match, compared, pair_matches, single_matches
from steerlm.evaluation.mt_bench.questions import Benchmark
from steerlm.evaluation.mt_bench.rowfile import RowFile
from steerlm.evaluation.mt_bench.served import with_fingerprints
from steerlm.evaluation.mt_bench.settings import JudgeSettings
from steerlm.evaluation.mt_bench.verdicts import UNRATED, rating, winner

JUDGMENTS = "model_judgment"


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What was judged: `made` now, `kept` from before, `unrated` of those made; tokens and cost of those made, and of
    all that this judge has in the file; `refused` are the requests that the judge refuses.
    """

    file: Path
    made: int
    kept: int
    unrated: int
    usage: Usage
    cost: float
    whole_usage: Usage
    whole_cost: float
    refused: tuple[Failure[Match], ...]


def judge_answers(
    bench: Benchmark,
    answers: Answers,
    settings: JudgeSettings,
    out: Path,
    fresh: bool = False,
    progress: Progress = lambda done, total: None,
) -> JudgeReport:
    """Judge all answers, into `out`/model_judgment/JUDGE_single.jsonl or JUDGE_pair.jsonl.

    A judgment that is there is kept where the judge would be asked the same again. Where it would not, it stops the
    run with a `DataError`, or with `fresh` is thrown away. A judgment that the judge refuses is missing. Raises
    `EngineError` where some requests failed otherwise, or all of a model or pair are refused.
    """
    pairs = settings.mode != "single"
    check_judging(settings, list(answers))
    matches = list(pair_matches(bench, answers, settings.baseline) if pairs else single_matches(bench, answers))
    path = out / JUDGMENTS / f"{file_name(settings.judge)}_{'pair' if pairs else 'single'}.jsonl"
    with RowFile(path, PairJudgment.from_row if pairs else SingleJudgment.from_row) as file:
        jobs = _unjudged(matches, answers, settings, file, fresh)
        made: list[dict[str, Any]] = []
        failures = asyncio.run(_judge_all(jobs, _endpoint(settings), settings, file, made, progress))
        file.replace(sorted(file.rows, key=_order))
        whole = Usage.of_rows(row for row in file.rows if row["judge"][0] == settings.judge)
    failed = {str(failure.what) for failure in failures}
    judged = {match.models for match in matches if str(match) not in failed}
    refused = refusals(failures, len(jobs), "judgments", lambda match: match.models in judged)
    usage, prices = Usage.of_rows(made), (settings.price_prompt, settings.price_completion)
    return JudgeReport(
        path,
        len(made),
        len(matches) - len(jobs),
        sum(_unrated(row) for row in made),
        usage,
        usage.cost(*prices),
        whole,
        whole.cost(*prices),
        tuple(refused),
    )


def check_judging(settings: JudgeSettings, models: Sequence[str]) -> None:
    """Raise `ConfigError` for what would keep the answers of these models from being judged, before any is made."""
    if (settings.mode == "pair-baseline") != (settings.baseline is not None):
        raise ConfigError("mode pair-baseline needs a baseline, and no other mode takes one")
    if settings.mode != "single":
        compared(models, settings.baseline)
    _endpoint(settings).headers()


def _endpoint(settings: JudgeSettings) -> Endpoint:
    return Endpoint(
        settings.judge_url,
        settings.judge,
        settings.key_variable,
        json.loads(settings.judge_body),
        settings.judge_retries,
        settings.judge_retry_pause,
        settings.judge_timeout,
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    models = [row["model"]] if "model" in row else sorted((row["model_1"], row["model_2"]))
    return row["question_id"], row.get("turn", 1), *models


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    number, turn, *models = _key(row)
    return turn, *models, number


def _unrated(row: Mapping[str, Any]) -> bool:
    return bool(row["score"] == UNRATED) if "score" in row else "error" in (row["g1_winner"], row["g2_winner"])


def _unjudged(
    matches: Sequence[Match], answers: Answers, settings: JudgeSettings, file: RowFile, fresh: bool
) -> list[Match]:
    """Matches without a judgment of the same request in the file."""
    wanted = {(match.question.id, match.turn, *match.models): match for match in matches}
    stale, orphans, kept, done = [], [], [], set()
    for row in file.rows:
        own = row["judge"][0] == settings.judge
        match = wanted.get(_key(row)) if own else None
        if own and _is_orphan(row, answers):
            orphans.append(row)
            continue
        if match and not _answers(row, match, settings):
            stale.append(row)
            continue
        kept.append(with_fingerprints(row, match.answers) if match else row)
        if match and not (settings.retry_unrated and _unrated(row)):
            done.add(_key(row))
    faults = []
    if stale:
        faults.append(
            f"{_several(stale)}, are of other answers, references, prompts or settings of the judge than these; pass "
            "--fresh to judge anew, or choose another --out"
        )
    if orphans:
        faults.append(
            f"{_several(orphans)}, are of answers that are not there; put those back or have them made again, or pass "
            "--fresh to throw these judgments away"
        )
    if faults and not fresh:
        raise DataError(f"{file.path}: {'. Besides, '.join(faults)}")
    file.replace(kept)
    return [match for key, match in wanted.items() if key not in done]


def _several(rows: Sequence[Mapping[str, Any]]) -> str:
    question, turn, *models = _key(rows[0])
    return f"{len(rows)} judgments, the first of question {question}, turn {turn}, of {' and '.join(models)}"


def _is_orphan(row: Mapping[str, Any], answers: Answers) -> bool:
    """Whether a row of ours judges a turn that one of these models has not, or no longer, answered."""
    question, turn, *models = _key(row)
    if "asked" not in row or not all(model in answers for model in models):
        return False
    return any(question not in answers[model] or len(answers[model][question].turns) < turn for model in models)


def _answers(row: Mapping[str, Any], match: Match, settings: JudgeSettings) -> bool:
    """Whether the row is what the judge said to this very request; FastChat's rows tell only its user prompt."""
    swapped = row.get("model_1", match.models[0]) != match.models[0]
    if row.get("user_prompt", row.get("g1_user_prompt")) != match.user_prompt(swapped):
        return False
    return "asked" not in row or row["asked"] == _digest(match, settings)


def _digest(match: Match, settings: JudgeSettings) -> str:
    """Of all that the judgment depends on beside the user prompt, which rows hold as it is."""
    parts = [match.prompt.system, settings.judge_max_tokens, json.loads(settings.judge_body)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()


async def _judge_all(
    jobs: Sequence[Match],
    endpoint: Endpoint,
    settings: JudgeSettings,
    file: RowFile,
    made: list[dict[str, Any]],
    progress: Progress,
) -> list[Failure[Match]]:
    async with ChatClient(endpoint) as client:

        async def ask(match: Match, swapped: bool = False) -> Reply:
            messages = [
                {"role": "system", "content": match.prompt.system},
                {"role": "user", "content": match.user_prompt(swapped)},
            ]
            return await client.complete(messages, temperature=0.0, max_tokens=settings.judge_max_tokens)

        async def work(match: Match) -> None:
            judge: Callable[..., Any] = _single if len(match.models) == 1 else _pair
            further = {"asked": _digest(match, settings), **_further(match)}
            judged = {**await judge(match, ask), "judge": [settings.judge, match.prompt.name], **further}
            row = with_fingerprints(judged, match.answers)
            file.append(row)
            made.append(row)
            progress(len(made), len(jobs))

        return await work_through(jobs, work, settings.judge_concurrency)


def _further(match: Match) -> dict[str, Any]:
    note = {"reference": match.reference.note or "as published"} if match.reference else {}
    return {"turn": match.turn, "tstamp": stamp(), **note}


async def _single(match: Match, ask: Callable[..., Any]) -> dict[str, Any]:
    reply = await ask(match)
    return {
        "question_id": match.question.id,
        "model": match.models[0],
        "user_prompt": match.user_prompt(),
        "judgment": reply.text,
        "score": rating(reply.text),
        **reply.usage.fields(),
    }


async def _pair(match: Match, ask: Callable[..., Any]) -> dict[str, Any]:
    """Both orders, one after the other: a judgment is one row, so that a kill leaves both or none."""
    first, second = await ask(match), await ask(match, swapped=True)
    return {
        "question_id": match.question.id,
        "model_1": match.models[0],
        "model_2": match.models[1],
        "g1_winner": winner(first.text, swapped=False),
        "g2_winner": winner(second.text, swapped=True),
        "g1_user_prompt": match.user_prompt(),
        "g1_judgment": first.text,
        "g2_user_prompt": match.user_prompt(swapped=True),
        "g2_judgment": second.text,
        **(first.usage + second.usage).fields(),
    }
