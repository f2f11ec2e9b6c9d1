"""Answers to be judged, and a judge that gives every one of them seven points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chat_server import ChatServer
from small_bench import answer_row, question_rows, write_rows
from steerlm.evaluation.mt_bench.judge import judge_answers
from steerlm.evaluation.mt_bench.layouts import SingleJudgment, read_judgments
from steerlm.evaluation.mt_bench.matches import load_answers
from steerlm.evaluation.mt_bench.questions import Benchmark
from steerlm.evaluation.mt_bench.settings import JudgeSettings


def write_answers(out: Path, *models: str, mark: str = "") -> None:
    """Answers whose texts name them: `m81.1`."""
    for model in models:
        rows = [
            answer_row(row["question_id"], model, [f"{mark}{model}{row['question_id']}.{turn}" for turn in (1, 2)])
            for row in question_rows()
        ]
        write_rows(out / "model_answer" / f"{model}.jsonl", rows)


def settings(server: ChatServer, **more: Any) -> JudgeSettings:
    return JudgeSettings(judge="j", judge_url=server.url, judge_retry_pause=0.001, **more)


def seven(body: dict[str, Any]) -> str:
    return "Fair. Rating: [[7]]"


def judge(bench: Benchmark, chosen: JudgeSettings, out: Path, **more: Any) -> Any:
    return judge_answers(bench, load_answers(out), chosen, out, **more)


def singles(path: Path) -> list[SingleJudgment]:
    return read_judgments([path])[0]
